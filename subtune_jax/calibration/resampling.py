"""Intervals of accuracies and AUSUC: a bootstrap over test examples, or over whole groups of them.

`judge` reads the logits once; a `Judged` then gives the numbers of any resample from counts of how
often each example was drawn. Models judged on the same examples with the same counts are paired:
the difference of two resamples is a resample of their difference.
"""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from subtune_jax.calibration import arrays, checks
from subtune_jax.calibration import curve as curve_lib
from subtune_jax.calibration import gamma as gamma_lib
from subtune_jax.statistics import intervals as intervals_lib

AUSUC = "AUSUC"
NAMES = ("Y/Y", "S/Y", "U/Y", AUSUC)
_BYTES = 2**26  # of one block of counts


class Interval(NamedTuple):
  """A number of the data as they are, and the percentiles of its resamples."""

  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Judged:
  """What resampling needs of one model's logits on N examples.

  Attributes:
    right: [K, N] whether the answer among all classes is right, for each of K gammas.
    labels: [N].
    unseen: [N] whether the label is of an absent class.
    order: examples right in their own group, by margin.
    ends: [M] position in `order` behind the last example of each run of equal margins.
  """

  right: np.ndarray
  labels: np.ndarray
  unseen: np.ndarray
  order: np.ndarray
  ends: np.ndarray

  def resampled(self, counts: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers of test sets in which example i is counts[:, i] times.

    Args:
      counts: [B, N], not negative.

    Returns:
      "Y/Y", "S/Y" and "U/Y" [K, B] and "AUSUC" [B], over examples; nan where a resample has no
      example of the group.
    """
    counts = np.asarray(counts, np.float64)
    found = {}
    for name, group in self._groups(self.unseen).items():
      drawn = counts[:, group]
      with np.errstate(invalid="ignore"):
        found[name] = (self.right[:, group].astype(np.float64) @ drawn.T) / drawn.sum(1)
    return {**found, AUSUC: self._area(counts)}

  def resampled_by_class(self, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Likewise the accuracies as means over the classes that a resample has, [K, B] each."""
    rows = np.argsort(self.labels, kind="stable")
    starts = np.flatnonzero(np.diff(self.labels[rows], prepend=-1))
    drawn = np.asarray(counts, np.float64)[:, rows]
    totals = np.add.reduceat(drawn, starts, axis=1)  # [B, classes with examples]
    known = totals > 0
    rates = np.stack([np.add.reduceat(drawn * r, starts, axis=1) for r in self.right[:, rows]])
    rates /= np.where(known, totals, 1)
    groups = self._groups(self.unseen[rows[starts]])
    with np.errstate(invalid="ignore"):
      return {n: rates[..., g].sum(-1) / known[:, g].sum(-1) for n, g in groups.items()}

  def _groups(self, unseen: np.ndarray) -> dict[str, np.ndarray]:
    return {"Y/Y": np.ones_like(unseen), "S/Y": ~unseen, "U/Y": unseen}

  def _area(self, counts: np.ndarray) -> np.ndarray:
    """Pairs of a seen and an absent example, each right in its group, margin of the seen above."""
    unseen = self.unseen[self.order]
    drawn = counts[:, self.order]
    below = np.cumsum(drawn * unseen, axis=1)[:, self.ends - 1]  # absent ones, up to each run
    of_run = np.diff(below, axis=1, prepend=0)
    seen = np.cumsum(drawn * ~unseen, axis=1)[:, self.ends - 1]
    seen = np.diff(seen, axis=1, prepend=0)
    pairs = np.sum(seen * (below - of_run / 2), axis=1)  # equal margins count one half
    totals = counts[:, ~self.unseen].sum(1) * counts[:, self.unseen].sum(1)
    with np.errstate(invalid="ignore"):
      return pairs / totals


def judge(
  logits: Any, labels: Any, absent: Any, gammas: Sequence[arrays.Number] = (0.0,)
) -> Judged:
  """Reads logits [N, C] once for any number of resamples.

  Args:
    logits: [N, C], of test data.
    labels: [N].
    absent: [C], boolean.
    gammas: what to calibrate by, each for itself.

  Raises:
    ValueError: as of `seen_unseen_curve`.
  """
  logits = np.asarray(checks.logits(logits))
  labels = np.asarray(checks.labels(labels, *logits.shape))
  absent = np.asarray(checks.mask(absent, logits.shape[1]))
  checks.occur(labels, absent, "an absent class")
  checks.occur(labels, ~absent, "a seen class")
  margin, right, unseen = map(np.asarray, curve_lib.right_in_own_group(logits, labels, absent))
  order = np.flatnonzero(right)
  order = order[np.argsort(margin[order], kind="stable")]
  rising = margin[order]
  ends = np.flatnonzero(np.append(rising[1:] != rising[:-1], len(rising) > 0)) + 1
  answers = [gamma_lib.calibrate(logits, absent, gamma).argmax(-1) for gamma in gammas]
  return Judged(np.stack(answers) == labels, labels, unseen, order, ends)


def draws(
  groups: np.ndarray, num_resamples: int = 2000, seed: int = 0
) -> Iterator[tuple[slice, np.ndarray]]:
  """Draws whole groups with replacement, as many as there are; the same for the same arguments.

  Args:
    groups: [N] the group of each example: equal labels are drawn together. `np.arange(N)` draws
      single examples.
    num_resamples: B.
    seed: of the draws.

  Yields:
    (resamples, counts): a slice of 0..B-1 and [its length, N] how often each example was drawn.
  """
  _, index = np.unique(np.asarray(groups), return_inverse=True)
  number = int(index.max()) + 1
  if number < 2:
    raise ValueError("all examples are of one group: an interval needs two or more")
  rng = np.random.default_rng(seed)
  step = max(1, _BYTES // (8 * len(index)))
  for start in range(0, num_resamples, step):
    block = slice(start, min(start + step, num_resamples))
    yield block, intervals_lib.draw_counts(rng, block.stop - start, number)[:, index]


def bootstrap(
  logits: Any,
  labels: Any,
  absent: Any,
  gamma: float = 0.0,
  *,
  groups: Any = None,
  level: float = 0.95,
  num_resamples: int = 2000,
  seed: int = 0,
) -> dict[str, Interval]:
  """Acc_Y/Y, S/Y, U/Y under one gamma and AUSUC, with intervals that carry the test set's size.

  The intervals are percentiles of a bootstrap. gamma is held, also where it was read off the same
  data; how far another training would be from this one is not in them.

  Args:
    logits: [N, C], of test data.
    labels: [N].
    absent: [C], boolean.
    gamma: in logits.
    groups: [N], drawn whole, for examples that are not independent (views of one object); by
      default every example is drawn by itself.
    level: probability that an interval is to cover.
    num_resamples: of the bootstrap.
    seed: of the draws.

  Returns:
    "Y/Y", "S/Y", "U/Y" and "AUSUC", each an `Interval`.

  Raises:
    ValueError: as of `seen_unseen_curve`; fewer than two groups; a level outside (0, 1).

  >>> z = np.tile([[2.0, 0.0], [1.0, 0.0], [0.5, 1.0], [3.0, 1.0]], (25, 1))
  >>> bootstrap(z, np.tile([0, 0, 1, 1], 25), np.array([False, True]))["U/Y"].value
  0.5
  """
  return intervals(
    judge(logits, labels, absent, (gamma,)),
    groups=groups, level=level, num_resamples=num_resamples, seed=seed,
  )[0]  # fmt: skip


def intervals(
  judged: Judged,
  *,
  groups: Any = None,
  level: float = 0.95,
  num_resamples: int = 2000,
  seed: int = 0,
) -> list[dict[str, Interval]]:
  """What `bootstrap` returns, for each gamma that was judged."""
  if not 0 < level < 1:
    raise ValueError(f"level is {level}: it must be in (0, 1), 0.95 for 95 %")
  if num_resamples < 2:
    raise ValueError(f"num_resamples is {num_resamples}: use at least 2, better 2000")
  number = len(judged.labels)
  groups = np.arange(number) if groups is None else np.asarray(groups)
  if groups.shape != (number,):
    raise ValueError(f"groups must have the shape ({number},) of the rows, got {groups.shape}")
  blocks = [judged.resampled(counts) for _, counts in draws(groups, num_resamples, seed)]
  whole = judged.resampled(np.ones((1, number)))
  resampled = {name: np.concatenate([b[name] for b in blocks], axis=-1) for name in NAMES}

  def interval(name: str, k: int) -> Interval:
    row = () if name == AUSUC else k  # gamma leaves the area as it is
    return Interval(float(whole[name][row].item()), *percentiles(resampled[name][row], level))

  return [{name: interval(name, k) for name in NAMES} for k in range(len(judged.right))]


def percentiles(resampled: np.ndarray, level: float = 0.95) -> tuple[float, float]:
  """The two-sided percentile interval of resamples [B]; those that are nan are left out."""
  low, high = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)
