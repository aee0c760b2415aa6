"""Intervals for accuracies and their differences: a bootstrap over concepts and seeds.

Two drawings of one concept are not two independent test examples, so whole concepts are resampled.
All methods are scored on the same images, so they share each draw: what makes an image hard cancels
in the difference of two methods.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from subtune_jax.statistics import folds


class Bootstrap(NamedTuple):
  """Result of `paired_bootstrap`.

  Attributes:
    means: method -> mean of the data as they are, not of the resamples.
    intervals: method -> (low, high) of the mean.
    differences: method -> (mean, low, high) of this method minus the reference, for every method
      but the reference; empty without one.
  """

  means: dict[str, float]
  intervals: dict[str, tuple[float, float]]
  differences: dict[str, tuple[float, float, float]]


def paired_bootstrap(
  correct: Mapping[str, npt.ArrayLike],
  groups: npt.ArrayLike,
  *,
  reference: str | None = None,
  level: float = 0.95,
  num_resamples: int = 2000,
  seed: int = 0,
) -> Bootstrap:
  """Resamples concepts and seeds with replacement, the same draw for every method.

  The accuracy of a resample is the sum of right answers over the number of examples drawn. Methods
  with the same number of trainings share the draw of seeds as well: row i of each is the training
  with seed i, which has the same order of the data. A method with one training (the L-BFGS probe
  is deterministic) always draws that one. With few seeds the interval says little about the
  training noise: from one training, nothing.

  Args:
    correct: method -> [num_seeds, num_examples], bool or a number (a weight where the answer is
      right, a loss, ...), with the same examples in the same order for every method.
    groups: [num_examples] the concept of each example, which is drawn whole.
    reference: method that the others are compared with.
    level: probability that an interval is to cover; its ends are the percentiles of the resamples
      at (1 - level) / 2 from either end.
    num_resamples: number of resamples.
    seed: of the draws: calls with one seed and the same shapes share them.

  Returns:
    A `Bootstrap`.

  Raises:
    ValueError: shapes do not fit, a score is not finite, there are fewer than two groups, or an
      option is not allowed.
  """
  _check_options(correct, reference, level, num_resamples)
  resampled = resamples(correct, groups, num_resamples=num_resamples, seed=seed)
  means = {name: float(np.mean(np.asarray(x, np.float64))) for name, x in correct.items()}
  differences = {
    name: (means[name] - means[reference], *ends(resampled[name] - resampled[reference], level))
    for name in correct
    if reference is not None and name != reference
  }
  return Bootstrap(means, {name: ends(x, level) for name, x in resampled.items()}, differences)


def resamples(
  correct: Mapping[str, npt.ArrayLike],
  groups: npt.ArrayLike,
  *,
  num_resamples: int = 2000,
  seed: int = 0,
) -> dict[str, np.ndarray]:
  """What `paired_bootstrap` takes its intervals from, for other functions of the means.

  Returns:
    Method -> [num_resamples] mean of each resample; arguments and errors as there.
  """
  groups = np.asarray(groups)
  scores = {name: _checked_scores(name, x, groups) for name, x in correct.items()}
  _, group_index = np.unique(groups, return_inverse=True)
  sizes = np.bincount(group_index)
  if len(sizes) < 2:
    raise ValueError(
      f"all {groups.size} examples are of one group, {groups[0]!r}: an interval needs two or more;"
      " pass one label per concept"
    )
  sums = {name: _group_sums(x, group_index, len(sizes)) for name, x in scores.items()}
  rng = np.random.default_rng(seed)
  group_counts = draw_counts(rng, num_resamples, len(sizes))
  drawn_examples = group_counts @ sizes
  seed_counts = {
    k: draw_counts(rng, num_resamples, k) for k in sorted({len(x) for x in sums.values()})
  }
  return {
    name: np.sum((group_counts @ x.T) * seed_counts[len(x)], axis=1) / (drawn_examples * len(x))
    for name, x in sums.items()
  }


def of_accuracy(right: npt.ArrayLike, groups: npt.ArrayLike) -> tuple[float, float]:
  """The 95 % interval of one training's accuracy, by `paired_bootstrap`.

  Args:
    right: [num_examples] bool.
    groups: [num_examples].
  """
  return paired_bootstrap({"own": np.asarray(right)[None]}, groups).intervals["own"]


def draw_counts(rng: np.random.Generator, num_resamples: int, num_items: int) -> np.ndarray:
  """Draws `num_items` of `num_items` with replacement, `num_resamples` times.

  Returns:
    [num_resamples, num_items] float64: how often each item was drawn.
  """
  weights = np.full(num_items, 1 / num_items)
  return rng.multinomial(num_items, weights, size=num_resamples).astype(np.float64)


def fold_difference(
  first: npt.ArrayLike, second: npt.ArrayLike
) -> tuple[float, float, float] | None:
  """The difference of two accuracies by cross-validation, with its 95 % interval.

  Both are scored on the same folds, so the interval is that of the mean of paired differences, with
  the variance of Nadeau and Bengio (2003): the folds' training sets overlap, so the k differences
  are not independent, and 1 / k becomes 1 / k + 1 / (k - 1).

  Args:
    first: [num_folds] accuracies, NaN for a fold that was not trained.
    second: [num_folds] likewise; the difference is the first minus the second.

  Returns:
    (mean, low, high) over the folds that both have, or None where those are fewer than two.
  """
  differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
  num_folds = len(differences)
  differences = differences[np.isfinite(differences)]
  count = len(differences)
  if count < 2:
    return None
  mean = float(differences.mean())
  half = folds.t_half(0.95, count - 1) * folds.standard_error(differences, 1 / (num_folds - 1))
  return mean, float(mean - half), float(mean + half)


def _group_sums(scores: np.ndarray, group_index: np.ndarray, num_groups: int) -> np.ndarray:
  """Returns [num_seeds, num_groups] sums of the scores [num_seeds, num_examples]."""
  return np.stack([np.bincount(group_index, row, num_groups) for row in scores])


def ends(resampled: np.ndarray, level: float = 0.95) -> tuple[float, float]:
  """The two-sided percentile interval of the resamples [num_resamples]."""
  low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def _checked_scores(name: str, scores: npt.ArrayLike, groups: np.ndarray) -> np.ndarray:
  """Returns the scores as float64 [num_seeds, num_examples], or raises."""
  scores = np.asarray(scores, np.float64)
  if groups.ndim != 1 or scores.ndim != 2 or scores.shape[1] != len(groups) or not scores.size:
    raise ValueError(
      f"correct[{name!r}] has shape {scores.shape} and groups {groups.shape}: they must be"
      " [num_seeds, num_examples] and [num_examples], with at least one of each"
    )
  _check_finite(f"correct[{name!r}]", scores)
  return scores


def _check_finite(name: str, values: np.ndarray) -> None:
  if not np.isfinite(values).all():
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
    raise ValueError(
      f"{name} holds {values[index]} at {index}: leave out trainings that failed, in every method"
    )


def _check_options(
  scores: Mapping[str, npt.ArrayLike], reference: str | None, level: float, num_resamples: int
) -> None:
  if not scores:
    raise ValueError("correct is empty: pass at least one method")
  if reference is not None and reference not in scores:
    raise ValueError(f"reference {reference!r} is not a method: use one of {sorted(scores)}")
  if not 0 < level < 1:
    raise ValueError(f"level is {level}: it must be in (0, 1), 0.95 for 95 %")
  if num_resamples < 2:
    raise ValueError(f"num_resamples is {num_resamples}: use at least 2, better 2000")
