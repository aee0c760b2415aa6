"""Folds, parts, subsets, classes: whole groups, balance, the same on every machine."""

import itertools

import numpy as np
import pytest

from subtune_jax.data import emoji_domains, splits


def random_labels_and_groups(seed, num_groups=60, num_classes=5):
  """Groups of 1 to 4 examples, some of them of several classes."""
  rng = np.random.default_rng(seed)
  groups = np.repeat([f"g{i}" for i in range(num_groups)], rng.integers(1, 5, num_groups))
  return rng.integers(0, num_classes, len(groups)), groups


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("num_folds", [2, 3, 5, 60])
def test_every_example_is_held_out_once_and_groups_stay_whole(num_folds, stratified):
  labels, groups = random_labels_and_groups(0)
  folds = splits.fold_indices(labels, groups, num_folds, seed=0, stratified=stratified)
  assert len(folds) == num_folds
  held = np.concatenate([held_out for _, held_out in folds])
  np.testing.assert_array_equal(np.sort(held), np.arange(len(labels)))
  for rest, held_out in folds:
    assert held_out.size > 0
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, held_out])), np.arange(len(labels)))
    np.testing.assert_array_equal(held_out, np.sort(held_out))
    assert not set(groups[rest]) & set(groups[held_out])


@pytest.mark.parametrize("num_folds", [2, 5])
def test_emoji_folds_are_balanced_by_class(num_folds):
  data = emoji_domains.SET.load("noto", "train", 8)
  folds = splits.fold_indices(data.labels, data.groups, num_folds, seed=0)
  counts = np.stack([np.bincount(data.labels[held], minlength=45) for _, held in folds])
  largest = max(np.unique(data.groups, return_counts=True)[1])
  assert (counts.max(axis=0) - counts.min(axis=0)).max() <= largest
  assert np.ptp(counts.sum(axis=1)) <= 0.05 * len(data)
  for label in range(45):
    num_groups = len(np.unique(data.groups[data.labels == label]))
    assert (counts[:, label] > 0).sum() == min(num_groups, num_folds)


def test_single_examples_are_dealt_evenly():
  labels = np.repeat([0, 1, 2], [10, 7, 3])
  groups = np.array([f"g{i}" for i in range(20)])
  folds = splits.fold_indices(labels, groups, 5, seed=1)
  counts = np.stack([np.bincount(labels[held], minlength=3) for _, held in folds])
  assert (counts.max(axis=0) - counts.min(axis=0)).tolist() == [0, 1, 1]
  assert counts.sum(axis=1).tolist() == [4, 4, 4, 4, 4]


def test_seed_decides_and_nothing_else():
  labels, groups = random_labels_and_groups(0)
  one = splits.fold_indices(labels, groups, 4, seed=3)
  same = splits.fold_indices(labels.astype(np.int32), groups.astype("<U9"), 4, seed=3)
  other = splits.fold_indices(labels, groups, 4, seed=4)
  for (_, a), (_, b) in zip(one, same, strict=True):
    np.testing.assert_array_equal(a, b)
  assert any(a.tolist() != b.tolist() for (_, a), (_, b) in zip(one, other, strict=True))


def test_order_of_the_examples_does_not_matter():
  labels, groups = random_labels_and_groups(0)
  order = np.random.default_rng(1).permutation(len(labels))
  one = splits.fold_indices(labels, groups, 4, seed=3)
  other = splits.fold_indices(labels[order], groups[order], 4, seed=3)
  for (_, a), (_, b) in zip(one, other, strict=True):
    assert set(groups[a]) == set(groups[order][b])


def test_folds_are_the_same_everywhere():
  labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
  groups = np.array(list("aabcdefg"))
  folds = splits.fold_indices(labels, groups, 2, seed=0)
  assert [held.tolist() for _, held in folds] == [[0, 1, 5, 7], [2, 3, 4, 6]]


