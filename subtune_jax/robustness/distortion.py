"""Feature distortion: how far fine-tuning moved the features of an image (LP-FT, section 3.3).

A feature of a unit is its output averaged over positions or tokens; the last block's is what the
head reads. All functions but `unit_outputs` are plain functions of features.
"""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.data import preprocess
from subtune_jax.training import evaluate
from subtune_jax.training import mesh as mesh_lib

PyTree = Any


class Distances(NamedTuple):
  """How far each image's feature has moved, [n] float64 each.

  Attributes:
    absolute: |f - f_0|, the Euclidean distance of the paper.
    relative: |f - f_0| over the mean of |f_0| over the images.
    cosine: 1 - cos(f, f_0), in [0, 2].
  """

  absolute: np.ndarray
  relative: np.ndarray
  cosine: np.ndarray


def distances(before: np.ndarray, after: np.ndarray) -> Distances:
  """Distances between the features of the same images; exactly 0 where nothing moved.

  Args:
    before: [n, features] of the pretrained network, f_0.
    after: [n, features] of the tuned one, f, the same images in the same order.

  Raises:
    ValueError: shapes differ or are not [n, features], or a feature is not finite.
  """
  before, after = (np.asarray(x, np.float64) for x in (before, after))
  if before.ndim != 2 or before.shape != after.shape or not before.size:
    raise ValueError(
      f"features are {before.shape} before and {after.shape} after; give two [n, features] of the "
      "same images"
    )
  for x in (before, after):
    _check_finite(x)
  absolute = np.linalg.norm(after - before, axis=1)
  scale = np.mean(np.linalg.norm(before, axis=1))
  relative = absolute / scale if scale else np.where(absolute > 0, np.inf, 0.0)
  chord = np.linalg.norm(_unit(after) - _unit(before), axis=1)
  return Distances(absolute, relative, chord**2 / 2)


def is_constant(features: np.ndarray) -> bool:
  """Whether all images have the same feature; features: [n, width], finite."""
  _check_finite(np.asarray(features))
  return not np.ptp(features, axis=0).any()


def linear_cka(before: np.ndarray, after: np.ndarray) -> float:
  """Linear centred kernel alignment, in [0, 1]; 1 for equal features up to rotation and scale.

  |Y'X|_F^2 / (|X'X|_F |Y'Y|_F) of centred features X and Y (arXiv 1905.00414, section 3).

  Args:
    before: [n, features].
    after: [n, other features]; the same images in the same order.

  Raises:
    ValueError: not the same images, a feature that is not finite, or all features of one side
      equal, for which it is not defined.
  """
  before, after = (np.asarray(x, np.float64) for x in (before, after))
  if before.ndim != 2 or after.ndim != 2 or len(before) != len(after):
    raise ValueError(f"features are {before.shape} and {after.shape}; give [n, features], equal n")
  for x in (before, after):
    _check_finite(x)
  x, y = (z - z.mean(axis=0) for z in (before, after))
  if len(x) < x.shape[1]:  # the n x n form gives the same number
    first, second = x @ x.T, y @ y.T
    cross, own = np.sum(first * second), [np.linalg.norm(first), np.linalg.norm(second)]
  else:
    cross = np.linalg.norm(y.T @ x) ** 2
    own = [np.linalg.norm(x.T @ x), np.linalg.norm(y.T @ y)]
  if is_constant(before) or is_constant(after) or not min(own):
    raise ValueError("all features of one side are equal; CKA is not defined there")
  return float(cross / (own[0] * own[1]))


def _unit(x: np.ndarray) -> np.ndarray:
  norm = np.linalg.norm(x, axis=1, keepdims=True)
  return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


def _check_finite(x: np.ndarray) -> None:
  if not np.isfinite(x).all():
    row, column = (int(i) for i in np.argwhere(~np.isfinite(x))[0])
    raise ValueError(f"a feature is {x[row, column]} at row {row}, column {column}")


@functools.lru_cache(maxsize=16)
def _program(model: Any, preprocessing: preprocess.Preprocessing) -> Any:
  """One batch of images -> every unit's feature and the logits."""
  units = (*model.block_names, "head")

  def run(variables, x):
    x = preprocess.normalize(x, preprocessing)
    out = {}
    for unit, following in zip(units, (*units[1:], None), strict=True):
      x = model.apply(variables, x, start=unit, stop=following)
      out[unit] = jnp.mean(x, axis=tuple(range(1, x.ndim - 1))).astype(jnp.float32)
    return out

  return jax.jit(run)


def unit_outputs(
  model: Any,
  variables: PyTree,
  images: Any,
  *,
  preprocessing: preprocess.Preprocessing,
  batch_size: int,
  mesh: jax.sharding.Mesh,
) -> Mapping[str, np.ndarray]:
  """Unit -> its features [n, width] in float32; "head" -> the logits [n, num_classes].

  Args:
    model: a backbone of `subtune_jax.models`.
    variables: its variables; BatchNorm runs on running statistics.
    images: uint8 [n, h, w, 3].
    preprocessing: the backbone's statistics.
    batch_size: rows at a time; rounded up to a multiple of the number of devices.
    mesh: the devices.
  """
  batch_size = -(-batch_size // mesh.size) * mesh.size
  program = _program(model, preprocessing)
  variables = mesh_lib.place(variables, mesh_lib.replicated(mesh))
  parts = []
  for batch, real in evaluate.batches(images, batch_size, mesh=mesh):
    out = program(variables, batch)
    parts.append({unit: np.asarray(x)[:real] for unit, x in out.items()})
  return {unit: np.concatenate([part[unit] for part in parts]) for unit in parts[0]}
