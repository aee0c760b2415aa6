"""Linear probe: L2-regularised multinomial logistic regression on cached features, by L-BFGS.

The probe of LP-FT (Kumar et al., ICLR 2022): a grid of strengths is fitted on the features of the
training images and one is chosen on the validation images. The path runs from the strongest
regularisation to the weakest and each fit starts from the one before it.

Three changes of variable leave the optimum where it is and make it cheap to reach:
  - each feature is centred: the intercept is not penalised, so it takes up the shift;
  - features are rotated to their principal axes: the penalty does not see a rotation, and with
    fewer examples than features the optimum lies in the span of the examples;
  - each rotated weight is divided by the root of its own second derivative at the start.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

Standardize = Literal["scalar", "feature", "none"]
STANDARDIZE = ("scalar", "feature", "none")

# Principal axes with less than this share of the largest axis' variance are rounding errors.
_RANK_TOLERANCE = 1e-13
_CHUNK = 8192
# 10 pairs save 8 % of the iterations, with the preconditioner, and make each 15 % slower on a CPU.
_MEMORY_SIZE = 5


class ProbePath(NamedTuple):
  """One linear head per strength, in the order the strengths were given.

  Attributes:
    kernel: [num_strengths, num_features, num_classes] float32, acts on raw features.
    bias: [num_strengths, num_classes] float32.
    objective: [num_strengths] value reached, see `fit_path`.
    gradient_norm: [num_strengths] Euclidean norm of the objective's gradient in the weights of the
      standardised, centred features and the intercept.
    iterations: [num_strengths] L-BFGS iterations.
    converged: [num_strengths] bool, whether the tolerance was met.
    l2: [num_strengths] the strengths.
  """

  kernel: np.ndarray
  bias: np.ndarray
  objective: np.ndarray
  gradient_norm: np.ndarray
  iterations: np.ndarray
  converged: np.ndarray
  l2: np.ndarray

  def head(self, index: int) -> dict[str, np.ndarray]:
    """Returns the parameters of one head: a model's `params["head"]`."""
    return {"kernel": self.kernel[index], "bias": self.bias[index]}


class Choice(NamedTuple):
  """The strength that `choose` took.

  Attributes:
    index: position in the path.
    at_edge: it is the strongest or the weakest of several strengths, so the best one may lie
      outside the grid.
    accuracy: [num_strengths] share of the examples classified rightly.
    loss: [num_strengths] mean cross-entropy.
  """

  index: int
  at_edge: bool
  accuracy: np.ndarray
  loss: np.ndarray


class _Rotation(NamedTuple):
  """scores = (features - center) / scale @ basis; basis has orthonormal columns."""

  scores: np.ndarray  # [n, r] float64
  basis: np.ndarray  # [d, r] float64
  center: np.ndarray  # [d] float64
  scale: np.ndarray  # [d] float64


class _Weights(NamedTuple):
  kernel: jax.Array  # [r, C]
  bias: jax.Array  # [C]


class _Solution(NamedTuple):
  weights: _Weights
  objective: jax.Array
  gradient_norm: jax.Array
  iterations: jax.Array
  converged: jax.Array


def lpft_strengths(num_examples: int, num: int = 50) -> np.ndarray:
  """Returns LP-FT's grid: scikit-learn's C over logspace(-7, 2), as l2 = 1 / (C * num_examples)."""
  return 1.0 / (np.logspace(-7, 2, num) * num_examples)


