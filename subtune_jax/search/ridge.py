"""Kernel ridge regression with an intercept, its strength chosen in closed form.

For a kernel K of m images, centred as Kc = C K C with C = I - 11'/m, the fit of targets Y is
H Y with H = 11'/m + Kc (Kc + l I)^-1. H is the smoother of a penalised least-squares problem, so
the residual of a group G of images under the fit without it is (I - H_GG)^-1 (Y - HY)_G, exactly,
and no group is refitted. One eigendecomposition of Kc serves all strengths l. All in float64.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

STRENGTHS = tuple(10.0 ** (k / 2) for k in range(-8, 5))  # times the mean eigenvalue of Kc


@dataclasses.dataclass(frozen=True)
class Fit:
  """A fitted ridge.

  Attributes:
    dual: [m, classes]; a prediction is the mean plus centred kernel values times it.
    mean: [classes] of the targets.
    strength: the l that was chosen, in units of the kernel.
    error: mean squared residual of left-out groups at that strength.
  """

  dual: np.ndarray
  mean: np.ndarray
  strength: float
  error: float


def centre(kernel: np.ndarray) -> np.ndarray:
  """C K C of [m, m], float64."""
  kernel = np.asarray(kernel, np.float64)
  rows = kernel.mean(axis=0)
  return kernel - rows - rows[:, None] + rows.mean()


def centre_others(others: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """Kernel values [k, m] of other images with the m, centred as `centre(kernel)` is."""
  others, rows = np.asarray(others, np.float64), np.asarray(kernel, np.float64).mean(axis=0)
  return others - others.mean(axis=1, keepdims=True) - rows + rows.mean()


def group_rows(groups: np.ndarray) -> list[np.ndarray]:
  """The positions of each group."""
  _, of_image = np.unique(groups, return_inverse=True)
  order = np.argsort(of_image, kind="stable")
  return np.split(order, np.cumsum(np.bincount(of_image))[:-1])


def fit(
  kernel: np.ndarray,
  targets: np.ndarray,
  groups: np.ndarray,
  strengths: Sequence[float] = STRENGTHS,
) -> Fit:
  """Fits targets with the strength whose left-out groups have the least squared residual.

  Args:
    kernel: [m, m], symmetric; need not be centred.
    targets: [m, classes].
    groups: [m] images that are left out together; all different leaves out one at a time.
    strengths: to choose from, as multiples of the mean eigenvalue of the centred kernel.

  Raises:
    ValueError: one group, a strength that is not above 0, or values that are not finite.
  """
  members = group_rows(groups)
  if len(members) < 2:
    raise ValueError("all images are of one group; a strength is chosen by leaving out groups")
  if not strengths or not min(strengths) > 0:
    raise ValueError(f"strengths are {tuple(strengths)}; give at least one, each above 0")
  if not (np.isfinite(kernel).all() and np.isfinite(targets).all()):
    raise ValueError("a kernel or its targets are not finite")
  mean = targets.mean(axis=0)
  values, vectors = np.linalg.eigh(centre(kernel))
  values = np.maximum(values, 0.0)
  rotated = vectors.T @ (targets - mean)
  scale = max(float(values.mean()), np.finfo(np.float64).tiny)
  chosen = None
  for strength in sorted({scale * s for s in strengths}, reverse=True):
    shrink = values / (values + strength)
    residual = targets - mean - vectors @ (shrink[:, None] * rotated)
    error = float(np.mean(np.square(left_out(vectors, shrink, residual, members))))
    if chosen is None or error < chosen[1]:
      chosen = strength, error
  strength, error = chosen
  dual = vectors @ (rotated / (values + strength)[:, None])
  return Fit(dual, mean, strength, error)


def left_out(
  vectors: np.ndarray, shrink: np.ndarray, residual: np.ndarray, members: Sequence[np.ndarray]
) -> np.ndarray:
  """Residuals of each group under the fit without it, [m, classes].

  Args:
    vectors: [m, m] eigenvectors of the centred kernel.
    shrink: [m] eigenvalue / (eigenvalue + strength).
    residual: [m, classes] of the fit with all.
    members: the positions of each group.
  """
  count = len(residual)
  if len(members) == count:
    leverage = 1 / count + np.square(vectors) @ shrink
    return residual / (1 - leverage)[:, None]
  found = np.empty_like(residual)
  for rows in members:
    own = vectors[rows]
    hat = (own * shrink) @ own.T + 1 / count
    found[rows] = np.linalg.solve(np.eye(len(rows)) - hat, residual[rows])
  return found
