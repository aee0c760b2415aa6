"""Kernel ridge regression with an intercept, its strength chosen in closed form.

For a kernel K of m images, centred as Kc = C K C with C = I - 11'/m, the fit of targets Y is
H Y with H = 11'/m + Kc (Kc + l I)^-1. H is the smoother of a penalised least-squares problem, so
the residual of a group G of images under the fit without it is (I - H_GG)^-1 (Y - HY)_G, exactly,
and no group is refitted. With A = (Kc + l I)^-1, I - H = l A - 11'/m: one Cholesky factor and its
inverse serve a strength l. All in float64.

`fit_landmarks` is the same of the kernel that a sample of the images spans (Nystrom's method;
Williams and Seeger, 2001), in primal form: one eigendecomposition serves all strengths.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools

import numpy as np
from scipy import linalg

_ROUNDING = 1e-6  # of float32 products: eigenvalues below it, of the largest, are noise
STRENGTHS = tuple(10.0 ** (k / 2) for k in range(-8, 5))  # times the mean eigenvalue of Kc


@dataclasses.dataclass(frozen=True)
class Fit:
  """A fitted ridge.

  Attributes:
    dual: [k, classes], of the images that the kernel's columns are of; see `predict`.
    mean: [classes] of the targets.
    strength: the l that was chosen, in units of the kernel.
    error: mean squared residual of left-out groups at that strength.
    place: of the strength among those given, in rising order.
  """

  dual: np.ndarray
  mean: np.ndarray
  strength: float
  error: float
  place: int = 0

  def predict(self, others: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """[j, classes] of other images, from their kernel values [j, k] and those of the fit [m, k]."""
    return self.mean + (np.asarray(others, np.float64) - column_means(kernel)) @ self.dual


def column_means(kernel: np.ndarray) -> np.ndarray:
  """[k] means over rows, float64."""
  return kernel.mean(axis=0, dtype=np.float64)


def centre(kernel: np.ndarray) -> np.ndarray:
  """C K C of [m, m], float64."""
  kernel = np.asarray(kernel, np.float64)
  rows = kernel.mean(axis=0)
  return kernel - rows - rows[:, None] + rows.mean()


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
  first: int | None = None,
) -> Fit:
  """Fits targets with the strength whose left-out groups have the least squared residual.

  Args:
    kernel: [m, m], symmetric; need not be centred.
    targets: [m, classes].
    groups: [m] images that are left out together; all different leaves out one at a time.
    strengths: to choose from, as multiples of the mean eigenvalue of the centred kernel.
    first: place in them, in rising order, to go downhill from; None tries all.

  Raises:
    ValueError: one group, a strength that is not above 0, or values that are not finite.
  """
  members = _checked(kernel, targets, groups, strengths)
  mean = targets.mean(axis=0)
  centred = centre(kernel)
  grid = _grid(float(np.trace(centred)) / len(centred), strengths)

  @functools.cache
  def tried(place: int) -> tuple[float, np.ndarray]:
    inverse = _inverse(centred, grid[place])
    left = left_out(inverse, grid[place], targets - mean, members)
    return float(np.mean(np.square(left))), inverse @ (targets - mean)

  place = _descend(lambda place: tried(place)[0], len(grid), first)
  error, dual = tried(place)
  return Fit(dual, mean, grid[place], error, place)


def fit_landmarks(
  products: np.ndarray,
  own: np.ndarray,
  targets: np.ndarray,
  groups: np.ndarray,
  strengths: Sequence[float] = STRENGTHS,
) -> Fit:
  """`fit` with the kernel P W^-1 P' that k landmarks span; equal to it where they are all images.

  Args:
    products: P, [m, k] kernel values of the images with the landmarks.
    own: W, [k, k] kernel values of the landmarks, which are among the images.
    targets, groups, strengths: see `fit`; all strengths are tried.
  """
  members = _checked(products, targets, groups, strengths)
  mean = targets.mean(axis=0)
  y = targets - mean
  values, vectors = linalg.eigh(np.asarray(own, np.float64))
  kept = values > _ROUNDING * max(values[-1], np.finfo(np.float64).tiny)
  root = vectors[:, kept] / np.sqrt(values[kept])
  z = (products - column_means(products)) @ root
  squares, turn = linalg.eigh(z.T @ z)
  z = z @ turn  # the columns are orthogonal, of squared lengths `squares`
  grid = _grid(float(squares.sum()) / len(z), strengths)
  turned = z.T @ y

  @functools.cache
  def tried(place: int) -> tuple[float, np.ndarray]:
    shrunk = 1 / (np.maximum(squares, 0.0) + grid[place])
    weights = shrunk[:, None] * turned
    left = _of_groups(
      y - z @ weights,
      members,
      lambda rows: np.eye(len(rows)) - (z[rows] * shrunk) @ z[rows].T,
      lambda: 1 - np.square(z) @ shrunk,
    )
    return float(np.mean(np.square(left))), weights

  place = _descend(lambda place: tried(place)[0], len(grid), None)
  error, weights = tried(place)
  return Fit(root @ (turn @ weights), mean, grid[place], error, place)


def _checked(kernel, targets, groups, strengths) -> list[np.ndarray]:
  """The positions of each group; raises what `fit` does."""
  members = group_rows(groups)
  if len(members) < 2:
    raise ValueError("all images are of one group; a strength is chosen by leaving out groups")
  if not strengths or not min(strengths) > 0:
    raise ValueError(f"strengths are {tuple(strengths)}; give at least one, each above 0")
  if not (np.isfinite(kernel).all() and np.isfinite(targets).all()):
    raise ValueError("a kernel or its targets are not finite")
  return members


def _grid(mean_eigenvalue: float, strengths: Sequence[float]) -> list[float]:
  """Strengths in units of the kernel, rising."""
  scale = max(mean_eigenvalue, np.finfo(np.float64).tiny)
  return sorted(scale * strength for strength in set(strengths))


def _descend(error: Callable[[int], float], count: int, first: int | None) -> int:
  """The place of the least error: of all, or downhill from the first."""
  if first is None:
    return min(range(count), key=error)
  place = min(first, count - 1)
  while True:
    near = [p for p in (place - 1, place + 1) if 0 <= p < count]
    better = min(near, key=error, default=place)
    if not error(better) < error(place):
      return place
    place = better


def _inverse(kernel: np.ndarray, strength: float) -> np.ndarray:
  """(K + l I)^-1 of a positive semidefinite K, but for rounding, which is within l."""
  shifted = kernel + strength * np.eye(len(kernel))
  factor, failed = linalg.lapack.dpotrf(shifted, lower=True)
  if not failed:
    half, failed = linalg.lapack.dpotri(factor, lower=True)
  if failed:
    raise ValueError(
      f"a kernel is not positive semidefinite to within {strength:.1e}; give larger strengths"
    )
  half = np.tril(half)
  return half + np.tril(half, -1).T


def left_out(
  inverse: np.ndarray, strength: float, targets: np.ndarray, members: Sequence[np.ndarray]
) -> np.ndarray:
  """Residuals of each group under the fit without it, [m, classes].

  Args:
    inverse: [m, m] A, of the centred kernel and the strength.
    strength: l.
    targets: [m, classes], centred.
    members: the positions of each group.
  """
  return _of_groups(
    strength * (inverse @ targets),
    members,
    lambda rows: strength * inverse[np.ix_(rows, rows)],
    lambda: strength * np.diag(inverse),
  )


def _of_groups(
  residual: np.ndarray,
  members: Sequence[np.ndarray],
  rest: Callable[[np.ndarray], np.ndarray],
  diagonal: Callable[[], np.ndarray],
) -> np.ndarray:
  """(I - H_GG)^-1 residual_G of every group, I - H = R - 11'/m; R by blocks and diagonal."""
  count = len(residual)
  if len(members) == count:
    return residual / (diagonal() - 1 / count)[:, None]
  found = np.empty_like(residual)
  for rows in members:
    own = rest(rows) - 1 / count
    found[rows] = np.linalg.solve(own, residual[rows])
  return found
