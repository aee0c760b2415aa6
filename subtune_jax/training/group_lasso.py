"""Multinomial logistic regression with a group lasso: a group is the weights of one feature.

    minimise  mean_i w_i CE(x_i W + b, y_i) + strength * sum_f |W_f|_2

(Head2Toe, arXiv 2201.03529). The path runs from strong to weak. Most groups are zero: FISTA with
restarts (Beck and Teboulle 2009; O'Donoghue and Candes 2015) runs on a working set alone, and a
pass over all features looks for groups that have to join it. Features may lie in a file; they are
float32, and what is computed from the working set is float64.
"""

from collections.abc import Sequence
from typing import NamedTuple

from absl import logging
import numpy as np
import scipy.special

from subtune_jax.training import feature_store

_ROUNDS = 50
_JOIN = 2048  # groups that join in one round, at most
_FIRST_TOLERANCE = 1e-2


class Fit(NamedTuple):
  """The optimum under one strength.

  Attributes:
    strength: of the penalty.
    index: [a] rising positions of the features whose weights are not zero.
    weights: [a, C] of the classes that occur.
    bias: [C].
    gradient: [N] norm of the cross-entropy's gradient in the weights of each feature: a share of
      `strength`, at most 1, that says how soon one that is zero would join.
    objective: reached.
    converged: the objective is within about twice the tolerance, relatively, of the optimum.
  """

  strength: float
  index: np.ndarray  # type: ignore[assignment]  # a field, in place of tuple's method
  weights: np.ndarray
  bias: np.ndarray
  gradient: np.ndarray
  objective: float
  converged: bool

  @property
  def relevance(self) -> np.ndarray:
    """[N] the sum of the squared weights of each feature."""
    found = np.zeros(len(self.gradient))
    found[self.index] = np.sum(self.weights**2, axis=1)
    return found


class _Problem(NamedTuple):
  store: feature_store.FeatureStore
  targets: np.ndarray  # [n, C] one-hot
  weights: np.ndarray  # [n] of the images, of mean 1


class _Working(NamedTuple):
  """The working set: positions [a], centred columns [n, a], weights [a, C], bias [C]."""

  index: np.ndarray  # type: ignore[assignment]  # a field, in place of tuple's method
  x: np.ndarray
  weights: np.ndarray
  bias: np.ndarray


def fit_path(
  store: feature_store.FeatureStore,
  labels: np.ndarray,
  *,
  strengths: Sequence[float],
  class_weights: np.ndarray | None = None,
  tol: float = 1e-4,
  max_iterations: int = 5000,
) -> list[Fit]:
  """Fits one head per strength, from the strongest to the weakest.

  Args:
    store: [n, N] features.
    labels: [n] integers; C of them occur.
    strengths: as shares of the least strength at which all weights are zero, in (0, 1].
    class_weights: weight of the images of each label; None: all alike.
    tol: every group's optimality condition holds within this share of the strength. By convexity
      the objective is then within about twice this share of the optimum.
    max_iterations: of FISTA in a round.

  Returns:
    A `Fit` per strength, in falling order. One that did not reach `tol` is flagged and logged.

  Raises:
    ValueError: no strength or one outside (0, 1], or all features are constant.
  """
  order = sorted((float(s) for s in strengths), reverse=True)
  if not order or not all(0 < s <= 1 for s in order):
    raise ValueError(f"strengths are {tuple(strengths)}; give at least one, each in (0, 1]")
  labels = np.asarray(labels)
  weights = np.ones(len(labels)) if class_weights is None else class_weights[labels]
  weights = weights / weights.mean()
  present, classes = np.unique(labels, return_inverse=True)
  problem = _Problem(store, np.eye(len(present))[classes], weights)
  bias = np.log(np.average(problem.targets, axis=0, weights=weights))
  working = _Working(
    np.zeros(0, np.int64), np.zeros((len(labels), 0)),
    np.zeros((0, len(present))), bias,
  )  # fmt: skip
  norms, _, _ = _scan(problem, working, np.inf)
  largest = float(norms.max())
  if not largest > 0:
    raise ValueError("all images have the same features: check the backbone and the images")
  found = []
  for share_of in order:
    fit, working = _solve(problem, working, share_of * largest, tol, max_iterations)
    found.append(fit)
  return found


def _solve(
  problem: _Problem, working: _Working, strength: float, tol: float, max_iterations: int
) -> tuple[Fit, _Working]:
  """The optimum under one strength from the working set of another."""
  within, done = max(tol, _FIRST_TOLERANCE), False
  for _ in range(_ROUNDS):
    working, settled = _fista(problem, working, strength, within, max_iterations)
    working = _without_zeros(working)
    norms, index, columns = _scan(problem, working, strength * (1 + within))
    if len(index):
      working = _joined(problem, working, index, columns)
    elif within <= tol:
      done = settled
      break
    else:
      within = tol
  if not done:
    logging.warning("group lasso: strength %g did not reach tol=%g", strength, tol)
  objective = _objective(problem, working, strength)
  bias = working.bias
  if len(working.index):  # of features that are not centred
    mean = np.average(problem.store.columns(working.index), axis=0, weights=problem.weights)
    bias = bias - mean @ working.weights
  fit = Fit(strength, working.index, working.weights, bias, norms / strength, objective, done)
  return fit, working


