"""The linear model in which fine-tuning provably distorts features, and its geometry.

"Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution" (Kumar et al.,
ICLR 2022, arXiv 2202.10054), the section on theory: an over-parameterised two-layer linear network
f(x) = v' B x with features B [k, d] and a head v [k]. The labels are those of v*, B*; training
starts from pretrained features B0 near B*, and all training inputs lie in a subspace S of m < d
dimensions. `gradient_flow` trains it.

Everything is computed in float64, whether or not jax_enable_x64 is set: numpy in, numpy out, a
jitted program between them. Problems of equal sizes may be stacked on leading axes, written as ...
below. An error is a mean squared error over a distribution of inputs with second moment M,
(w - w*)' M (w - w*) with w = B' v: M = P_S, the projection on S, in distribution (ID), and
M = Sigma, by default I, out of distribution (OOD).
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ORTHONORMAL = 1e-6  # largest deviation of B B' from I that counts as rounding


def in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
  """Jits a function of arrays and makes it take and return float64 numpy, for any jax_enable_x64.

  What it returns is called from Python; to trace or differentiate the mathematics, take its
  `__wrapped__`.
  """
  jitted = jax.jit(function)

  @functools.wraps(function)
  def call(*args: Any) -> Any:
    args = jax.tree.map(lambda x: np.asarray(x, np.float64), args)
    with jax.enable_x64(True):
      return jax.tree.map(np.asarray, jitted(*args))

  return call


class Problem(NamedTuple):
  """A pretrained linear model and the task it is adapted to.

  Attributes:
    inputs: [..., n, d] training inputs X, all in S.
    basis: [..., d, m] orthonormal basis of S.
    target_head: [..., k] v*.
    target_features: [..., k, d] B*, orthonormal rows.
    features: [..., k, d] B0, the pretrained features, orthonormal rows.
    head: [..., k] v0, the head that fine-tuning starts with.
  """

  inputs: np.ndarray
  basis: np.ndarray
  target_head: np.ndarray
  target_features: np.ndarray
  features: np.ndarray
  head: np.ndarray

  @property
  def target(self) -> np.ndarray:
    """w* = B*' v*, [..., d]."""
    return weights(self.target_head, self.target_features)

  @property
  def labels(self) -> np.ndarray:
    """y = X w*, without noise, [..., n]."""
    return np.einsum("...nd,...d->...n", self.inputs, self.target)


def weights(head: np.ndarray, features: np.ndarray) -> np.ndarray:
  """w = B' v: [..., k] and [..., k, d] to [..., d]."""
  return np.einsum("...k,...kd->...d", head, features)


def make_problem(
  seed: int,
  *,
  epsilon: float,
  d: int = 24,
  k: int = 3,
  m: int = 10,
  n: int = 40,
  target_norm: float = 1.0,
  head_std: float = 1.0,
) -> Problem:
  """Draws a problem whose pretrained features are exactly `epsilon` from those of the task.

  B* and S are uniform, the inputs N(0, P_S), v* uniform on a sphere. B0 is B* plus a Gaussian
  matrix orthogonal to it, of the size that `epsilon` asks for, made orthonormal and then rotated at
  random, which changes no distance.

  Args:
    seed: of all that is drawn.
    epsilon: feature-extractor distance d(B0, B*), in [0, sqrt 2).
    d: inputs.
    k: features.
    m: dimensions of S.
    n: training inputs.
    target_norm: |v*| = |w*|.
    head_std: v0 is N(0, head_std^2 I).

  Raises:
    ValueError: sizes outside of the theory, k < m < d - k and n >= m, or another value.
  """
  if not 1 <= k < m < d - k or n < m:
    raise ValueError(
      f"d={d}, k={k}, m={m}, n={n}; the theory needs 1 <= k < m < d - k and n >= m: fewer features"
      " k, a subspace of m between k and d - k dimensions, at least m inputs n"
    )
  if not 0 <= epsilon < math.sqrt(2):
    raise ValueError(f"epsilon is {epsilon}; a distance of features is in [0, sqrt 2), 0 for equal")
  for name, value in (("target_norm", target_norm), ("head_std", head_std)):
    if not 0 < value < math.inf:
      raise ValueError(f"{name} is {value}; give a positive number")
  rng = np.random.default_rng(seed)
  target_features = _orthonormal(rng, d, k).T
  basis = _orthonormal(rng, d, m)
  inputs = rng.normal(size=(n, m)) @ basis.T
  target_head = rng.normal(size=k)
  target_head *= target_norm / np.linalg.norm(target_head)
  # B* + G with G orthogonal to B* has principal angles arctan(singular values of G).
  noise = rng.normal(size=(k, d))
  noise -= noise @ target_features.T @ target_features
  noise *= math.tan(2 * math.asin(epsilon / 2)) / np.linalg.norm(noise, 2)
  rotation = _orthonormal(rng, k, k)
  features = rotation @ _polar(target_features + noise)
  head = rng.normal(0, head_std, size=k)
  return Problem(inputs, basis, target_head, target_features, features, head)


