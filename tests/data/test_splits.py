"""Folds: whole groups, balance, the same on every machine."""

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
  data = emoji_domains.load("noto", "train", 8)
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
