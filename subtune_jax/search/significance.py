"""Is a gain more than luck? A paired test over folds, and intervals of scores.

Folds of a cross-validation share most of their training images, so J scores are worth less than J
independent ones: what is peculiar to those images does not average out. Nadeau and Bengio
("Inference for the Generalization Error", Machine Learning 52, 2003) correct the variance of a mean
over J folds from s^2 / J to

  s^2 (1 / J + overlap),   overlap = held-out images / training images = 1 / (k - 1) for k folds,

and refer mean / standard error to Student's t with J - 1 degrees of freedom. They took it from
random splits; for folds it is a rule that leans to the safe side. Cells that share no training
image, such as those of distinct data sets, have an overlap of 0.

Both scores saw the same folds, so the test is on the differences: what makes a fold hard cancels.
The best of m candidates gains by luck alone: its p-value is that of the smallest of m independent
ones, 1 - (1 - p)^m (Sidak).
"""

import math
from typing import NamedTuple

import numpy as np

from subtune_jax.search import scores
from subtune_jax.statistics import folds as folds_lib

TIE = 1e-9  # accuracies closer than this are equal: means of folds are rounded


class Gain(NamedTuple):
  """Result of `paired_gain`.

  Attributes:
    mean: of the differences over the folds, in accuracy.
    standard_error: of that mean, with the overlap of the training sets.
    p_value: one-sided: how often luck alone would gain as much.
  """

  mean: float
  standard_error: float
  p_value: float


def paired_gain(
  new: scores.Score, old: scores.Score, *, overlap: float, comparisons: int = 1
) -> Gain:
  """Tests whether `new` is better than `old`, over the folds that both were trained on.

  Where the differences are equal on all folds, luck has no part: p is 0 for a gain, else 1.

  Args:
    new: the score that may be better.
    old: the score it is compared with, on the same folds.
    overlap: of training sets, see above.
    comparisons: the number of candidates that `new` was picked from.

  Raises:
    ValueError: other folds, fewer than two in common, or an option is not allowed.
  """
  check_overlap(overlap)
  if comparisons < 1:
    raise ValueError(f"comparisons is {comparisons}; give the number of candidates, at least 1")
  if len(new.cells) != len(old.cells):
    raise ValueError(
      f"scores of {len(new.cells)} and {len(old.cells)} folds cannot be paired; score both sets on"
      " the same folds"
    )
  differences = new.by_fold - old.by_fold
  differences = differences[np.isfinite(differences)]
  if len(differences) < 2:
    raise ValueError(
      f"{len(differences)} folds in common: a paired test needs two or more; use more folds, or the"
      " rule 'gain', which has no test"
    )
  mean, error = _mean_and_error(differences, overlap)
  if error == 0:
    return Gain(mean, 0.0, 0.0 if mean > TIE else 1.0)
  p_value = folds_lib.t_tail(-mean / error, len(differences) - 1)
  return Gain(mean, error, _best_of(p_value, comparisons))


def interval(
  score: scores.Score, overlap: float, level: float = 0.95, images: bool = False
) -> tuple[float, float]:
  """Returns (low, high), a t-interval for the accuracy of a set of units.

  The spread over folds carries all noise, but two to five folds may agree by luck.

  Args:
    score: at least two folds, or one that holds answers to images and `images`.
    overlap: of training sets, see above.
    level: probability that the interval is to cover.
    images: makes it no narrower than the drawing of the held-out images allows: answers within a
      fold are counted as independent. Of one fold this is all that is known; it leaves out the
      noise of training.

  Raises:
    ValueError: too few folds or images, or an option is not allowed.
  """
  check_overlap(overlap)
  check_level(level)
  folds = score.by_fold[np.isfinite(score.by_fold)]
  cells = [cell for cell in score.cells if cell is not None]
  halves = []
  if len(folds) > 1:
    _, error = _mean_and_error(folds, overlap)
    halves.append(error * folds_lib.t_half(level, len(folds) - 1))
  if images and cells and min(map(len, cells)) > 1:
    variance = np.mean([np.var(cell, ddof=1) / len(cell) for cell in cells])
    error = math.sqrt(variance * (1 / len(cells) + overlap))
    halves.append(error * folds_lib.t_half(level, sum(map(len, cells)) - len(cells)))
  if not halves:
    raise ValueError(
      f"{len(folds)} folds, images={images}: an interval needs two folds, or answers to two images"
      " of one fold with images=True"
    )
  return max(score.mean - max(halves), 0.0), min(score.mean + max(halves), 1.0)


def check_overlap(overlap: float) -> None:
  """Raises ValueError where `overlap` is not the quotient of two numbers of images."""
  if not 0 <= overlap < math.inf:
    raise ValueError(
      f"overlap is {overlap}; it is held-out images / training images: 1 / (k - 1) for k folds, 0"
      " for cells that share no training image"
    )


def check_level(level: float) -> None:
  """Raises ValueError where `level` is not a probability between 0 and 1."""
  if not 0 < level < 1:
    raise ValueError(f"level is {level}; it must be in (0, 1), 0.95 for 95 %")


def _mean_and_error(values: np.ndarray, overlap: float) -> tuple[float, float]:
  """The mean of the folds and its standard error, 0 where they differ by rounding alone."""
  mean = float(values.mean())
  return mean, 0.0 if np.ptp(values) <= TIE else folds_lib.standard_error(values, overlap)


def _best_of(p_value: float, comparisons: int) -> float:
  """Sidak: the probability that the smallest of independent p-values is as small as this one."""
  if p_value >= 1:
    return 1.0
  return -math.expm1(comparisons * math.log1p(-p_value))