def fit_path(
  features: npt.ArrayLike,
  labels: npt.ArrayLike,
  *,
  num_classes: int,
  l2: Sequence[float],
  standardize: Standardize = "scalar",
  tol: float = 1e-7,
  max_iterations: int = 1000,
) -> ProbePath:
  """Fits one linear head per strength of regularisation.

  The objective is mean cross-entropy + l2 / 2 * ||W||^2, where W are the weights on the
  standardised features; the intercept is free. scikit-learn's `LogisticRegression(C=c)` has the
  same optimum at l2 = 1 / (c * n) for three classes or more. For two it fits one vector w, which is
  the softmax of +w/2 and -w/2, and the optimum is the same at l2 = 2 / (c * n).

  A class without an example is left out of the fit. (With a free intercept its bias would go to
  -inf.) It gets a zero kernel and the bias -log(2 * n). The logits of the classes that were fitted
  sum to zero for every input, so their maximum is never below zero, an absent class never wins, and
  its probability is at most 1 / (2 * n * number of fitted classes). Fine-tuning can start there.

  Args:
    features: [n, num_features] raw features of the training images.
    labels: [n] integers in [0, num_classes).
    num_classes: number of columns of the head.
    l2: positive strengths, any number of them in any order. They are traced: a second grid costs no
      compilation.
    standardize: "scalar": one mean and one standard deviation over all features (LP-FT); "feature":
      one each per feature; "none". It is folded back: the heads act on raw features.
    tol: relative tolerance on the objective. A fit stops when half the squared norm of the
      preconditioned gradient, an estimate of objective - optimum, is below `tol * objective`.
    max_iterations: L-BFGS iterations per strength.

  Returns:
    A `ProbePath`. Fits that did not reach `tol` are flagged in it and logged.

  Raises:
    ValueError: features or labels are empty, misshapen, not finite or out of range, fewer than two
      classes are present, all examples are equal, or an option is not allowed.
  """
  features, labels = _checked_data(features, labels, num_classes)
  l2 = _checked_options(l2, standardize, tol, max_iterations)
  present, classes = np.unique(labels, return_inverse=True)
  if len(present) < 2:
    raise ValueError(
      f"all {len(labels)} training labels are {present[0]}: a probe needs examples of two classes"
    )
  rotation = _rotate(features, standardize)
  solutions = _solve_path(rotation.scores, classes, l2, tol, max_iterations)
  path = _empty_path(l2, features.shape[1], num_classes)
  path.bias[:] = -np.log(2 * len(labels))
  for index, solution in solutions:
    kernel, bias = _unrotate(rotation, solution.weights)
    path.kernel[index][:, present], path.bias[index, present] = kernel, bias
    for name in ("objective", "gradient_norm", "iterations", "converged"):
      getattr(path, name)[index] = getattr(solution, name)
  _warn_unconverged(path, tol, max_iterations)
  return path


def choose(path: ProbePath, features: npt.ArrayLike, labels: npt.ArrayLike) -> Choice:
  """Chooses the strength with the highest accuracy on held-out examples.

  Ties go to the stronger regularisation (LP-FT's rule: its path runs from strong to weak and the
  first maximum is kept).

  Args:
    path: heads, from `fit_path`.
    features: [n, num_features] raw validation features.
    labels: [n] validation labels. A class that had no training example counts as missed.

  Returns:
    The `Choice`; one at the grid's edge is also logged.

  Raises:
    ValueError: the examples are empty, misshapen, not finite or out of range.
  """
  num_features, num_classes = path.kernel.shape[1:]
  features, labels = _checked_data(features, labels, num_classes)
  if features.shape[1] != num_features:
    raise ValueError(
      f"validation features have {features.shape[1]} columns and the path was fitted on"
      f" {num_features}: use the same backbone for both"
    )
  images = jnp.asarray(features)
  correct, loss = zip(
    *(_score(k, b, images, labels) for k, b in zip(path.kernel, path.bias, strict=True)),
    strict=True,
  )
  correct = np.array(correct)
  index = max(range(len(correct)), key=lambda i: (correct[i], path.l2[i]))
  at_edge = len(correct) > 1 and path.l2[index] in (path.l2.min(), path.l2.max())
  if at_edge:
    logging.warning(
      "probe: the chosen strength l2=%g is at the edge of the grid [%g, %g]; widen it",
      path.l2[index],
      path.l2.min(),
      path.l2.max(),
    )
  return Choice(index, bool(at_edge), correct / len(labels), np.array(loss))


