"""Folds for cross-validation that keep groups whole.

The order comes from SHA-256 and integer arithmetic alone, so that a seed gives the same folds on
every machine and with every version of NumPy.
"""

import hashlib

import numpy as np


def fold_indices(
  labels: np.ndarray,
  groups: np.ndarray,
  num_folds: int,
  seed: int,
  *,
  stratified: bool = True,
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Splits examples into folds; no group is on both sides of a fold.

  Groups are dealt from the largest to the smallest, equal ones class by class, then in the order
  of sha256("seed/group"). Each goes to the fold that holds the fewest examples of its classes
  (when stratified), then to the smallest fold. The folds depend on which examples there are, not
  on their order. A class with fewer groups than folds is missing from some held-out parts; when
  its only group is held out, it is missing from the rest.

  Args:
    labels: [n] integer class of each example.
    groups: [n] str group of each example.
    num_folds: how many folds, from 2 to the number of groups.
    seed: which of the possible foldings.
    stratified: whether to spread each class over the folds.

  Returns:
    One pair (rest, held_out) of sorted int64 indices per fold. Every example is held out once.

  Raises:
    ValueError: labels and groups are not vectors of one length, or num_folds is out of range.
  """
  labels, groups = np.asarray(labels), np.asarray(groups)
  if labels.ndim != 1 or labels.shape != groups.shape:
    raise ValueError(
      "fold_indices: labels and groups must be vectors of one length, got the shapes "
      f"{labels.shape} and {groups.shape}."
    )
  names, group_of = np.unique(groups, return_inverse=True)
  if not 2 <= num_folds <= len(names):
    raise ValueError(
      f"fold_indices: num_folds={num_folds} is out of range; allowed: 2 to the number of groups, "
      f"{len(names)}."
    )
  classes, class_of = np.unique(labels, return_inverse=True)
  counts = np.zeros((len(names), len(classes)), np.int64)  # Examples by group and class.
  np.add.at(counts, (group_of, class_of), 1)
  digests = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in names]
  sizes, main_class = counts.sum(axis=1), counts.argmax(axis=1) * stratified
  order = sorted(range(len(names)), key=lambda g: (-sizes[g], main_class[g], digests[g]))
  fold_of = _deal(counts, order, num_folds, stratified)[group_of]
  return [(np.flatnonzero(fold_of != f), np.flatnonzero(fold_of == f)) for f in range(num_folds)]


def _deal(counts: np.ndarray, order: list[int], num_folds: int, stratified: bool) -> np.ndarray:
  """Returns the fold of each group; `counts`: [groups, classes] examples, `order`: of dealing."""
  held = np.zeros((num_folds, counts.shape[1]), np.int64)
  fold_of = np.zeros(len(counts), np.int64)
  for group in order:
    same_class = held @ counts[group] if stratified else np.zeros(num_folds, np.int64)
    fold = min(range(num_folds), key=lambda f: (same_class[f], held[f].sum(), f))
    held[fold] += counts[group]
    fold_of[group] = fold
  return fold_of
