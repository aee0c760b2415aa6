"""Linear probe: L2-regularised multinomial logistic regression on cached features, by L-BFGS.

The probe of LP-FT (Kumar et al., ICLR 2022): a grid of strengths is fitted on the features of the
training images and one is chosen on the validation images. The path runs from the strongest
regularisation to the weakest and each fit starts from the one before it.

Two changes of variable leave the optimum where it is and make it cheap to reach:
  - each feature is centred: the intercept is not penalised, so it takes up the shift;
  - features are rotated to their principal axes: the penalty does not see a rotation, and with
    fewer examples than features the optimum lies in the span of the examples.
L-BFGS starts from the second derivative in each rotated weight, and keeps its memory along the
path: another strength changes it by a known amount. An iteration takes two products with the
features, one for the logits along the direction and one for the gradient; the line search none.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from subtune_jax.training import divergence

Standardize = Literal["scalar", "feature", "none"]
STANDARDIZE = ("scalar", "feature", "none")

# Principal axes with less than this share of the largest axis' variance are rounding errors.
_RANK_TOLERANCE = 1e-13
_CHUNK = 8192
# 12 pairs save 5 to 20 % of the iterations, and each takes longer by as much on a CPU.
_MEMORY_SIZE = 5
# The line search ends at this share of the slope at its start, or after so many trials.
_SLOPE_SHARE = 0.3
_TRIALS = 20
# Paths are filled up to a multiple of so many strengths: grids of about one length share a program.
_PATH_MULTIPLE = 16
# A fit ends when its objective has not fallen for so many iterations: float32 is exhausted.
_PATIENCE = 10


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
    accuracy: [num_strengths] share of the examples classified rightly; NaN where the head or a
      logit is not finite: such a strength is never taken.
    loss: [num_strengths] mean cross-entropy; NaN likewise.
  """

  index: int
  at_edge: bool
  accuracy: np.ndarray
  loss: np.ndarray


class _Rotation(NamedTuple):
  """scores = (features - center) / scale @ basis; basis has orthonormal columns."""

  scores: np.ndarray  # [n, r] float64
  basis: np.ndarray  # [d, r] float32
  center: np.ndarray  # [d] float64
  scale: np.ndarray  # [d] float64


class _Point(NamedTuple):
  """Weights, and what follows from them under a strength.

  Attributes:
    weights: [C, r + 1] of the scores; the last column is the intercept.
    margins: [C, n] logits less the true class' logit.
    others: [C, n] probabilities of all but the true class, 0 for it.
    loss: mean cross-entropy.
    objective: see `fit_path`.
    gradient: [C, r + 1] of the objective.
    l2: the strength.
  """

  weights: jax.Array
  margins: jax.Array
  others: jax.Array
  loss: jax.Array
  objective: jax.Array
  gradient: jax.Array
  l2: jax.Array


class _Memory(NamedTuple):
  """The newest steps of L-BFGS, in a ring of m; zeros where there is none.

  Attributes:
    steps: [m, C, r + 1] of the weights.
    changes: [m, C, r + 1] of the gradient under `l2`, from each step.
    products: [m] of each step and its change.
    count: steps so far.
    l2: the strength.
  """

  steps: jax.Array
  changes: jax.Array
  products: jax.Array
  count: jax.Array
  l2: jax.Array


class _Search(NamedTuple):
  """A fit under way."""

  point: _Point
  curvature: jax.Array  # [C, r + 1] of the mean cross-entropy, at an earlier point
  memory: _Memory
  least: jax.Array  # the least objective so far
  waited: jax.Array  # iterations since then
  iterations: jax.Array