def stack(problems: Sequence[Problem]) -> Problem:
  """Problems of equal sizes as one, on a new leading axis.

  Raises:
    ValueError: none, or of different sizes.
  """
  shapes = {tuple(x.shape for x in problem) for problem in problems}
  if len(shapes) != 1:
    raise ValueError(f"{len(problems)} problems of {len(shapes)} sizes; stack those of one size")
  return Problem(*map(np.stack, zip(*problems, strict=True)))


def feature_distance(features: np.ndarray, others: np.ndarray) -> np.ndarray:
  """d(B, B') = min over orthogonal U [k, k] of the spectral norm |B - U B'| (Kumar et al.).

  For orthonormal rows it is sqrt(2 - 2 cos theta) with the largest principal angle theta between
  the row spaces: |B - U B'|^2 is the largest eigenvalue of 2 I - M - M' with M = U B' B^T, so at
  least 2 - 2 sigma_min(M) as no smallest eigenvalue of a symmetric part exceeds the smallest
  singular value (Fan and Hoffman), and sigma_min(M) = cos theta. The U that makes M symmetric and
  positive semidefinite, a polar factor, reaches it.

  Args:
    features: [..., k, d] B, orthonormal rows.
    others: [..., k, d] B'.

  Returns:
    [...], in [0, sqrt 2]. Accurate to about 1e-15, also near 0: it is the norm at that U.

  Raises:
    ValueError: different shapes, or rows that are not orthonormal.
  """
  features, others = np.asarray(features), np.asarray(others)
  if features.shape != others.shape or features.ndim < 2:
    raise ValueError(
      f"features of shapes {features.shape} and {others.shape}; give two of the same [..., k, d]"
    )
  for name, rows in (("features", features), ("others", others)):
    off = np.abs(rows @ rows.swapaxes(-1, -2) - np.eye(rows.shape[-2])).max()
    if not off <= ORTHONORMAL:
      raise ValueError(
        f"rows of {name} are off orthonormal by {off:.1e}, allowed is {ORTHONORMAL}; take"
        " np.linalg.qr(B.T)[0].T, of the same row space"
      )
  return _distance(features, others)


def head_alignment_error(problem: Problem) -> np.ndarray:
  """phi with phi^2 = |(v0' v*)^2 - (v*' v*)^2| (Kumar et al., "head alignment error"), [...].

  B* is known up to a rotation; v* is the head for that B* which is nearest to B0.
  """
  return _head_alignment_error(problem)


def ood_lower_bound(problem: Problem, second_moment: np.ndarray | None = None) -> np.ndarray:
  """What the root of fine-tuning's OOD error cannot fall below, at any time (Kumar et al.).

    sqrt L_ood(v(t), B(t)) >= sqrt(sigma_min(Sigma)) [ cos theta_max(R*, S_perp) / sqrt(k)
                              min(phi, phi^2 / |w*|) / (1 + |w*|)^2 - epsilon ]

  with R* the row space of B*, S_perp the complement of S, theta_max the largest principal angle
  between them and epsilon = d(B0, B*). It is loose, and says nothing where it is negative.

  Args:
    problem: whose head v0 fine-tuning starts with.
    second_moment: [..., d, d] Sigma of the OOD inputs; None for I.

  Returns:
    [...]
  """
  floor: Any = np.float64(1)
  if second_moment is not None:
    floor = np.linalg.eigvalsh(_checked(problem, second_moment))[..., 0]
  epsilon = feature_distance(problem.features, problem.target_features)
  return np.sqrt(floor) * (_distortion(problem) - epsilon)