@pytest.mark.parametrize(
  ("labels", "groups", "num_folds", "message"),
  [
    ([0, 1, 0], ["a", "b", "b"], 3, "num_folds=3 is out of range; .* 2 to the number of groups, 2"),
    ([0, 1, 0], ["a", "b", "c"], 1, "num_folds=1 is out of range"),
    ([0, 1], ["a", "b", "c"], 2, r"one length, got the shapes \(2,\) and \(3,\)"),
    ([[0], [1]], [["a"], ["b"]], 2, r"must be vectors"),
  ],
)
def test_refuses(labels, groups, num_folds, message):
  with pytest.raises(ValueError, match=message):
    splits.fold_indices(np.array(labels), np.array(groups), num_folds, seed=0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shares", [(70, 15, 15), (1, 1), (1,)])
def test_shares_are_a_partition_that_keeps_groups_whole(seed, shares):
  labels, groups = random_labels_and_groups(seed)
  parts = splits.share_indices(labels, groups, shares, seed=seed)
  np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
  found = [set(groups[part]) for part in parts]
  assert sum(map(len, found)) == len(set(groups))
  for part, share in zip(parts, shares, strict=True):
    assert part.dtype == np.int64
    assert (np.diff(part) > 0).all()
    assert abs(len(part) - len(labels) * share / sum(shares)) <= 4  # The largest group.


@pytest.mark.parametrize("seed", range(5))
def test_shares_of_single_examples_are_exact_by_class(seed):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 7, 300)
  ids = np.array([f"{i}.jpg" for i in range(300)])
  parts = splits.share_indices(labels, ids, (70, 15, 15), seed)
  counts = np.bincount(labels, minlength=7)
  for part, share in zip(parts, (0.7, 0.15, 0.15), strict=True):
    assert (np.abs(np.bincount(labels[part], minlength=7) - share * counts) < 1).all()
    assert abs(len(part) - share * 300) <= 2
  order = rng.permutation(300)
  again = splits.share_indices(labels[order], ids[order], (70, 15, 15), seed)
  for part, other in zip(parts, again, strict=True):
    assert set(ids[part]) == set(ids[order][other])
  other = splits.share_indices(labels, ids, (70, 15, 15), seed + 1)
  assert other[2].tolist() != parts[2].tolist()


def test_shares_are_the_same_everywhere():
  labels, ids = np.repeat([0, 1], 10), np.array([f"{i}.jpg" for i in range(20)])
  parts = splits.share_indices(labels, ids, (70, 15, 15), seed=0)
  assert [len(part) for part in parts] == [14, 3, 3]
  assert [part.tolist() for part in parts[1:]] == [[4, 9, 15], [5, 13, 14]]


def test_names_that_are_not_utf8_can_be_groups():
  names = np.array(["\udcff.jpg", "a.jpg"])
  parts = splits.share_indices(np.zeros(2, int), names, (1, 1), seed=0)
  assert sorted(map(len, parts)) == [1, 1]


def test_shares_refuse():
  with pytest.raises(ValueError, match=r"shares=\(1, 0\) must be positive"):
    splits.share_indices(np.zeros(2, int), np.array(["a", "b"]), (1, 0), 0)
  with pytest.raises(ValueError, match=r"share_indices: labels and groups.*\(2,\) and \(1,\)"):
    splits.share_indices(np.zeros(2, int), np.array(["a"]), (1, 1), 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("grouped", [False, True])
def test_subsets_nest_and_are_in_proportion(seed, grouped):
  labels, groups = random_labels_and_groups(seed, num_groups=200)
  sizes = [10, 11, 50, 200, len(labels)]
  subsets = splits.nested_subsets(labels, sizes, seed, groups if grouped else None)
  for smaller, larger in itertools.pairwise(subsets):
    assert set(smaller) <= set(larger)
  for subset, size in zip(subsets, sizes, strict=True):
    assert size - 3 * grouped <= len(subset) <= size
    assert (np.diff(subset) > 0).all()
    if grouped:
      assert not set(groups[subset]) & set(np.delete(groups, subset))
    share = np.bincount(labels, minlength=5) * len(subset) / len(labels)
    assert (np.abs(np.bincount(labels[subset], minlength=5) - share) <= 2 + 8 * grouped).all()
  np.testing.assert_array_equal(subsets[-1], np.arange(len(labels)))


def test_balanced_subsets_have_every_class_equally():
  labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 30))
  for k, subset in enumerate(splits.nested_subsets(labels, [10, 50, 100, 290], seed=4)):
    assert set(np.bincount(labels[subset])) == {(1, 5, 10, 29)[k]}