class _Solution(NamedTuple):
  weights: jax.Array  # [C, r + 1]
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
  tol: float = 1e-6,
  max_iterations: int = 1000,
  max_steps: int | None = None,
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
      compilation, unless it is longer by more than what fills a multiple of 16.
    standardize: "scalar": one mean and one standard deviation over all features (LP-FT); "feature":
      one each per feature; "none". It is folded back: the heads act on raw features.
    tol: relative tolerance on the objective. A fit stops when half the squared norm of the
      preconditioned gradient, an estimate of objective - optimum, is below `tol * objective`.
    max_iterations: L-BFGS iterations per strength.
    max_steps: stop every strength after so many iterations from the zero head: partly converged
      heads, which do not depend on the rest of the grid. None: fit to `tol`, along the path.

  Returns:
    A `ProbePath`. Fits that did not reach `tol` are flagged in it and, unless `max_steps` asked for
    that, logged.

  Raises:
    ValueError: features or labels are empty, misshapen, not finite or out of range, fewer than two
      classes are present, all examples are equal, or an option is not allowed.
  """
  features, labels = _checked_data(features, labels, num_classes)
  l2 = _checked_options(l2, standardize, tol, max_iterations, max_steps)
  present, classes = np.unique(labels, return_inverse=True)
  if len(present) < 2:
    raise ValueError(
      f"all {len(labels)} training labels are {present[0]}: a probe needs examples of two classes"
    )
  rotation = _rotate(features, standardize)
  solve = _solve_path if max_steps is None else _solve_each
  solutions = solve(rotation.scores, classes, l2, tol, max_steps or max_iterations)
  path = _empty_path(l2, features.shape[1], num_classes)
  path.bias[:] = -np.log(2 * len(labels))
  for index, solution in solutions:
    kernel, bias = _unrotate(rotation, solution.weights)
    path.kernel[index][:, present], path.bias[index, present] = kernel, bias
    for name in ("objective", "gradient_norm", "iterations", "converged"):
      getattr(path, name)[index] = getattr(solution, name)
  if max_steps is None:
    _warn_unconverged(path, tol, max_iterations)
  return path


def rescale(head: Mapping[str, npt.ArrayLike], std: float) -> dict[str, np.ndarray]:
  """Multiplies kernel and bias by the number that gives the kernel the standard deviation `std`.

  LP-FT's `normalize_lp`, with `std` of the random head that the probe replaces: fine-tuning starts
  from the probe's directions at the size of a random head. No class prediction changes; an absent
  class still never wins, but its probability is no longer bounded as in `fit_path`.

  Args:
    head: {"kernel": [num_features, num_classes], "bias": [num_classes]}.
    std: positive, over all entries of the kernel.

  Raises:
    ValueError: `std` is not positive and finite, or all entries of the kernel are equal.
  """
  own = float(np.std(head["kernel"], dtype=np.float64))
  if not (std > 0 and np.isfinite(std)):
    raise ValueError(
      f"cannot rescale a head to the standard deviation {std}: the head that it replaces must be a"
      " random one"
    )
  if not own > 0:
    raise ValueError("cannot rescale a head whose weights are all equal")
  return {name: np.asarray(value) * np.float32(std / own) for name, value in head.items()}


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
    ValueError: the examples are empty, misshapen, not finite or out of range, or the head of no
      strength is finite.
  """
  num_features, num_classes = path.kernel.shape[1:]
  features, labels = _checked_data(features, labels, num_classes)
  if features.shape[1] != num_features:
    raise ValueError(
      f"validation features have {features.shape[1]} columns and the path was fitted on"
      f" {num_features}: use the same backbone for both"
    )
  correct, loss = jax.device_get(_score(path.kernel, path.bias, features, labels))
  finite = np.flatnonzero(np.isfinite(loss))
  if not len(finite):
    raise divergence.NonFiniteLossError(
      f"the heads of all {len(loss)} strengths are not finite; use stronger regularisation, or"
      " standardize the features"
    )
  index = int(max(finite, key=lambda i: (correct[i], path.l2[i])))
  at_edge = len(correct) > 1 and path.l2[index] in (path.l2.min(), path.l2.max())
  if at_edge:
    logging.warning(
      "probe: the chosen strength l2=%g is at the edge of the grid [%g, %g]; widen it",
      path.l2[index],
      path.l2.min(),
      path.l2.max(),
    )
  accuracy = np.where(np.isfinite(loss), correct / len(labels), np.nan)
  return Choice(index, bool(at_edge), accuracy, np.where(np.isfinite(loss), loss, np.nan))


