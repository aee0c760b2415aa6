"""The linear probe's change of variables: standardised, centred and rotated features."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Principal axes with less than this share of the largest axis' variance are rounding errors.
_RANK_TOLERANCE = 1e-13
_CHUNK = 8192
_COLUMNS = 1 << 14  # standardised at a time, where there are more features than images


class Rotation(NamedTuple):
  """scores = (features - center) / scale @ basis; basis has orthonormal columns.

  With fewer images than features, basis is ((features - center) / scale)' axes and is not stored.
  """

  scores: np.ndarray  # [n, r] float64
  axes: np.ndarray  # [d, r] float64, the basis; or [n, r]
  center: np.ndarray  # [d] float64
  scale: np.ndarray  # [d] float64
  features: np.ndarray | None  # [n, d], where axes are of the images


def rotate(features: np.ndarray, standardize: str) -> Rotation:
  """Standardises, centres and rotates the features to their principal axes, in float64.

  The axes come from the smaller of the two Gram matrices. Where there are more features than images
  no second array of their size is made.
  """
  n, d = features.shape
  center = features.mean(axis=0, dtype=np.float64)
  scale = np.ones(d)
  if standardize == "scalar":
    scale = scale * _std(features, center.mean())
  elif standardize == "feature":
    scale = np.concatenate([features[:, part].std(axis=0, dtype=np.float64) for part in _parts(d)])
  scale[scale == 0] = 1.0

  wide = n < d
  whole = None if wide else _centred(features, center, scale, slice(None))
  parts = (_centred(features, center, scale, part) for part in _parts(d))
  gram = _gram(whole) if whole is not None else sum(x @ x.T for x in parts)
  variance, axes = np.linalg.eigh(gram)
  keep = variance > variance[-1] * _RANK_TOLERANCE
  if not variance[-1] > 0:
    raise ValueError(
      f"all {n} training examples have the same features: check the backbone and the images"
    )
  axes = axes[:, keep]
  if whole is not None:
    return Rotation(whole @ axes, axes, center, scale, None)
  length = np.sqrt(variance[keep])[None]
  return Rotation(axes * length, axes / length, center, scale, features)


def _centred(
  features: np.ndarray, center: np.ndarray, scale: np.ndarray, part: slice
) -> np.ndarray:
  """[n, part] float64, standardised."""
  return (features[:, part] - center[part]) / scale[part]


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


def scores(rotation: Rotation, features: np.ndarray) -> np.ndarray:
  """[m, r] float64 scores of other images' features [m, d]."""
  _, axes, center, scale, own = rotation
  if own is None:
    return _centred(features, center, scale, slice(None)) @ axes
  gram = sum(
    _centred(features, center, scale, part) @ _centred(own, center, scale, part).T
    for part in _parts(len(center))
  )
  return gram @ axes


def unrotate(rotation: Rotation, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Of heads [k, C, r + 1] on scores: float32 kernels [k, d, C] and biases [k, C] on features."""
  _, axes, center, scale, features = rotation
  k, num_classes, _ = weights.shape
  kernel = np.empty((k, len(center), num_classes), np.float32)
  inner = axes @ weights[:, :, :-1].reshape(k * num_classes, -1).T
  for part in _parts(len(center)):
    own = inner[part] if features is None else _centred(features, center, scale, part).T @ inner
    own = own / scale[part, None]
    kernel[:, part] = own.reshape(-1, k, num_classes).swapaxes(0, 1)
  # From the rounded kernel, so that rounding it shifts no logit at the mean of the features.
  return kernel, (weights[:, :, -1] - center @ kernel).astype(np.float32)
