"""What the linear probe is given: features, labels and options, or one error that names the fix."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Standardize = Literal["scalar", "feature", "none"]
STANDARDIZE = ("scalar", "feature", "none")


def data(
  features: npt.ArrayLike, labels: npt.ArrayLike, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns features as float32 and labels as int32, or raises."""
  features, labels = np.asarray(features), np.asarray(labels)
  if features.ndim != 2 or labels.shape != features.shape[:1] or not features.size:
    raise ValueError(
      f"features {features.shape} and labels {labels.shape} must be [n, num_features] and [n] with"
      " at least one example: pool the features to one row per image"
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f"labels are {labels.dtype}, not integers: convert class names to indices")
  if labels.min() < 0 or labels.max() >= num_classes:
    bad = labels[(labels < 0) | (labels >= num_classes)][0]
    raise ValueError(
      f"label {bad} is outside [0, {num_classes}): relabel the data or pass a larger num_classes"
    )
  finite = np.isfinite(features)
  if not finite.all():
    row, column = np.argwhere(~finite)[0]
    raise ValueError(
      f"{np.sum(~finite)} features are not finite, the first is {features[row, column]} at example"
      f" {row}, feature {column}: check the backbone's weights and the preprocessing"
    )
  return features.astype(np.float32, copy=False), labels.astype(np.int32)


def options(
  l2: Sequence[float], standardize: str, tol: float, max_iterations: int, max_steps: int | None
) -> np.ndarray:
  """Returns the strengths as float64 [k], or raises."""
  strengths = np.asarray(l2, np.float64)
  if strengths.ndim != 1 or not strengths.size:
    raise ValueError(f"l2 has shape {strengths.shape}: pass a sequence of at least one strength")
  bad = strengths[~(np.isfinite(strengths) & (strengths > 0))]
  if bad.size:
    raise ValueError(
      f"l2 holds {bad[0]}: strengths must be positive and finite (without a penalty separable"
      " classes have no optimum; use a small one such as 1e-6)"
    )
  if standardize not in STANDARDIZE:
    raise ValueError(f"standardize is {standardize!r}: use one of {STANDARDIZE}")
  if not tol > 0 or max_iterations < 1:
    raise ValueError(
      f"tol is {tol} and max_iterations is {max_iterations}: use tol > 0 and max_iterations >= 1"
    )
  if max_steps is not None and max_steps < 1:
    raise ValueError(f"max_steps is {max_steps}: give at least 1, or None to converge")
  return strengths
