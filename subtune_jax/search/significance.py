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
  p_value = student_t_cdf(-mean / error, len(differences) - 1)
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
    halves.append(error * student_t_quantile((1 + level) / 2, len(folds) - 1))
  if images and cells and min(map(len, cells)) > 1:
    variance = np.mean([np.var(cell, ddof=1) / len(cell) for cell in cells])
    error = math.sqrt(variance * (1 / len(cells) + overlap))
    halves.append(error * student_t_quantile((1 + level) / 2, sum(map(len, cells)) - len(cells)))
  if not halves:
    raise ValueError(
      f"{len(folds)} folds, images={images}: an interval needs two folds, or answers to two images"
      " of one fold with images=True"
    )
  return max(score.mean - max(halves), 0.0), min(score.mean + max(halves), 1.0)


def student_t_cdf(t: float, df: float) -> float:
  """Probability that Student's t with `df` degrees of freedom is at most `t`.

  Accurate to about 1e-12 of the smaller tail: I(df / (df + t^2); df / 2, 1 / 2) / 2, with the
  regularised incomplete beta function.
  """
  if math.isinf(t):
    return float(t > 0)
  tail = 0.5 * _incomplete_beta(df, t * t, df / 2, 0.5)
  return tail if t < 0 else 1 - tail


def student_t_quantile(probability: float, df: float) -> float:
  """The t at which `student_t_cdf` is `probability`, in (0, 1)."""
  if probability == 0.5:
    return 0.0
  tail = min(probability, 1 - probability)
  low, high = 0.0, 1.0
  while student_t_cdf(-high, df) > tail:
    low, high = high, 2 * high
  for _ in range(60):
    middle = (low + high) / 2
    low, high = (middle, high) if student_t_cdf(-middle, df) > tail else (low, middle)
  return math.copysign((low + high) / 2, probability - 0.5)


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
  mean, deviation = float(values.mean()), float(values.std(ddof=1))
  if np.ptp(values) <= TIE:
    return mean, 0.0
  return mean, deviation * math.sqrt(1 / len(values) + overlap)


def _best_of(p_value: float, comparisons: int) -> float:
  """Sidak: the probability that the smallest of independent p-values is as small as this one."""
  if p_value >= 1:
    return 1.0
  return -math.expm1(comparisons * math.log1p(-p_value))


def _incomplete_beta(odds: float, against: float, a: float, b: float) -> float:
  """Regularised incomplete beta function I(x; a, b) at x = odds / (odds + against).

  Both x and 1 - x come without cancellation this way.
  """
  x, rest = odds / (odds + against), against / (odds + against)
  if x == 0 or rest == 0:
    return float(rest == 0)
  log_x = math.log1p(-rest) if rest < 0.5 else math.log(x)
  front = math.exp(
    a * log_x + b * math.log(rest) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
  )
  if x < (a + 1) / (a + b + 2):
    return front / a * _continued_fraction(x, a, b)
  return 1 - front / b * _continued_fraction(rest, b, a)


def _continued_fraction(x: float, a: float, b: float) -> float:
  """The continued fraction of the incomplete beta function, by the method of Lentz.

  Abramowitz and Stegun, 26.5.8; it converges fast for x < (a + 1) / (a + b + 2).
  """
  tiny = 1e-300
  c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
  value = d
  for m in range(1, 10_000):
    for term in (
      m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
      -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
    ):
      d = 1 / (1 + term * d or tiny)
      c = 1 + term / c or tiny
      value *= c * d
    if abs(c * d - 1) < 1e-15:
      return value
  raise AssertionError(f"no convergence at x={x}, a={a}, b={b}")
