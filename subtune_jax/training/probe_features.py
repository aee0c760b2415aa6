"""The linear probe's change of variables: standardised, centred and rotated features."""

from typing import NamedTuple

import numpy as np

# Principal axes with less than this share of the largest axis' variance are rounding errors.
_RANK_TOLERANCE = 1e-13
_CHUNK = 8192


class Rotation(NamedTuple):
  """scores = (features - center) / scale @ basis; basis has orthonormal columns."""

  scores: np.ndarray  # [n, r] float64
  basis: np.ndarray  # [d, r] float32
  center: np.ndarray  # [d] float64
  scale: np.ndarray  # [d] float64


def rotate(features: np.ndarray, standardize: str) -> Rotation:
  """Standardises, centres and rotates the features to their principal axes, in float64.

  The axes come from the smaller of the two Gram matrices.
  """
  n, d = features.shape
  center = features.mean(axis=0, dtype=np.float64)
  scale = np.ones(d)
  if standardize == "scalar":
    scale = scale * features.std(dtype=np.float64)
  elif standardize == "feature":
    scale = features.std(axis=0, dtype=np.float64)
  scale[scale == 0] = 1.0
  centred = (features - center) / scale
  wide = n < d
  gram = centred @ centred.T if wide else _gram(centred)
  variance, axes = np.linalg.eigh(gram)
  keep = variance > variance[-1] * _RANK_TOLERANCE
  if not variance[-1] > 0:
    raise ValueError(
      f"all {n} training examples have the same features: check the backbone and the images"
    )
  axes = axes[:, keep]
  if not wide:
    return Rotation(centred @ axes, axes.astype(np.float32), center, scale)
  length = np.sqrt(variance[keep])[None]
  basis = centred.T @ (axes / length)
  return Rotation(axes * length, basis.astype(np.float32), center, scale)


def _gram(x: np.ndarray) -> np.ndarray:
  """Returns x.T @ x; in pieces, which numpy's BLAS sums more accurately than one long dot."""
  return sum(x[i : i + _CHUNK].T @ x[i : i + _CHUNK] for i in range(0, len(x), _CHUNK))


def unrotate(rotation: Rotation, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the kernel [d, C] and bias [C] that act on raw features."""
  kernel = rotation.basis @ weights[:, :-1].T / rotation.scale[:, None]
  kernel = kernel.astype(np.float32)
  # From the rounded kernel, so that rounding it shifts no logit at the mean of the features.
  return kernel, weights[:, -1] - rotation.center @ kernel