@jax.jit
def _score(
  kernel: jax.Array, bias: jax.Array, features: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the number of right answers and the mean cross-entropy."""
  logits = jnp.dot(features, kernel, precision=jax.lax.Precision.HIGHEST) + bias[None]
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  return jnp.sum(jnp.argmax(logits, axis=-1) == labels), loss


def _checked_data(
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
  return features.astype(np.float32), labels.astype(np.int32)


def _checked_options(
  l2: Sequence[float], standardize: str, tol: float, max_iterations: int
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
  return strengths


def _empty_path(l2: np.ndarray, num_features: int, num_classes: int) -> ProbePath:
  k = len(l2)
  return ProbePath(
    kernel=np.zeros([k, num_features, num_classes], np.float32),
    bias=np.zeros([k, num_classes], np.float32),
    objective=np.zeros(k),
    gradient_norm=np.zeros(k),
    iterations=np.zeros(k, np.int32),
    converged=np.zeros(k, bool),
    l2=l2,
  )


def _warn_unconverged(path: ProbePath, tol: float, max_iterations: int) -> None:
  if not path.converged.all():
    logging.warning(
      "probe: %d of %d strengths did not reach tol=%g within %d iterations, the first is l2=%g;"
      " raise max_iterations, loosen tol or leave out the weakest strengths",
      np.sum(~path.converged),
      len(path.l2),
      tol,
      max_iterations,
      path.l2[~path.converged][0],
    )


def _rotate(features: np.ndarray, standardize: Standardize) -> _Rotation:
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
    return _Rotation(centred @ axes, axes, center, scale)
  length = np.sqrt(variance[keep])[None]
  return _Rotation(axes * length, centred.T @ (axes / length), center, scale)


def _gram(x: np.ndarray) -> np.ndarray:
  """Returns x.T @ x; in pieces, which numpy's BLAS sums more accurately than one long dot."""
  return sum(x[i : i + _CHUNK].T @ x[i : i + _CHUNK] for i in range(0, len(x), _CHUNK))


def _unrotate(rotation: _Rotation, weights: _Weights) -> tuple[np.ndarray, np.ndarray]:
  """Returns the kernel [d, C] and bias [C] that act on raw features."""
  kernel = rotation.basis.astype(np.float32) @ weights.kernel / rotation.scale[:, None]
  kernel = kernel.astype(np.float32)
  # From the rounded kernel, so that rounding it shifts no logit at the mean of the features.
  return kernel, weights.bias - rotation.center @ kernel


def _solve_path(
  scores: np.ndarray, classes: np.ndarray, l2: np.ndarray, tol: float, max_iterations: int
) -> list[tuple[int, _Solution]]:
  """Returns (position, solution) pairs, from the strongest to the weakest regularisation.

  Each fit starts from the last optimum, or further along the line through the last two (over
  log l2) where that is better.
  """
  order = np.argsort(-l2, kind="stable")
  steps = _extrapolation(np.log(l2[order]))
  log_count = np.log(np.bincount(classes))
  onehot = jax.nn.one_hot(classes, len(log_count), dtype=jnp.float32)
  scores = jnp.asarray(scores, jnp.float32)
  last = previous = _Weights(
    kernel=jnp.zeros((scores.shape[1], len(log_count)), jnp.float32),
    bias=jnp.asarray(log_count - log_count.mean(), jnp.float32),
  )
  solutions = []
  for index, step in zip(order, steps, strict=True):
    options = np.array([l2[index], tol, step], np.float32)
    solution = _solve(scores, onehot, last, previous, options, np.int32(max_iterations))
    last, previous = solution.weights, last
    solutions.append((int(index), jax.device_get(solution)))
  return solutions


def _extrapolation(log_l2: np.ndarray) -> np.ndarray:
  """Returns each spacing of the grid over the one before it; 0 where there is none."""
  steps = np.zeros(len(log_l2))
  spacing = np.diff(log_l2)
  np.divide(spacing[1:], spacing[:-1], out=steps[2:], where=spacing[:-1] != 0)
  return steps


@jax.jit
def _solve(
  scores: jax.Array,
  onehot: jax.Array,
  last: _Weights,
  previous: _Weights,
  options: jax.Array,
  max_iterations: jax.Array,
) -> _Solution:
  """Fits one strength by L-BFGS; `options` are (l2, tol, step of the extrapolation)."""
  l2, tol, step = options
  start = _start(scores, onehot, last, previous, l2, step)
  unit = _curvature_units(scores, start, l2)

  def objective(variables):
    return _objective(scores, onehot, jax.tree.map(jnp.multiply, variables, unit), l2)

  optimizer = optax.lbfgs(memory_size=_MEMORY_SIZE)
  value_and_grad = optax.value_and_grad_from_state(objective)

  def proceed(carry):
    _, state, iteration = carry
    failed = optax.tree.get(state, "decrease_error") > 0
    return (iteration < max_iterations) & ~_small(state, tol) & ~failed

  def iterate(carry):
    variables, state, iteration = carry
    value, grad = value_and_grad(variables, state=state)
    updates, state = optimizer.update(
      grad, state, variables, value=value, grad=grad, value_fn=objective
    )
    return optax.apply_updates(variables, updates), state, iteration + 1

  variables = jax.tree.map(jnp.divide, start, unit)
  value, grad = jax.value_and_grad(objective)(variables)
  state = optax.tree.set(optimizer.init(variables), value=value, grad=grad, decrease_error=0.0)
  carry = (variables, state, np.int32(0))
  variables, state, iterations = jax.lax.while_loop(proceed, iterate, carry)
  weights = _centred(jax.tree.map(jnp.multiply, variables, unit))
  grad = _centred(jax.tree.map(jnp.divide, optax.tree.get(state, "grad"), unit))
  return _Solution(
    weights=weights,
    objective=_objective(scores, onehot, weights, l2),
    gradient_norm=optax.tree.norm(grad),
    iterations=iterations,
    converged=_small(state, tol),
  )


def _centred(weights: _Weights) -> _Weights:
  """Takes out the mean over classes: no probability depends on it, and the penalty falls.

  The gradient at the centred weights is the centred gradient.
  """
  return jax.tree.map(lambda x: x - x.mean(axis=-1, keepdims=True), weights)


def _small(state: optax.OptState, tol: jax.Array) -> jax.Array:
  """Whether the estimated distance to the optimum is below tol times the objective."""
  grad = optax.tree.get(state, "grad")
  return 0.5 * optax.tree.norm(grad, squared=True) <= tol * optax.tree.get(state, "value")


def _start(
  scores: jax.Array,
  onehot: jax.Array,
  last: _Weights,
  previous: _Weights,
  l2: jax.Array,
  step: jax.Array,
) -> _Weights:
  """Returns the last optimum or the point extrapolated from the last two, whichever is lower."""
  further = jax.tree.map(lambda new, old: new + step * (new - old), last, previous)
  better = _objective(scores, onehot, further, l2) < _objective(scores, onehot, last, l2)
  return jax.tree.map(lambda a, b: jnp.where(better, a, b), further, last)


def _curvature_units(scores: jax.Array, weights: _Weights, l2: jax.Array) -> _Weights:
  """Returns 1 / sqrt(second derivative) of the objective in each weight: a preconditioner."""
  probability = jax.nn.softmax(_logits(scores, weights), axis=-1)
  spread = probability * (1 - probability) / scores.shape[0]
  kernel = jnp.dot((scores * scores).T, spread, precision=jax.lax.Precision.HIGHEST) + l2
  bias = spread.sum(axis=0) + jnp.finfo(scores.dtype).eps
  return _Weights(jax.lax.rsqrt(kernel), jax.lax.rsqrt(bias))


def _logits(scores: jax.Array, weights: _Weights) -> jax.Array:
  return jnp.dot(scores, weights.kernel, precision=jax.lax.Precision.HIGHEST) + weights.bias[None]


def _objective(scores: jax.Array, onehot: jax.Array, weights: _Weights, l2: jax.Array) -> jax.Array:
  """Returns mean cross-entropy + l2 / 2 * ||kernel||^2.

  The cross-entropy is taken from the differences to the true class' logit, so that a small loss
  keeps its relative precision: logsumexp minus that logit cancels to noise in float32, on which the
  line search stalls.
  """
  logits = _logits(scores, weights)
  margin = logits - jnp.sum(onehot * logits, axis=-1, keepdims=True)
  shift = jax.lax.stop_gradient(jnp.maximum(margin.max(axis=-1), 0))
  others = jnp.sum(jnp.where(onehot > 0, 0, jnp.exp(margin - shift[:, None])), axis=-1)
  loss = shift + jnp.log1p(jnp.expm1(-shift) + others)
  return loss.mean() + 0.5 * l2 * jnp.sum(weights.kernel * weights.kernel)