@jax.jit
def _score(
  kernels: jax.Array, biases: jax.Array, features: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the number of right answers and the mean cross-entropy of each head."""

  def of_one(head):
    kernel, bias = head
    logits = jnp.dot(features, kernel, precision=jax.lax.Precision.HIGHEST) + bias[None]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    loss = jnp.where(jnp.isfinite(logits).all(), loss, jnp.nan)
    return jnp.sum(jnp.argmax(logits, axis=-1) == labels), loss

  return jax.lax.map(of_one, (kernels, biases))


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
  l2: Sequence[float], standardize: str, tol: float, max_iterations: int, max_steps: int | None
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
  if max_steps is not None and max_steps < 1:
    raise ValueError(f"max_steps is {max_steps}: give at least 1, or None to converge")
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
    return _Rotation(centred @ axes, axes.astype(np.float32), center, scale)
  length = np.sqrt(variance[keep])[None]
  basis = centred.T @ (axes / length)
  return _Rotation(axes * length, basis.astype(np.float32), center, scale)


def _gram(x: np.ndarray) -> np.ndarray:
  """Returns x.T @ x; in pieces, which numpy's BLAS sums more accurately than one long dot."""
  return sum(x[i : i + _CHUNK].T @ x[i : i + _CHUNK] for i in range(0, len(x), _CHUNK))


def _unrotate(rotation: _Rotation, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the kernel [d, C] and bias [C] that act on raw features."""
  kernel = rotation.basis @ weights[:, :-1].T / rotation.scale[:, None]
  kernel = kernel.astype(np.float32)
  # From the rounded kernel, so that rounding it shifts no logit at the mean of the features.
  return kernel, weights[:, -1] - rotation.center @ kernel


def _solve_path(
  scores: np.ndarray, classes: np.ndarray, l2: np.ndarray, tol: float, max_iterations: int
) -> list[tuple[int, _Solution]]:
  """Returns (position, solution) pairs, from the strongest to the weakest regularisation.

  Each fit starts from the last optimum, goes first along the line through the last two (over
  log l2), and knows the curvature that the fits before it have met.
  """
  order = np.argsort(-l2, kind="stable")
  steps = _extrapolation(np.log(l2[order]))
  options = np.zeros((-len(l2) % _PATH_MULTIPLE + len(l2), 4), np.float32)
  options[:, 0] = l2[order[-1]]  # rows that fill up take no iteration
  options[: len(l2)] = np.stack(
    [l2[order], np.full(len(l2), tol), steps, np.full(len(l2), max_iterations)], axis=1
  )
  scores, labels = _device_data(scores, classes)
  log_count = np.log(np.bincount(classes))
  start = _begin(scores, labels, np.float32(log_count - log_count.mean()))
  solutions = jax.device_get(_follow(scores, labels, *start, options))
  return [
    (int(index), _Solution(*(column[row] for column in solutions)))
    for row, index in enumerate(order)
  ]


def _solve_each(
  scores: np.ndarray, classes: np.ndarray, l2: np.ndarray, tol: float, max_iterations: int
) -> list[tuple[int, _Solution]]:
  """Returns (position, solution) pairs; each fit starts from the zero head."""
  scores, labels = _device_data(scores, classes)
  point, curvature, memory = _begin(scores, labels, np.zeros(classes.max() + 1, np.float32))
  solutions = []
  for index, strength in enumerate(l2):
    options = np.array([strength, tol, 0, max_iterations], np.float32)
    solution, *_ = _solve(scores, labels, point, point.weights, curvature, memory, options)
    solutions.append((index, solution))
  return jax.device_get(solutions)


def _device_data(scores: np.ndarray, classes: np.ndarray) -> tuple[jax.Array, jax.Array]:
  """Returns the scores with a column of ones [n, r + 1], and the labels [1, n]."""
  scores = np.pad(scores, ((0, 0), (0, 1)), constant_values=1)
  return jnp.asarray(scores, jnp.float32), jnp.asarray(classes[None], jnp.int32)


def _extrapolation(log_l2: np.ndarray) -> np.ndarray:
  """Returns each spacing of the grid over the one before it; 0 where there is none."""
  steps = np.zeros(len(log_l2))
  spacing = np.diff(log_l2)
  np.divide(spacing[1:], spacing[:-1], out=steps[2:], where=spacing[:-1] != 0)
  return steps


@jax.jit
def _begin(
  scores: jax.Array, labels: jax.Array, bias: jax.Array
) -> tuple[_Point, jax.Array, _Memory]:
  """Returns the point where all weights are zero but the intercepts, and an empty memory."""
  weights = jnp.zeros((len(bias), scores.shape[1])).at[:, -1].set(bias)
  margins = _margins(scores, labels, weights)
  point = _point(scores, labels, weights, margins, *_others(labels, margins), jnp.float32(0))
  zeros = jnp.zeros((_MEMORY_SIZE, *weights.shape))
  memory = _Memory(zeros, zeros, jnp.zeros(_MEMORY_SIZE), jnp.int32(0), jnp.float32(0))
  return point, _curvature(scores, labels, point), memory


@jax.jit
def _follow(
  scores: jax.Array,
  labels: jax.Array,
  point: _Point,
  curvature: jax.Array,
  memory: _Memory,
  options: jax.Array,
) -> _Solution:
  """Fits one strength after the other, as one program; `options` [k, 4], see `_solve`."""

  def fit(carry, own):
    previous, point, curvature, memory = carry
    solution, *after = _solve(scores, labels, point, previous, curvature, memory, own)
    return (point.weights, *after), solution

  return jax.lax.scan(fit, (point.weights, point, curvature, memory), options)[1]


@jax.jit
def _solve(
  scores: jax.Array,
  labels: jax.Array,
  point: _Point,
  previous: jax.Array,
  curvature: jax.Array,
  memory: _Memory,
  options: jax.Array,
) -> tuple[_Solution, _Point, jax.Array, _Memory]:
  """Fits one strength by L-BFGS, from a point and the memory of another strength.

  Args:
    scores: [n, r + 1].
    labels: [1, n].
    point: where to start.
    previous: [C, r + 1] the optimum before `point`.
    curvature: [C, r + 1] of the mean cross-entropy, at `point`.
    memory: of earlier fits.
    options: [4] l2, tol, the step of the extrapolation (the first direction is this times
      `point.weights - previous`, unless it is 0), and the most iterations.

  Returns:
    The solution; and for the next strength the point, the curvature there, and the memory.
  """
  l2, tol, step, max_iterations = options
  extrapolation = step * (point.weights - previous)
  point, memory = _point_under(point, l2), _memory_under(memory, l2)

  def goes_on(search):
    small = _decrease(search.point, search.curvature) <= tol * search.point.objective
    return ~small & (search.iterations < max_iterations) & (search.waited < _PATIENCE)

  def iterate(search):
    point = search.point
    direction = -_inverse_hessian(search.memory, _unit(search.curvature, l2), point.gradient)
    direction = jnp.where((search.iterations == 0) & (step != 0), extrapolation, direction)
    new = _line_search(scores, labels, point, direction)
    better = new.objective < search.least
    return search._replace(
      point=new,
      memory=_remember(search.memory, new.weights - point.weights, new.gradient - point.gradient),
      least=jnp.minimum(new.objective, search.least),
      waited=jnp.where(better, 0, search.waited + 1),
      iterations=search.iterations + 1,
    )

  def until_small(search):  # by the old curvature; `goes_on` then decides by the new one
    search = jax.lax.while_loop(goes_on, iterate, search)
    return search._replace(curvature=_curvature(scores, labels, search.point))

  search = _Search(point, curvature, memory, point.objective, np.int32(0), np.int32(0))
  search = jax.lax.while_loop(goes_on, until_small, search)
  converged = _decrease(search.point, search.curvature) <= tol * search.point.objective
  point = _centred(search.point)
  norm = jnp.linalg.norm(point.gradient)
  solution = _Solution(point.weights, point.objective, norm, search.iterations, converged)
  return solution, point, search.curvature, search.memory


def _unit(curvature: jax.Array, l2: jax.Array) -> jax.Array:
  """Returns 1 / second derivative of the objective in each weight: a preconditioner."""
  return 1 / (curvature + _without_intercept(jnp.full_like(curvature[:1], l2)))


def _decrease(point: _Point, curvature: jax.Array) -> jax.Array:
  """Estimates objective - optimum: half the squared norm of the preconditioned gradient."""
  return 0.5 * jnp.sum(_unit(curvature, point.l2) * point.gradient * point.gradient)


def _centred(point: _Point) -> _Point:
  """Takes out the mean over classes: no probability depends on it, and the penalty falls.

  The gradient at the centred weights is the centred gradient.
  """
  mean = point.weights.mean(axis=0, keepdims=True)
  saved = 0.5 * point.l2 * len(point.weights) * jnp.sum(_without_intercept(mean) * mean)
  return point._replace(
    weights=point.weights - mean,
    objective=point.objective - saved,
    gradient=point.gradient - point.gradient.mean(axis=0, keepdims=True),
  )


def _without_intercept(weights: jax.Array) -> jax.Array:
  """The weights that are penalised, and 0 for the intercept."""
  return weights.at[..., -1].set(0)


def _point_under(point: _Point, l2: jax.Array) -> _Point:
  """The same weights under another strength."""
  penalty = (l2 - point.l2) * _without_intercept(point.weights)
  objective = point.objective + 0.5 * jnp.sum(penalty * point.weights)
  return point._replace(objective=objective, gradient=point.gradient + penalty, l2=l2)


def _memory_under(memory: _Memory, l2: jax.Array) -> _Memory:
  """The same steps under another strength."""
  changes = memory.changes + (l2 - memory.l2) * _without_intercept(memory.steps)
  products = jnp.sum(changes * memory.steps, axis=(1, 2))
  return memory._replace(changes=changes, products=products, l2=l2)


def _margins(scores: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
  """Returns the logits less the true class' logit: [C, n]."""
  logits = jnp.dot(weights, scores.T, precision=jax.lax.Precision.HIGHEST)
  return logits - jnp.take_along_axis(logits, labels, axis=0, mode="promise_in_bounds")


def _is_true(labels: jax.Array, num_classes: int) -> jax.Array:
  """[C, n] bool, whether the class is the label."""
  return jax.lax.broadcasted_iota(jnp.int32, (num_classes, labels.shape[1]), 0) == labels


def _others(labels: jax.Array, margins: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the probabilities [C, n] of all but the true class, 0 for it, and the mean loss.

  Both come from the differences to the true class' logit, so that a small loss keeps its relative
  precision: logsumexp minus that logit cancels to noise in float32, on which a fit stalls.
  """
  shift = jnp.maximum(margins.max(axis=0, keepdims=True), 0)
  others = jnp.where(_is_true(labels, len(margins)), 0, jnp.exp(margins - shift))
  excess = jnp.expm1(-shift) + others.sum(axis=0, keepdims=True)
  return others * (1 / (1 + excess)), (shift + jnp.log1p(excess)).mean()


def _point(
  scores: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  margins: jax.Array,
  others: jax.Array,
  loss: jax.Array,
  l2: jax.Array,
) -> _Point:
  """The point at some weights, for which all but the objective and its gradient is known."""
  true = -others.sum(axis=0, keepdims=True)
  residual = jnp.where(_is_true(labels, len(others)), true, others) / len(scores)
  penalty = l2 * _without_intercept(weights)
  gradient = jnp.dot(residual, scores, precision=jax.lax.Precision.HIGHEST) + penalty
  objective = loss + 0.5 * jnp.sum(penalty * weights)
  return _Point(weights, margins, others, loss, objective, gradient, l2)


def _curvature(scores: jax.Array, labels: jax.Array, point: _Point) -> jax.Array:
  """Returns the second derivative of the mean cross-entropy in each weight: [C, r + 1]."""
  true = 1 - point.others.sum(axis=0, keepdims=True)
  probability = jnp.where(_is_true(labels, len(point.others)), true, point.others)
  spread = probability * (1 - probability) / len(scores)
  curvature = jnp.dot(spread, scores * scores, precision=jax.lax.Precision.HIGHEST)
  return curvature.at[:, -1].add(jnp.finfo(scores.dtype).eps)  # nothing else bounds it


def _line_search(
  scores: jax.Array, labels: jax.Array, point: _Point, direction: jax.Array
) -> _Point:
  """Returns a point along the direction whose slope is below `_SLOPE_SHARE` of that at the start.

  Newton's steps on the slope, from a step of 1, kept within the interval that holds the minimum:
  the objective is convex along the line. A direction that does not descend is not followed.
  """
  change = _margins(scores, labels, direction)
  penalty = point.l2 * _without_intercept(direction)
  linear, quadratic = jnp.sum(penalty * point.weights), jnp.sum(penalty * direction)
  first_slope = jnp.sum(point.gradient * direction)

  def proceed(carry):
    _, _, _, _, slope, _, trial = carry
    return (jnp.abs(slope) > _SLOPE_SHARE * jnp.abs(first_slope)) & (trial < _TRIALS)

  def attempt(carry):
    _, length, low, high, _, _, trial = carry
    margins = point.margins + length * change
    others, loss = _others(labels, margins)
    weighted = others * change
    mean, square = jnp.sum(weighted, axis=0), jnp.sum(weighted * change, axis=0)
    slope = mean.mean() + linear + length * quadratic
    curvature = (square - mean * mean).mean() + quadratic
    low, high = jnp.where(slope < 0, length, low), jnp.where(slope < 0, high, length)
    newton = length - slope / curvature
    inside = (newton > low) & (newton < jnp.minimum(high, 10 * length))
    middle = jnp.minimum(0.5 * (low + high), 4 * length)
    after = jnp.where(inside, newton, middle)
    return length, after, low, high, slope, (margins, others, loss), trial + 1

  zero, one, infinite = np.float32(0), np.float32(1), np.float32(np.inf)
  slope = jnp.where(first_slope < 0, infinite, 0)
  found = point.margins, point.others, point.loss
  carry = (zero, one, zero, infinite, slope, found, np.int32(0))
  length, *_, found, _ = jax.lax.while_loop(proceed, attempt, carry)
  return _point(scores, labels, point.weights + length * direction, *found, point.l2)


def _remember(memory: _Memory, step: jax.Array, change: jax.Array) -> _Memory:
  """The memory with another step, in place of the oldest one."""
  at = memory.count % _MEMORY_SIZE
  return memory._replace(
    steps=memory.steps.at[at].set(step),
    changes=memory.changes.at[at].set(change),
    products=memory.products.at[at].set(jnp.sum(step * change)),
    count=memory.count + 1,
  )


def _inverse_hessian(memory: _Memory, unit: jax.Array, gradient: jax.Array) -> jax.Array:
  """Returns L-BFGS' inverse Hessian times the gradient, by the two loops over the memory.

  Its first guess is `unit` times a number that fits the newest step. Steps along which the gradient
  did not rise (rounding) are passed over.
  """
  rows = []
  for age in range(1, _MEMORY_SIZE + 1):
    at = (memory.count - age) % _MEMORY_SIZE
    product = memory.products[at]
    rows.append((memory.steps[at], memory.changes[at], jnp.where(product > 0, 1 / product, 0)))
  x, amounts = gradient, []
  for step, change, inverse in rows:
    amounts.append(inverse * jnp.sum(step * x))
    x = x - amounts[-1] * change
  _, newest, inverse = rows[0]
  scale = jnp.where(inverse > 0, 1 / (inverse * jnp.sum(newest * unit * newest)), 1)
  x = scale * unit * x
  for (step, change, inverse), amount in zip(reversed(rows), reversed(amounts), strict=True):
    x = x + (amount - inverse * jnp.sum(change * x)) * step
  return x
