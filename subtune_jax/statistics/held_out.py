"""Answers of linear least squares for examples that it was not fitted on, by cross-validation."""

from collections.abc import Sequence

import numpy as np

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
  features X [n, d] of the rest. One eigendecomposition a fold serves all strengths.

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
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    left = (z @ x.T if wide else z) @ vectors
    right = vectors.T @ (y if wide else x.T @ y)
    for index, strength in enumerate(strengths):
      alpha = strength * values.mean()
      scores[index, held] = left @ (right / (np.maximum(values, 0) + alpha)[:, None]) + mean
  best = int(((scores - targets) ** 2).sum((1, 2)).argmin())
  return scores[best], float(strengths[best])
