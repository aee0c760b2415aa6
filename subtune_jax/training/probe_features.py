"""The linear probe's change of variables: standardised, centred and rotated features."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Principal axes with less than this share of the largest axis' variance are rounding errors.
_RANK_TOLERANCE = 1e-13
_CHUNK = 8192
_COLUMNS = 1 << 14  # standardised at a time, where there are more features than images


class Rotation(NamedTuple):
  """scores = (features - center) / scale @ basis; basis has orthonormal columns."""

  scores: np.ndarray  # [n, r] float64
  basis: np.ndarray  # [d, r] float32
  center: np.ndarray  # [d] float64
  scale: np.ndarray  # [d] float64


def rotate(features: np.ndarray, standardize: str) -> Rotation:
  """Standardises, centres and rotates the features to their principal axes, in float64.

  The axes come from the smaller of the two Gram matrices. Where there are more features than images
  no float64 copy of all of them is made.
  """
  n, d = features.shape
  center = features.mean(axis=0, dtype=np.float64)
  scale = np.ones(d)
  if standardize == "scalar":
    scale = scale * _std(features, center.mean())
  elif standardize == "feature":
    scale = np.concatenate([features[:, part].std(axis=0, dtype=np.float64) for part in _parts(d)])
  scale[scale == 0] = 1.0

  def centred(part: slice) -> np.ndarray:
    return (features[:, part] - center[part]) / scale[part]

  wide = n < d
  whole = None if wide else centred(slice(None))
  gram = _gram(whole) if whole is not None else sum(x @ x.T for x in map(centred, _parts(d)))
  variance, axes = np.linalg.eigh(gram)
  keep = variance > variance[-1] * _RANK_TOLERANCE
  if not variance[-1] > 0:
    raise ValueError(
      f"all {n} training examples have the same features: check the backbone and the images"
    )
  axes = axes[:, keep]
  if whole is not None:
    return Rotation(whole @ axes, axes.astype(np.float32), center, scale)
  length = np.sqrt(variance[keep])[None]
  basis = np.empty((d, axes.shape[1]), np.float32)
  for part in _parts(d):
    basis[part] = centred(part).T @ (axes / length)
  return Rotation(axes * length, basis, center, scale)


def _parts(d: int) -> Iterator[slice]:
  for begin in range(0, d, _COLUMNS):
    yield slice(begin, begin + _COLUMNS)


def _std(features: np.ndarray, mean: float) -> float:
  """Of all numbers together."""
  squares = sum(np.sum((features[:, p] - mean) ** 2) for p in _parts(features.shape[1]))
  return float(np.sqrt(squares / features.size))


def _gram(x: np.ndarray) -> np.ndarray:
  """Returns x.T @ x; in pieces, which numpy's BLAS sums more accurately than one long dot."""
  return sum(x[i : i + _CHUNK].T @ x[i : i + _CHUNK] for i in range(0, len(x), _CHUNK))


def unrotate(rotation: Rotation, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the kernel [d, C] and bias [C] that act on raw features."""
  kernel = np.empty((len(rotation.basis), len(weights)), np.float32)
  for part in _parts(len(kernel)):
    kernel[part] = rotation.basis[part] @ weights[:, :-1].T / rotation.scale[part, None]
  # From the rounded kernel, so that rounding it shifts no logit at the mean of the features.
  return kernel, weights[:, -1] - rotation.center @ kernel
