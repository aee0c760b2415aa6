"""How many more test images, or seeds, would decide a comparison that is undecided."""

from collections.abc import Sequence
import dataclasses
import math
from statistics import NormalDist

import numpy as np


@dataclasses.dataclass(frozen=True)
class Power:
  """What it takes to see a difference.

  Attributes:
    difference: of the means that were observed.
    error: its standard error, over test images (groups whole) and seeds.
    images: test images with which an interval of level `level` would exclude 0 with probability
      `power`, if the difference is what was observed and groups stay as they are; None: no number
      of images does, for the seeds differ too much.
    smallest: the least difference that would be seen with that power with the images there are.
  """

  difference: float
  error: float
  images: int | None
  smallest: float


def paired(
  first: np.ndarray,
  second: np.ndarray,
  groups: Sequence[str] | np.ndarray,
  *,
  power: float = 0.8,
  level: float = 0.95,
) -> Power:
  """Power of a comparison of two methods on the same images.

  The variance of the difference is s^2 / g + t^2 / k: s^2 between groups of images (differences
  averaged over seeds), t^2 between seeds beyond what the images explain, g groups and k seeds. More
  images make the first part smaller.

  Args:
    first: [seeds, n] scores whose means are compared; one row for a training without a seed.
    second: likewise, on the same images.
    groups: [n]; images of one group are not independent.
    power: probability of a decision.
    level: of the interval.

  Raises:
    ValueError: shapes that do not fit, or fewer than two groups.
  """
  first, second = (np.asarray(own, np.float64) for own in (first, second))
  if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
    raise ValueError(f"scores are {first.shape} and {second.shape}; give [seeds, n] of both")
  gain = first - second
  _, place = np.unique(np.asarray(groups), return_inverse=True)
  sizes = np.bincount(place)
  if len(place) != gain.shape[1] or len(sizes) < 2:
    raise ValueError(f"{len(place)} groups, {len(sizes)} of them different, of {gain.shape[1]}")
  n, mean = gain.shape[1], float(gain.mean())
  by_seed = np.stack([np.bincount(place, row - mean, len(sizes)) for row in gain])
  whole = by_seed.mean(0)
  images = float(len(sizes) / (len(sizes) - 1) * (whole**2).sum() / n**2)
  seeds = _between_seeds(by_seed, n)
  normal = NormalDist()
  reach = normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)
  room = (mean / reach) ** 2 - seeds
  needed = None if room <= 1e-16 else math.ceil(n * images / room)  # no difference but rounding
  error = math.sqrt(images + seeds)
  return Power(mean, error, needed, reach * error)


def _between_seeds(by_seed: np.ndarray, n: int) -> float:
  """The variance of the mean that is due to the seeds alone; 0 for one seed."""
  number = len(by_seed)
  if number < 2:
    return 0.0
  means = by_seed.sum(1) / n
  rest = by_seed - by_seed.mean(0)  # what the images do not share among seeds
  noise = float((rest**2).sum() / (number - 1) / n**2)
  return max(0.0, float(means.var(ddof=1)) - noise) / number
