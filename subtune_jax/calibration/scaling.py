"""Temperature scaling and vector scaling (Guo et al., 2017), fitted on held-out logits.

Both minimise the NLL, which is convex in 1/T and in (scale, bias).
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from subtune_jax.calibration import arrays, checks

Array = arrays.Array

NEWTON_STEPS = 60
LBFGS_MEMORY = 10


def _slopes(xp: ModuleType, z: Array, labels: Array, beta: Array) -> tuple[Array, Array]:
  """First and second derivative by beta = 1/T of each row's NLL."""
  z = arrays.widen(xp, z)
  z = z - z.max(-1, keepdims=True)
  weights = xp.exp(beta * z)
  total = weights.sum(-1)
  mean = (weights * z).sum(-1) / total
  variance = (weights * (z - mean[:, None]) ** 2).sum(-1) / total
  return mean - arrays.at_labels(xp, z, labels), variance


def _newton_step(logits: Array, labels: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
  """One step of Newton's method in beta, kept inside the bracket (low, high)."""
  beta, low, high = state
  slopes = arrays.map_rows(_slopes, (logits, labels), (beta,))
  slope, curvature = (arrays.host(x).mean() for x in slopes)
  xp = arrays.namespace(slope)
  low, high = xp.where(slope < 0, beta, low), xp.where(slope > 0, beta, high)
  guess = beta - slope / xp.where(curvature > 0, curvature, 1)
  inside = ((guess > low) & (guess < high)) | (guess == beta)
  between = xp.where(xp.isinf(high), 2 * beta, (low + xp.where(xp.isinf(high), 0, high)) / 2)
  moved = xp.where(inside, guess, between)
  return xp.where(slope == 0, beta, moved), low, high


def _summary(xp: ModuleType, z: Array, labels: Array) -> tuple[Array, Array]:
  z = arrays.widen(xp, z)
  own = arrays.at_labels(xp, z, labels)
  return own - z.mean(-1), z.max(-1) - own


def fit_temperature(logits: Any, labels: Any) -> arrays.Number:
  """The temperature T that minimises the NLL of logits / T, by Newton's method in 1/T.

  Args:
    logits: [N, C], held out from training. Finite.
    labels: [N].

  Returns:
    T > 0. A traced fit whose optimum is not finite returns an end of its search, one of
    values that are refused NaN.

  Raises:
    ValueError: see `checks`; no finite T > 0 is best: every answer is right (T -> 0), or the
      logits are no better than chance (T -> infinity).

  Logits +-1, three of four right: softmax = 3/4 at a difference of log 3, so T = 2 / log 3.

  >>> round(fit_temperature([[1., -1.]] * 4, [0, 0, 0, 1]), 6)
  1.820478
  """
  logits = checks.logits(logits, finite=True)
  labels = checks.labels(labels, *logits.shape)
  if not (arrays.is_concrete(logits) and arrays.is_concrete(labels)):
    step = lambda _, state: _newton_step(logits, labels, state)  # noqa: E731
    one = jax.numpy.ones((), jax.numpy.promote_types(logits.dtype, "float32"))
    beta = jax.lax.fori_loop(0, NEWTON_STEPS, step, (one, 0 * one, one * np.inf))[0]
    return arrays.nan_unless(checks.valid(logits, labels, finite=True), 1 / beta)
  better, short = map(arrays.host, arrays.map_rows(_summary, (logits, labels)))
  if better.mean() <= 0:
    raise ValueError(
      f"the label's logit exceeds the mean logit by {better.mean():.3g} on average, no better than "
      "chance: no finite T > 0 is best; check the labels"
    )
  if not (short > 0).any():
    raise ValueError(f"every label of the {len(logits)} rows has the largest logit, so T -> 0 is "
                     "best: fit on held-out data with some errors")  # fmt: skip
  state: tuple[Any, ...] = (np.float64(1), np.float64(0), np.float64(np.inf))
  tolerance = 1e-12 if arrays.namespace(logits) is np else 1e-6
  for _ in range(NEWTON_STEPS):
    old, state = state[0], _newton_step(logits, labels, state)
    if abs(state[0] - old) <= tolerance * old:
      break
  return float(1 / state[0])


def apply_temperature(logits: Any, temperature: Any) -> Array:
  """logits / T.

  Args:
    logits: [..., C].
    temperature: T, one number.

  Raises:
    ValueError: see `checks`; T not positive and finite.

  >>> apply_temperature([2., 4.], 2.)
  array([1., 2.])
  """
  logits = checks.logits(logits, rank=None)
  if arrays.is_concrete(temperature) and not 0 < float(temperature) < np.inf:
    raise ValueError(f"temperature is {temperature}: it must be positive and finite")
  temperature = checks.as_array(temperature)
  valid = checks.valid(logits, fits=(temperature > 0) & (temperature < np.inf))
  return arrays.nan_unless(valid, arrays.at_least_float32(logits) / temperature)


class VectorScaling(NamedTuple):
  """logits * scale + bias.

  Attributes:
    scale: [C].
    bias: [C]; of mean 0.
    gradient: largest absolute derivative of the objective left: not small where the steps ran out.
  """

  scale: Array
  bias: Array
  gradient: float


def _vector_sums(xp: ModuleType, z: Array, labels: Array, scale: Array, bias: Array):
  """Sums over rows of the NLL and of its derivatives by scale and bias."""
  z = arrays.widen(xp, z)
  log_p = arrays.log_softmax(xp, z * scale[None] + bias[None])
  hit = xp.arange(z.shape[1])[None] == labels[:, None]
  rest = xp.exp(log_p) - hit
  return -xp.where(hit, log_p, 0).sum(), (rest * z).sum(0), rest.sum(0)


def minimize(
  loss: Callable[[np.ndarray], tuple[float, np.ndarray]],
  start: np.ndarray,
  *,
  max_steps: int,
  tolerance: float,
) -> tuple[np.ndarray, np.ndarray]:
  """L-BFGS with backtracking for a smooth convex function.

  Args:
    loss: point [P] -> (value, gradient [P]).
    start: [P].
    max_steps: at most.
    tolerance: stops where no derivative is larger.

  Returns:
    The point and the gradient there.
  """
  x, pairs = start, list[tuple[np.ndarray, np.ndarray]]()
  value, gradient = loss(x)
  for _ in range(max_steps):
    if abs(gradient).max() <= tolerance:
      break
    direction = -_inverse_hessian(pairs, gradient)
    slope, rate = direction @ gradient, 1.0
    for _ in range(40):
      moved = x + rate * direction
      new_value, new_gradient = loss(moved)
      if new_value <= value + 1e-4 * rate * slope:
        break
      rate /= 2
    else:
      break  # no more descent in this precision
    change = moved - x, new_gradient - gradient
    if change[0] @ change[1] > 0:
      pairs = [*pairs, change][-LBFGS_MEMORY:]
    x, value, gradient = moved, new_value, new_gradient
  return x, gradient


def _inverse_hessian(pairs: list[tuple[np.ndarray, np.ndarray]], g: np.ndarray) -> np.ndarray:
  """The two-loop recursion; without pairs, a step of length 1 at most."""
  if not pairs:
    return g / max(1.0, float(np.linalg.norm(g)))
  weights = []
  for s, y in reversed(pairs):
    weight = (s @ g) / (s @ y)
    weights.append(weight)
    g = g - weight * y
  s, y = pairs[-1]
  g = g * (s @ y) / (y @ y)
  for (s, y), weight in zip(pairs, reversed(weights), strict=True):
    g = g + s * (weight - (y @ g) / (s @ y))
  return g


def fit_vector(
  logits: Any,
  labels: Any,
  *,
  l2: float = 0.0,
  max_steps: int = 500,
  tolerance: float = 1e-7,
) -> VectorScaling:
  """The scale and bias of each class that minimise the NLL, by L-BFGS. Not traced.

  Args:
    logits: [N, C], held out from training. Finite.
    labels: [N]. A class without examples has its best bias at -infinity unless l2 > 0: it is
      refused then.
    l2: weight of (|scale - 1|^2 + |bias|^2) / 2 beside the mean NLL.
    max_steps: at most.
    tolerance: stops where no derivative is larger.

  Returns:
    Scale, bias, and the largest derivative left.

  Raises:
    ValueError: see `checks`; negative l2; a class without examples and l2 = 0; traced input.
  """
  logits = checks.logits(logits, finite=True)
  labels = checks.labels(labels, *logits.shape)
  if not (arrays.is_concrete(logits) and arrays.is_concrete(labels)):
    raise ValueError("fit_vector searches on the host and cannot be traced: call it outside jit")
  if not 0 <= l2 < np.inf:
    raise ValueError(f"l2 is {l2}: it must be 0 or positive, and finite")
  n, num_classes = logits.shape
  empty = np.setdiff1d(np.arange(num_classes), np.asarray(labels))
  if empty.size and l2 == 0:
    raise ValueError(f"classes {empty[:5].tolist()} have no examples ({empty.size} classes), so "
                     "no finite bias is best for them: give l2 > 0, or drop them")  # fmt: skip
  start = np.concatenate([np.ones(num_classes), np.zeros(num_classes)])

  def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
    sums = arrays.sum_rows(_vector_sums, (logits, labels), (x[:num_classes], x[num_classes:]))
    value, by_scale, by_bias = map(arrays.host, sums)
    away = x - start
    gradient = np.concatenate([by_scale, by_bias]) / n + l2 * away
    return float(value) / n + l2 * (away @ away) / 2, gradient

  x, gradient = minimize(loss, start, max_steps=max_steps, tolerance=tolerance)
  bias = x[num_classes:]
  return VectorScaling(x[:num_classes], bias - bias.mean(), float(abs(gradient).max()))


def apply_vector(logits: Any, scaling: VectorScaling) -> Array:
  """logits * scale + bias.

  Args:
    logits: [..., C].
    scaling: of `fit_vector`.

  Raises:
    ValueError: see `checks`; another number of classes.

  >>> apply_vector([1., 2.], VectorScaling(np.array([2., 1.]), np.array([.5, -.5]), 0.))
  array([2.5, 1.5])
  """
  logits = checks.logits(logits, rank=None)
  if scaling.scale.shape != logits.shape[-1:]:
    raise ValueError(f"the scaling is for {scaling.scale.shape[0]} classes, the logits have "
                     f"{logits.shape[-1]}")  # fmt: skip
  shape = (1,) * (logits.ndim - 1) + (-1,)
  logits = arrays.at_least_float32(logits)
  return logits * scaling.scale.reshape(shape) + scaling.bias.reshape(shape)
