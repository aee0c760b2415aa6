"""Folds, parts, nested subsets and divisions of classes; groups stay whole.

The order comes from SHA-256 and integer arithmetic alone, so that a seed gives the same indices on
every machine and with every version of NumPy.
"""

import collections
from collections.abc import Sequence
import dataclasses
import hashlib

import numpy as np

from subtune_jax.data import choices


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
  labels, groups = _vectors("fold_indices", labels, groups)
  names, group_of = np.unique(groups, return_inverse=True)
  if not 2 <= num_folds <= len(names):
    raise ValueError(
      f"fold_indices: num_folds={num_folds} is out of range; allowed: 2 to the number of groups, "
      f"{len(names)}."
    )
  classes, class_of = np.unique(labels, return_inverse=True)
  counts = np.zeros((len(names), len(classes)), np.int64)  # Examples by group and class.
  np.add.at(counts, (group_of, class_of), 1)
  digests = [_digest(seed, name) for name in names]
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


def share_indices(
  labels: np.ndarray, groups: np.ndarray, shares: Sequence[int], seed: int
) -> list[np.ndarray]:
  """Splits examples into parts of given shares, each class likewise; groups stay whole.

  Groups are dealt as in `fold_indices`, from the largest to the smallest. Each goes to the part
  that is furthest below its share of the group's classes, then of all. A class with few groups
  fills the part with the largest share first.

  Args:
    labels: [n] integer class of each example.
    groups: [n] str group of each example; the ids, where each example is its own.
    shares: positive integers, one per part, such as (70, 15, 15).
    seed: which of the possible splits.

  Returns:
    Sorted int64 indices, one array per part; every example is in one of them.

  Raises:
    ValueError: labels and groups are not vectors of one length, or a share is not positive.
  """
  labels, groups = _vectors("share_indices", labels, groups)
  if not shares or min(shares) <= 0:
    raise ValueError(f"share_indices: shares={tuple(shares)} must be positive integers.")
  classes, class_of = np.unique(labels, return_inverse=True)
  names, members = _members(groups)
  counts = [collections.Counter(class_of[rows].tolist()) for rows in members]
  order = sorted(
    range(len(names)),
    key=lambda g: (-len(members[g]), min(counts[g].items(), key=_most)[0], _digest(seed, names[g])),
  )
  totals, whole = np.bincount(class_of, minlength=len(classes)).tolist(), sum(shares)
  left = [[share * total for total in totals] for share in shares]  # In units of 1 / whole.
  left_of_all = [share * len(labels) for share in shares]
  parts: list[list[int]] = [[] for _ in shares]
  for group in order:
    wanted = [sum(n * row[c] for c, n in counts[group].items()) for row in left]
    part = max(range(len(shares)), key=lambda p: (wanted[p], left_of_all[p], -p))
    parts[part].extend(members[group].tolist())
    left_of_all[part] -= whole * len(members[group])
    for c, n in counts[group].items():
      left[part][c] -= whole * n
  return [np.sort(np.array(part, np.int64)) for part in parts]


def nested_subsets(
  labels: np.ndarray, sizes: Sequence[int], seed: int, groups: np.ndarray | None = None
) -> list[np.ndarray]:
  """Returns subsets of given sizes, each with all examples of the smaller ones.

  The examples of each class are ordered by sha256("seed/index") and spread evenly over one order
  of all; a subset is a beginning of it, so that it has every class in proportion.

  Args:
    labels: [n] integer class of each example.
    sizes: numbers of examples, increasing, from 1 to n.
    seed: which of the possible orders.
    groups: [n] str group of each example. With groups, whole ones are taken, by
      sha256("seed/group"), up to the first that would exceed the size: a subset may then be
      smaller than asked for.

  Returns:
    Sorted int64 indices, one array per size.

  Raises:
    ValueError: sizes that are out of range or do not increase, vectors of different lengths, or a
      size too small for the first group.
  """
  if groups is None:
    groups = np.array([str(i) for i in range(len(labels))])
  labels, groups = _vectors("nested_subsets", labels, groups)
  sizes = [int(size) for size in sizes]
  if not sizes or sizes[0] < 1 or sizes[-1] > len(labels) or sorted(set(sizes)) != sizes:
    raise ValueError(
      f"nested_subsets: sizes={sizes} must increase, from at least 1 to at most {len(labels)}."
    )
  members = _spread(labels, groups, seed)
  ends = np.cumsum([len(rows) for rows in members])
  subsets = []
  for size in sizes:
    number = int(np.searchsorted(ends, size, side="right"))
    if number == 0:
      raise ValueError(
        f"nested_subsets: size {size} is below that of the first group, {ends[0]}; ask for more."
      )
    subsets.append(np.sort(np.concatenate(members[:number])))
  return subsets