def test_subsets_depend_on_the_seed_and_not_on_the_other_sizes():
  labels = np.repeat(np.arange(4), 25)
  one = splits.nested_subsets(labels, [20, 60], seed=1)
  np.testing.assert_array_equal(one[0], splits.nested_subsets(labels, [20], seed=1)[0])
  assert one[0].tolist() != splits.nested_subsets(labels, [20], seed=2)[0].tolist()
  assert splits.nested_subsets(np.array([0, 0, 1, 1, 1, 1]), [3], 0)[0].tolist() == [0, 2, 4]


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ([], "must increase"),
    ([0, 2], "must increase, from at least 1 to at most 4"),
    ([2, 5], "at most 4"),
    ([3, 2], "must increase"),
    ([2, 2], "must increase"),
    ([1], "size 1 is below that of the first group, 2"),
  ],
)
def test_subsets_refuse(sizes, message):
  with pytest.raises(ValueError, match=message):
    splits.nested_subsets(np.zeros(4, int), sizes, 0, groups=np.array(list("aabb")))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("num_seen", "num_validation"), [(1, 0), (10, 5), (18, 1), (12, 7)])
def test_classes_are_divided_at_random(seed, num_seen, num_validation):
  found = splits.class_split(20, num_seen, seed, num_validation_absent=num_validation)
  parts = [found.seen, found.validation_absent, found.absent]
  assert [len(part) for part in parts] == [num_seen, num_validation, 20 - num_seen - num_validation]
  assert sorted(np.concatenate(parts).tolist()) == list(range(20))
  assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize("seed", range(10))
def test_classes_are_divided_by_whole_super_classes(seed):
  groups = np.repeat(list("abcdefg"), [5, 4, 3, 3, 2, 2, 1])
  found = splits.class_split(20, 9, seed, groups, "group", num_validation_absent=4)
  assert (len(found.seen), len(found.validation_absent), len(found.absent)) == (9, 4, 7)
  sets = [set(groups[part]) for part in (found.seen, found.validation_absent, found.absent)]
  assert sum(map(len, sets)) == 7


def test_class_split_depends_on_the_seed_alone():
  groups = [f"g{i // 2}" for i in range(20)]
  for options in ({}, {"class_groups": groups, "how": "group"}):
    seen = [tuple(splits.class_split(20, 10, seed, **options).seen) for seed in range(6)]
    assert len(set(seen)) > 3
    assert seen[0] == tuple(splits.class_split(20, 10, 0, **options).seen)
  assert splits.class_split(6, 3, 0).seen.tolist() == [0, 2, 4]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((4, 4, 0), "leave 0 of 4 classes"),
    ((4, 0, 0), "num_seen=0"),
    ((4, 2, 0, None, "random", 2), "leave 0 of 4"),
    ((4, 2, 0, None, "randon"), "Unknown how 'randon'. Did you mean 'random'"),
    ((4, 2, 0, None, "group"), "class_groups go with"),
    ((4, 2, 0, list("aabb"), "random"), "class_groups go with"),
    ((4, 2, 0, list("aab"), "group"), "has 3 values; expected 4"),
    ((6, 2, 0, list("aaabbb"), "group"), r"num_seen=2 is not a sum.*nearest: \[0, 3\]"),
    ((6, 3, 0, list("aaabbb"), "group", 1), r"num_validation_absent=1 is not a sum.*\[0, 3\]"),
  ],
)
def test_class_split_refuses(arguments, message):
  with pytest.raises(ValueError, match=message):
    splits.class_split(*arguments)
