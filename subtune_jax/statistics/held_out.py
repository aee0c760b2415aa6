"""Answers of linear least squares for examples that it was not fitted on, by cross-validation."""

from collections.abc import Sequence

import numpy as np
import scipy.linalg

STRENGTHS = tuple(10.0 ** np.arange(-5, 2))  # times the mean eigenvalue of a fold's Gram matrix


def ridge_scores(
  features: np.ndarray,
  labels: np.ndarray,
  num_classes: int,
  folds: Sequence[tuple[np.ndarray, np.ndarray]],
  strengths: Sequence[float] = STRENGTHS,
) -> tuple[np.ndarray, float]:
  """Ridge regression on one-hot labels with a free intercept, each fold by the rest.

  scikit-learn's `Ridge(alpha)` with alpha = strength * trace(X^T X) / min(n, d) of the centred
  features X [n, d] of the rest: one Cholesky factor of the smaller Gram matrix for each strength.

  Args:
    features: [n, d].
    labels: [n] integers in [0, num_classes).
    num_classes: columns of the scores.
    folds: pairs (rest, held_out) of indices; every example is held out once.
    strengths: positive; the one of least squared error over all held-out examples is taken.

  Returns:
    ([n, num_classes] held-out scores, the strength).
  """
  features, targets = np.asarray(features, np.float64), np.eye(num_classes)[labels]
  scores = np.empty((len(strengths), *targets.shape))
  for rest, held in folds:
    center, mean = features[rest].mean(0), targets[rest].mean(0)
    x, y, z = features[rest] - center, targets[rest] - mean, features[held] - center
    wide = len(rest) < x.shape[1]
    gram, left, right = (x @ x.T, z @ x.T, y) if wide else (x.T @ x, z, x.T @ y)
    for index, strength in enumerate(strengths):
      alpha = strength * np.trace(gram) / len(gram)
      factor = scipy.linalg.cho_factor(gram + alpha * np.eye(len(gram)), overwrite_a=True)
      scores[index, held] = left @ scipy.linalg.cho_solve(factor, right) + mean
  best = int(((scores - targets) ** 2).sum((1, 2)).argmin())
  return scores[best], float(strengths[best])