def _spread(labels: np.ndarray, groups: np.ndarray, seed: int) -> list[np.ndarray]:
  """Returns the indices of each group, the groups of every class spread evenly over the order."""
  names, members = _members(groups)
  of_class = collections.defaultdict(list)
  for group, rows in enumerate(members):
    counts = collections.Counter(labels[rows].tolist())
    of_class[min(counts.items(), key=_most)[0]].append(group)
  order = []
  for own in of_class.values():
    total, before = sum(len(members[g]) for g in own), 0
    for group in sorted(own, key=lambda g: _digest(seed, names[g])):
      size = len(members[group])
      middle = ((2 * before + size) << 64) // (2 * total)  # In (0, 2**64): its place in the class.
      order.append((middle, _digest(seed, names[group]), group))
      before += size
  return [members[group] for _, _, group in sorted(order)]


@dataclasses.dataclass(frozen=True)
class ClassSplit:
  """Classes that fine-tuning sees and classes that it does not; sorted int64 vectors.

  Attributes:
    seen: classes to fine-tune on.
    absent: classes that are left out, for the test.
    validation_absent: further classes that are left out, for choices.
  """

  seen: np.ndarray
  absent: np.ndarray
  validation_absent: np.ndarray


def class_split(
  num_classes: int,
  num_seen: int,
  seed: int,
  class_groups: Sequence[str] | np.ndarray | None = None,
  how: str = "random",
  num_validation_absent: int = 0,
) -> ClassSplit:
  """Divides classes into those to fine-tune on and those that stay absent.

  Args:
    num_classes: how many classes there are.
    num_seen: how many of them to fine-tune on; at least one must be left for the test.
    seed: which of the possible divisions.
    class_groups: [num_classes] super-class of each class, for how="group".
    how: "random" goes by sha256("seed/class"); "group" takes whole super-classes by
      sha256("seed/group"), the earliest that add up to the number exactly.
    num_validation_absent: how many of the absent classes to keep apart for choices.

  Raises:
    ValueError: numbers out of range, an unknown `how`, class_groups that are missing, unused or of
      another length, or super-classes that do not add up; the message has the nearest sums.
  """
  choices.check("how", how, ("random", "group"))
  left = num_classes - num_seen - num_validation_absent
  if num_seen < 1 or num_validation_absent < 0 or left < 1:
    raise ValueError(
      f"class_split: num_seen={num_seen} and num_validation_absent={num_validation_absent} leave "
      f"{left} of {num_classes} classes; each must be at least 1, 0 and 1."
    )
  if (how == "group") != (class_groups is not None):
    raise ValueError(
      f'class_split: how={how!r}; class_groups go with how="group", and with it only.'
    )
  if class_groups is None:
    class_groups = [str(c) for c in range(num_classes)]
  if len(class_groups) != num_classes:
    raise ValueError(
      f"class_split: class_groups has {len(class_groups)} values; expected {num_classes}."
    )
  names, members = _members(np.asarray(class_groups).astype(str))
  order = sorted(range(len(names)), key=lambda g: _digest(seed, names[g]))
  seen, order = _take(order, members, num_seen, "num_seen")
  validation, order = _take(order, members, num_validation_absent, "num_validation_absent")

  def classes(chosen):
    return np.sort(np.concatenate([np.zeros(0, np.int64), *(members[g] for g in chosen)]))

  return ClassSplit(classes(seen), classes(order), classes(validation))


def _take(
  order: list[int], members: list[np.ndarray], number: int, what: str
) -> tuple[list[int], list[int]]:
  """Returns (taken, rest): the earliest groups of `order` with `number` members in all."""
  sums = [1]  # Bit s of sums[-1 - i]: groups from the i-th on can add up to s.
  for group in reversed(order):
    sums.append(sums[-1] | sums[-1] << len(members[group]))
  possible = [s for s in range(sums[-1].bit_length()) if sums[-1] >> s & 1]
  if number not in possible:
    near = sorted(sorted(possible, key=lambda s: abs(s - number))[:2])
    raise ValueError(
      f"class_split: {what}={number} is not a sum of whole super-classes; nearest: {near}."
    )
  taken, rest = list[int](), list[int]()
  for position, group in enumerate(order):
    after, size = sums[len(order) - 1 - position], len(members[group])
    fits = size <= number and after >> (number - size) & 1
    (taken if fits else rest).append(group)
    number -= size if fits else 0
  return taken, rest


def _members(groups: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
  """Returns the sorted names of the groups and the sorted indices of each."""
  names, group_of = np.unique(groups, return_inverse=True)
  order = np.argsort(group_of, kind="stable")
  ends = np.cumsum(np.bincount(group_of, minlength=len(names)))[:-1]
  return names.tolist(), np.split(order, ends)


def _most(item: tuple[int, int]) -> tuple[int, int]:
  """Sorts (class, count) by count, the largest first, then by class."""
  return -item[1], item[0]


def _digest(seed: int, name: str) -> bytes:
  return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()


def _vectors(what: str, labels: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  labels, groups = np.asarray(labels), np.asarray(groups)
  if labels.ndim != 1 or labels.shape != groups.shape:
    raise ValueError(
      f"{what}: labels and groups must be vectors of one length, got the shapes "
      f"{labels.shape} and {groups.shape}."
    )
  return labels, groups
