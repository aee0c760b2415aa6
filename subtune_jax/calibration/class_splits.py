"""Classes with fine-tuning data, pseudo-absent ones and absent ones, as masks over all classes.

`data.splits.class_split` draws which classes are absent, at random or by whole super-classes; here
the division is checked, and seen classes are divided again for pseudo cross-validation.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from subtune_jax.calibration import checks, gamma


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
  """Y = S + pseudo-absent + U: every class is in exactly one of the three.

  Attributes:
    seen: [C] bool: fine-tuned on.
    pseudo_absent: [C] bool: have data, which this fine-tuning leaves out so that gamma can be
      chosen on them (PCV). All False outside pseudo cross-validation.
    absent: [C] bool: U, without data until the test.

  Raises:
    ValueError: masks of other lengths or types, a class in none or two of them, or no seen class.
  """

  seen: np.ndarray
  pseudo_absent: np.ndarray
  absent: np.ndarray

  def __post_init__(self):
    num_classes = np.size(self.seen)
    total = np.zeros(num_classes, int)
    for name in ("seen", "pseudo_absent", "absent"):
      total += np.asarray(checks.mask(getattr(self, name), num_classes, name, proper=False))
    if (total != 1).any():
      wrong = np.flatnonzero(total != 1)
      raise ValueError(
        f"class {int(wrong[0])} is in {int(total[wrong[0]])} of seen, pseudo_absent and absent "
        f"({wrong.size} such classes): put each class in one"
      )
    if not self.seen.any():
      raise ValueError("no class is seen: fine-tuning needs at least one")

  @property
  def num_classes(self) -> int:
    """C."""
    return len(self.seen)

  @property
  def left_out(self) -> np.ndarray:
    """[C] bool: every class that is not fine-tuned on."""
    return ~self.seen


def from_indices(num_classes: int, seen: Sequence[int] | np.ndarray) -> Partition:
  """The classes at `seen` are fine-tuned on; all others are absent.

  Raises:
    ValueError: an index out of range or given twice, no index, or all classes.

  >>> from_indices(4, [2, 0]).absent
  array([False,  True, False,  True])
  """
  seen = np.asarray(seen)
  if seen.ndim != 1 or not seen.size or seen.dtype.kind not in "iu":
    raise ValueError(f"seen is {seen.tolist()}: give at least one class, as integers")
  if seen.min() < 0 or seen.max() >= num_classes or np.unique(seen).size != seen.size:
    raise ValueError(f"seen is {seen.tolist()}: give each class once, from 0 to {num_classes - 1}")
  mask = np.isin(np.arange(num_classes), seen)
  checks.mask(~mask, num_classes)
  return Partition(mask, np.zeros(num_classes, bool), ~mask)


def from_names(class_names: Sequence[str], seen: Sequence[str]) -> Partition:
  """As `from_indices`, by name.

  Raises:
    ValueError: a name that no class has, and as of `from_indices`.
  """
  unknown = [name for name in seen if name not in class_names]
  if unknown:
    raise ValueError(f"no class is called {unknown[0]!r}; classes: {', '.join(class_names)}")
  return from_indices(len(class_names), [list(class_names).index(name) for name in seen])


def pseudo_partitions(
  partition: Partition,
  num_splits: int = 3,
  seed: int = 0,
  class_groups: Sequence[str] | None = None,
) -> list[Partition]:
  """The three-way partitions of pseudo cross-validation: absent classes stay absent in each.

  Args:
    partition: seen and absent classes.
    num_splits: K.
    seed: of the draw; nothing but it and `partition` decides.
    class_groups: [C] super-class of each class: whole super-classes are left out, in random order,
      while that takes no more than half of the seen classes. None: half of them, at random.

  Returns:
    K partitions, each of whose pseudo-absent classes are seen ones of `partition`.

  Raises:
    ValueError: fewer than two seen classes, no split, class groups of another length, or seen
      classes that are all of one group.
  """
  if class_groups is None:
    masks = gamma.pseudo_splits(partition.left_out, num_splits, seed)
  else:
    masks = _whole_groups(partition, num_splits, seed, class_groups)
  return [Partition(partition.seen & ~mask, mask, partition.left_out.copy()) for mask in masks]


def _whole_groups(
  partition: Partition, num_splits: int, seed: int, class_groups: Sequence[str]
) -> np.ndarray:
  """[K, C] bool: the pseudo-absent classes of each split."""
  groups = np.asarray(class_groups).astype(str)
  if groups.shape != partition.seen.shape:
    raise ValueError(f"class_groups has the shape {groups.shape}: give one of each of "
                     f"{partition.num_classes} classes")  # fmt: skip
  names, counts = np.unique(groups[partition.seen], return_counts=True)
  half = int(partition.seen.sum()) // 2
  if len(names) < 2 or num_splits < 1 or counts.min() > half:
    raise ValueError(
      f"{num_splits} splits of the seen super-classes {names.tolist()} of {counts.tolist()} "
      "classes: PCV needs at least one split, and two super-classes of which one is no more than "
      "half of the classes"
    )
  generator = np.random.default_rng(seed)
  masks = np.zeros((num_splits, partition.num_classes), bool)
  for row in masks:
    for name in generator.permutation(names):
      own = partition.seen & (groups == name)
      if row.sum() + own.sum() <= half:
        row |= own
  return masks


def rows_of(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
  """Sorted positions of the examples whose class is in the mask `classes` [C]; labels [n]."""
  return np.flatnonzero(np.asarray(classes)[np.asarray(labels)])
