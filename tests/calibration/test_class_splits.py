"""Partitions of classes, the pseudo splits of seen ones, and updates of a classifier."""

import doctest

import numpy as np
import pytest

from subtune_jax.calibration import class_splits, updates
from subtune_jax.data import splits

GROUPS = ["animal", "animal", "food", "food", "food", "plant", "tool", "tool"]
TWO_SEEN = class_splits.from_indices(3, [0, 1])


@pytest.mark.parametrize("module", [class_splits, updates])
def test_examples(module):
  found = doctest.testmod(module, extraglobs={"np": np})
  assert found.attempted
  assert not found.failed


def test_partition_of_indices_and_of_names_is_one():
  by_index = class_splits.from_indices(4, [1, 3])
  by_name = class_splits.from_names(["a", "b", "c", "d"], ["d", "b"])
  for part in (by_index, by_name):
    assert part.seen.tolist() == [False, True, False, True]
    assert part.absent.tolist() == part.left_out.tolist() == [True, False, True, False]
    assert not part.pseudo_absent.any()


@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("seed", range(20))
def test_pseudo_partitions_divide_the_seen_classes_and_leave_the_absent_ones_absent(groups, seed):
  how = "random" if groups is None else "group"
  drawn = splits.class_split(8, 5, seed, groups, how)
  whole = class_splits.from_indices(8, drawn.seen)
  made = class_splits.pseudo_partitions(whole, 3, seed, groups)
  again = class_splits.pseudo_partitions(whole, 3, seed, groups)
  assert len(made) == 3
  for part, same in zip(made, again, strict=True):
    np.testing.assert_array_equal(part.absent, whole.absent)
    np.testing.assert_array_equal(part.seen | part.pseudo_absent, whole.seen)
    np.testing.assert_array_equal(part.seen, same.seen)
    assert 1 <= part.pseudo_absent.sum() <= 2
    if groups is not None:
      left = {groups[c] for c in np.flatnonzero(part.pseudo_absent)}
      assert not left & {groups[c] for c in np.flatnonzero(part.seen)}


@pytest.mark.parametrize(
  ("make", "text"),
  [
    (lambda: class_splits.from_indices(3, []), r"seen is \[\]"),
    (lambda: class_splits.from_indices(3, [0, 0]), "each class once, from 0 to 2"),
    (lambda: class_splits.from_indices(3, [0, 3]), "from 0 to 2"),
    (lambda: class_splits.from_indices(3, [0, 1, 2]), "marks 0 of the 3 classes"),
    (lambda: class_splits.from_names("abc", ["x"]), "no class is called 'x'; classes: a, b, c"),
    (
      lambda: class_splits.Partition(*np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], bool)),
      "class 0 is in 2 of",
    ),
    (
      lambda: class_splits.Partition(*np.array([[1, 0, 0], [0, 0, 0], [0, 0, 1]], bool)),
      "class 1 is in 0 of",
    ),
    (
      lambda: class_splits.Partition(*np.array([[0, 0], [1, 0], [0, 1]], bool)),
      "no class is seen",
    ),
    (
      lambda: class_splits.pseudo_partitions(class_splits.from_indices(3, [0])),
      "at least one split and two seen",
    ),
    (
      lambda: class_splits.pseudo_partitions(TWO_SEEN, 1, 0, list("aab")),
      "two super-classes",
    ),
    (
      lambda: class_splits.pseudo_partitions(TWO_SEEN, 1, 0, list("ab")),
      r"class_groups has the shape \(2,\)",
    ),
  ],
)  # fmt: skip
def test_bad_values(make, text):
  with pytest.raises(ValueError, match=text):
    make()


def test_similarity_of_updates_by_hand():
  before = np.zeros((2, 4))
  after = np.array([[1.0, 0.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
  moved = updates.classifier_updates(before, after)
  assert moved.length.tolist() == pytest.approx([1, 1, 8**0.5, 18**0.5])
  found = updates.mean_similarity(moved.cosine, np.array([False, False, True, True]))
  assert found == pytest.approx({"seen": 0.0, "absent": 1.0, "between": 0.5**0.5})
  with pytest.raises(ValueError, match="not finite"):
    updates.classifier_updates(before, after * np.nan)
  with pytest.raises(ValueError, match="before and"):
    updates.classifier_updates(before, after[:1])