def id_error(problem: Problem, w: np.ndarray) -> np.ndarray:
  """Mean squared error over N(0, P_S): |P_S (w - w*)|^2.

  Args:
    problem: with leading axes ...
    w: [..., d] or [..., T, d].

  Returns:
    [...] or [..., T].
  """
  error = np.square(_gap(problem, w) @ problem.basis).sum(-1)
  return error if np.ndim(w) > problem.head.ndim else error[..., 0]


def ood_error(
  problem: Problem, w: np.ndarray, second_moment: np.ndarray | None = None
) -> np.ndarray:
  """Mean squared error over inputs with second moment Sigma: (w - w*)' Sigma (w - w*).

  Args:
    problem: with leading axes ...
    w: [..., d] or [..., T, d].
    second_moment: [..., d, d] Sigma; None for I.

  Returns:
    [...] or [..., T].
  """
  gap = _gap(problem, w)
  moved = gap if second_moment is None else gap @ _checked(problem, second_moment)
  error = (moved * gap).sum(-1)
  return error if np.ndim(w) > problem.head.ndim else error[..., 0]


def _gap(problem: Problem, w: np.ndarray) -> np.ndarray:
  """w - w*, [..., T, d], T = 1 for one w per problem."""
  w, target = np.asarray(w, np.float64), problem.target
  if w.shape == target.shape:
    w = w[..., None, :]
  if w.ndim != target.ndim + 1 or (*w.shape[:-2], w.shape[-1]) != target.shape:
    raise ValueError(
      f"w has shape {w.shape}; of a problem with w* of shape {target.shape} give the same, or one"
      " more axis of times before the last"
    )
  return w - target[..., None, :]


def _checked(problem: Problem, second_moment: np.ndarray) -> np.ndarray:
  """Sigma as float64, or raises."""
  sigma = np.asarray(second_moment, np.float64)
  d = problem.features.shape[-1]
  if sigma.shape[-2:] != (d, d) or not np.allclose(sigma, sigma.swapaxes(-1, -2), atol=1e-9):
    raise ValueError(
      f"second_moment has shape {sigma.shape}; give a symmetric matrix [..., {d}, {d}], the mean of"
      " x x' over OOD inputs"
    )
  least = np.linalg.eigvalsh(sigma)[..., 0].min()
  if least < -1e-9 * np.abs(sigma).max():
    raise ValueError(
      f"second_moment has the eigenvalue {least:.3g}; a mean of x x' has none below 0"
    )
  return sigma


def _orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
  """Uniform orthonormal columns; with the signs fixed, the same from every LAPACK."""
  q, r = np.linalg.qr(rng.normal(size=(rows, columns)))
  return q * np.sign(np.diagonal(r))


def _polar(matrix: np.ndarray) -> np.ndarray:
  """The nearest matrix with orthonormal rows."""
  left, _, right = np.linalg.svd(matrix, full_matrices=False)
  return left @ right


def _nearest_rotation(
  features: np.ndarray | jax.Array, others: np.ndarray | jax.Array
) -> jax.Array:
  """The orthogonal U [..., k, k] that minimises |B - U B'|."""
  left, _, right = jnp.linalg.svd(features @ others.mT)
  return left @ right


@in_float64
def _distance(features: jax.Array, others: jax.Array) -> jax.Array:
  rest = features - _nearest_rotation(features, others) @ others
  return jnp.linalg.norm(rest, ord=2, axis=(-2, -1))


def _phi(problem: Problem) -> jax.Array:
  rotation = _nearest_rotation(problem.features, problem.target_features)
  aligned = jnp.einsum("...kl,...l->...k", rotation, problem.target_head)
  along = jnp.square((problem.head * aligned).sum(-1))
  return jnp.sqrt(jnp.abs(along - jnp.square(jnp.square(aligned).sum(-1))))


_head_alignment_error = in_float64(_phi)


@in_float64
def _distortion(problem: Problem) -> jax.Array:
  """The positive part of the bound, for Sigma = I."""
  k = problem.head.shape[-1]
  # The cosine of an angle to S_perp is the sine of the one to S: B* (I - P_S), where it is least.
  inside = problem.target_features @ problem.basis
  outside = problem.target_features - inside @ problem.basis.mT
  cosine = jnp.linalg.svd(outside, compute_uv=False)[..., -1]
  phi, norm = _phi(problem), jnp.linalg.norm(problem.target_head, axis=-1)
  return cosine / math.sqrt(k) * jnp.minimum(phi, phi**2 / norm) / (1 + norm) ** 2