def _logits(working: _Working, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
  return working.x @ weights + bias[None]


def _residual(problem: _Problem, logits: np.ndarray) -> np.ndarray:
  """[n, C] derivative of the mean cross-entropy in the logits."""
  left = scipy.special.softmax(logits, axis=1) - problem.targets
  return left * (problem.weights / len(left))[:, None]


def _objective(problem: _Problem, working: _Working, strength: float) -> float:
  logits = _logits(working, working.weights, working.bias)
  losses = scipy.special.logsumexp(logits, axis=1) - np.sum(logits * problem.targets, axis=1)
  penalty = strength * np.sum(np.linalg.norm(working.weights, axis=1))
  return float(np.mean(problem.weights * losses) + penalty)


def _scan(
  problem: _Problem, working: _Working, limit: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """One pass over all features.

  Returns:
    [N] norms of the gradient in each group; and of the groups outside the working set above
    `limit` those with the largest norms, at most `_JOIN`: rising positions [k], columns [n, k].
  """
  left = _residual(problem, _logits(working, working.weights, working.bias))
  left = left.astype(np.float32)
  norms = np.zeros(problem.store.shape[1])
  index, columns = np.zeros(0, np.int64), np.zeros((len(left), 0), np.float32)
  for begin, chunk in problem.store.chunks():
    own = np.linalg.norm(chunk.T @ left, axis=1)
    norms[begin : begin + len(own)] = own
    high = np.flatnonzero(own > limit)
    high = high[~np.isin(high + begin, working.index, assume_unique=True)]
    high = high[np.argsort(-own[high], kind="stable")[:_JOIN]]
    index = np.concatenate([index, high + begin])
    columns = np.concatenate([columns, chunk[:, high]], axis=1)
    if len(index) > _JOIN:
      best = np.argsort(-norms[index], kind="stable")[:_JOIN]
      index, columns = index[best], columns[:, best]
  order = np.argsort(index)
  return norms, index[order], columns[:, order]


def _joined(
  problem: _Problem, working: _Working, index: np.ndarray, columns: np.ndarray
) -> _Working:
  """The working set with more groups, at zero. Columns are centred: the bias takes up the shift."""
  columns = columns - np.average(columns, axis=0, weights=problem.weights)
  positions = np.concatenate([working.index, index])
  zeros = np.zeros((len(index), working.weights.shape[1]))
  order = np.argsort(positions)
  return _Working(
    positions[order],
    np.concatenate([working.x, columns], axis=1)[:, order],
    np.concatenate([working.weights, zeros])[order],
    working.bias,
  )


def _without_zeros(working: _Working) -> _Working:
  used = np.any(working.weights != 0, axis=1)
  return working._replace(
    index=working.index[used], x=working.x[:, used], weights=working.weights[used]
  )


def _fista(
  problem: _Problem, working: _Working, strength: float, tol: float, max_iterations: int
) -> tuple[_Working, bool]:
  """Proximal steps with momentum, which restarts where it points uphill."""
  weights, bias = working.weights, working.bias
  rate = 1 / max(_curvature(problem, working), 1e-12)
  ahead_w, ahead_b, momentum = weights, bias, 1.0
  for iteration in range(max_iterations):
    left = _residual(problem, _logits(working, ahead_w, ahead_b))
    grad_w, grad_b = working.x.T @ left, left.sum(axis=0)
    new_w = _shrunk(ahead_w - rate * grad_w, rate * strength)
    new_b = ahead_b - grad_b  # its curvature is at most 1/2, and apart from that of the weights
    uphill = np.sum((ahead_w - new_w) * (new_w - weights)) / rate
    uphill += np.sum((ahead_b - new_b) * (new_b - bias))
    grown = 1.0 if uphill > 0 else (1 + np.sqrt(1 + 4 * momentum**2)) / 2
    factor = 0.0 if uphill > 0 else (momentum - 1) / grown
    ahead_w, ahead_b = new_w + factor * (new_w - weights), new_b + factor * (new_b - bias)
    weights, bias, momentum = new_w, new_b, grown
    if iteration % 10 == 9 or not len(weights):
      now = working._replace(weights=weights, bias=bias)
      if _is_optimal(problem, now, strength, tol):
        return now, True
  return working._replace(weights=weights, bias=bias), False


def _is_optimal(problem: _Problem, working: _Working, strength: float, tol: float) -> bool:
  """Whether 0 is within `tol * strength` of each group's subdifferential, and of the bias'."""
  left = _residual(problem, _logits(working, working.weights, working.bias))
  gradient = working.x.T @ left
  norms = np.linalg.norm(working.weights, axis=1, keepdims=True)
  direction = working.weights / np.where(norms > 0, norms, 1)
  rest = np.linalg.norm(gradient + strength * direction, axis=1)
  rest = np.where(norms[:, 0] > 0, rest, rest - strength)
  shift = np.abs(left.sum(axis=0)).max()
  return bool(max(rest.max(initial=0.0), shift) <= tol * strength)


def _shrunk(weights: np.ndarray, by: float) -> np.ndarray:
  """The proximal step: every row shorter by `by`, down to zero."""
  norms = np.linalg.norm(weights, axis=1, keepdims=True)
  return weights * np.maximum(1 - by / np.maximum(norms, 1e-300), 0)


def _curvature(problem: _Problem, working: _Working) -> float:
  """A bound on the second derivative: half the largest eigenvalue of X' diag(w) X / n.

  (Boehning 1992.) By power iteration, with a margin for what it has not converged to.
  """
  x, weights = working.x, problem.weights / len(working.x)
  if not x.shape[1]:
    return 1.0
  v = np.random.default_rng(0).normal(size=(x.shape[1],))
  value = 0.0
  for _ in range(30):
    v /= np.linalg.norm(v)
    v = x.T @ (weights * (x @ v))
    value = float(np.linalg.norm(v))
    if not value:
      return 1.0
  return 0.5 * 1.05 * value
