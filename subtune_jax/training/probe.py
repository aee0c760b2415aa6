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
When a cheap estimate says that a fit is done, conjugate gradients compute Newton's direction, which
tells how far the optimum is, and is the next step where that is too far.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from subtune_jax.statistics import criteria
from subtune_jax.training import class_weights as class_weights_lib
from subtune_jax.training import (
  divergence,
  evaluate,
  probe_checks,
  probe_features,
  probe_objective,
  probe_solver,
)

# Paths are filled up to a multiple of so many strengths: grids of about one length share a program.
_PATH_MULTIPLE = 16


@dataclasses.dataclass(frozen=True)
class ProbePath:
  """One linear head per strength, in the order the strengths were given.

  Attributes:
    rotation: from features to scores.
    weights: [num_strengths, num_classes, r + 1] float64, act on scores; the last are intercepts.
    objective: [num_strengths] value reached, see `fit_path`.
    gradient_norm: [num_strengths] Euclidean norm of the objective's gradient in the weights of the
      standardised, centred features and the intercept.
    iterations: [num_strengths] iterations, of L-BFGS and Newton's steps.
    converged: [num_strengths] bool, whether the objective is within the tolerance of the optimum.
    l2: [num_strengths] the strengths.
  """

  rotation: probe_features.Rotation
  weights: np.ndarray
  objective: np.ndarray
  gradient_norm: np.ndarray
  iterations: np.ndarray
  converged: np.ndarray
  l2: np.ndarray

  def head(self, index: int) -> dict[str, np.ndarray]:
    """Returns the parameters of one head, on raw features: a model's `params["head"]`."""
    kernel, bias = probe_features.unrotate(self.rotation, self.weights[index : index + 1])
    return {"kernel": kernel[0], "bias": bias[0]}

  @functools.cached_property
  def _heads(self) -> tuple[np.ndarray, np.ndarray]:
    return probe_features.unrotate(self.rotation, self.weights)

  @property
  def kernel(self) -> np.ndarray:
    """[num_strengths, num_features, num_classes] float32, acts on raw features."""
    return self._heads[0]

  @property
  def bias(self) -> np.ndarray:
    """[num_strengths, num_classes] float32."""
    return self._heads[1]


class Choice(NamedTuple):
  """The strength that `choose` took.

  Attributes:
    index: position in the path.
    at_edge: it is the strongest or the weakest of several strengths, so the best one may lie
      outside the grid.
    accuracy: [num_strengths] share of the examples classified rightly; NaN where the head or a
      logit is not finite: such a strength is never taken.
    loss: [num_strengths] mean cross-entropy; NaN likewise.
    values: [num_strengths] the metric that it was chosen by; NaN likewise.
  """

  index: int  # type: ignore[assignment]  # a field, in place of tuple's method
  at_edge: bool
  accuracy: np.ndarray
  loss: np.ndarray
  values: np.ndarray


def lpft_strengths(num_examples: int, num: int = 50) -> np.ndarray:
  """Returns LP-FT's grid: scikit-learn's C over logspace(-7, 2), as l2 = 1 / (C * num_examples)."""
  return 1.0 / (np.logspace(-7, 2, num) * num_examples)


def fit_path(
  features: npt.ArrayLike,
  labels: npt.ArrayLike,
  *,
  num_classes: int,
  l2: Sequence[float],
  standardize: probe_checks.Standardize = "scalar",
  tol: float = 1e-6,
  max_iterations: int = 1000,
  max_steps: int | None = None,
  class_weights: class_weights_lib.Option = "none",
) -> ProbePath:
  """Fits one linear head per strength of regularisation.

  The objective is mean cross-entropy + l2 / 2 * ||W||^2, where W are the weights on the
  standardised features; the intercept is free. scikit-learn's `LogisticRegression(C=c)` has the
  same optimum at l2 = 1 / (c * n) for three classes or more. For two it fits one vector w, which is
  the softmax of +w/2 and -w/2, and the optimum is the same at l2 = 2 / (c * n).

  With class weights the mean is a weighted one (`class_weights.py`): scikit-learn's
  `LogisticRegression(C=c, class_weight=...)`, with the sum of the examples' weights as the n above.
  At "balanced" that sum is n.

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
    tol: relative tolerance on the objective: a fit has converged when objective - optimum is below
      `tol * objective`. The difference is half the squared Newton decrement, with a margin for what
      its computation in float32 leaves out.
    max_iterations: iterations per strength, of L-BFGS and Newton's steps.
    max_steps: stop every strength after so many iterations from the zero head: partly converged
      heads, which do not depend on the rest of the grid. None: fit to `tol`, along the path.
    class_weights: "none", "balanced", or a weight for each of `num_classes`.

  Returns:
    A `ProbePath`. Fits that did not reach `tol` are flagged in it and, unless `max_steps` asked for
    that, logged.

  Raises:
    ValueError: features or labels are empty, misshapen, not finite or out of range, fewer than two
      classes are present, all examples are equal, or an option is not allowed.
  """
  features, labels = probe_checks.data(features, labels, num_classes)
  strengths = probe_checks.options(l2, standardize, tol, max_iterations, max_steps)
  present, classes = np.unique(labels, return_inverse=True)
  if len(present) < 2:
    raise ValueError(
      f"all {len(labels)} training labels are {present[0]}: a probe needs examples of two classes"
    )
  rotation = probe_features.rotate(features, standardize)
  solve = _solve_path if max_steps is None else _solve_each
  weights = class_weights_lib.of_examples(class_weights, labels, num_classes)
  data = _device_data(rotation.scores, classes, None if weights is None else weights[labels])
  solutions = solve(data, classes, strengths, tol, max_steps or max_iterations)
  path = _path(rotation, dict(solutions), strengths, present, num_classes)
  if max_steps is None:
    _warn_unconverged(path, tol, max_iterations)
  return path


def rescale(head: Mapping[str, Any], std: float) -> dict[str, np.ndarray]:
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


def choose(
  path: ProbePath,
  features: npt.ArrayLike,
  labels: npt.ArrayLike,
  select_by: str = criteria.ACCURACY,
) -> Choice:
  """Chooses the strength with the highest accuracy, or another metric, on held-out examples.

  Ties go to the stronger regularisation (LP-FT's rule: its path runs from strong to weak and the
  first maximum is kept).

  Args:
    path: heads, from `fit_path`.
    features: [n, num_features] raw validation features.
    labels: [n] validation labels. A class that had no training example counts as missed.
    select_by: the metric (`statistics.criteria`).

  Returns:
    The `Choice`; one at the grid's edge is also logged.

  Raises:
    ValueError: the examples are empty, misshapen, not finite or out of range, the head of no
      strength is finite, or an unknown metric.
  """
  criterion = criteria.of({"select_by": select_by})
  num_features, num_classes = len(path.rotation.center), path.weights.shape[1]
  features, labels = probe_checks.data(features, labels, num_classes)
  if features.shape[1] != num_features:
    raise ValueError(
      f"validation features have {features.shape[1]} columns and the path was fitted on"
      f" {num_features}: use the same backbone for both"
    )
  scores = probe_features.scores(path.rotation, features).astype(np.float32)
  weights = path.weights.astype(np.float32)
  correct, loss = jax.device_get(_score(weights, scores, labels))
  finite = np.flatnonzero(np.isfinite(loss))
  if not len(finite):
    raise divergence.NonFiniteLossError(
      f"the heads of all {len(loss)} strengths are not finite; use stronger regularisation, or"
      " standardize the features"
    )
  loss = np.where(np.isfinite(loss), loss, np.nan)
  accuracy = np.where(np.isfinite(loss), correct / len(labels), np.nan)
  measured = {"validation_accuracy": accuracy, "validation_loss": loss}
  values = measured.get(criterion.field)
  if values is None:
    values = np.full(len(loss), np.nan)
    for i in finite:
      logits = np.asarray(_logits(weights[i], scores))
      values[i] = evaluate.metric(select_by, logits, labels)
  index = int(max(finite, key=lambda i: (criterion.sign * values[i], path.l2[i])))
  at_edge = len(correct) > 1 and path.l2[index] in (path.l2.min(), path.l2.max())
  if at_edge:
    logging.warning(
      "probe: the chosen strength l2=%g is at the edge of the grid [%g, %g]; widen it",
      path.l2[index],
      path.l2.min(),
      path.l2.max(),
    )
  return Choice(index, bool(at_edge), accuracy, loss, values)


@jax.jit
def _logits(weights: jax.Array, scores: jax.Array) -> jax.Array:
  product = jnp.dot(scores, weights[:, :-1].T, precision=jax.lax.Precision.HIGHEST)
  return product + weights[None, :, -1]


@jax.jit
def _score(weights: jax.Array, scores: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the number of right answers and the mean cross-entropy of each head."""

  def of_one(head):
    logits = _logits(head, scores)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    loss = jnp.where(jnp.isfinite(logits).all(), loss, jnp.nan)
    return jnp.sum(jnp.argmax(logits, axis=-1) == labels), loss

  return jax.lax.map(of_one, weights)


def _path(
  rotation: probe_features.Rotation, solutions: Mapping[int, probe_solver.Solution],
  l2: np.ndarray, present: np.ndarray, num_classes: int,
) -> ProbePath:  # fmt: skip
  """The heads of the solutions at the positions of `l2`, with the classes that are not present."""
  count, rank = rotation.scores.shape
  weights = np.zeros((len(l2), num_classes, rank + 1))
  found = [solutions[i] for i in range(len(l2))]
  weights[:, np.setdiff1d(np.arange(num_classes), present), -1] = -np.log(2 * count)
  weights[:, present] = [own.weights for own in found]
  return ProbePath(
    rotation, weights,
    np.array([own.objective for own in found], float),
    np.array([own.gradient_norm for own in found], float),
    np.array([own.iterations for own in found], np.int32),
    np.array([own.converged for own in found], bool), l2,
  )  # fmt: skip


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


def _solve_path(
  data: probe_objective.Data, classes: np.ndarray, l2: np.ndarray, tol: float, max_iterations: int
) -> list[tuple[int, probe_solver.Solution]]:
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
  log_count = np.log(np.bincount(classes, data.weights))
  start = probe_solver.begin(data, np.float32(log_count - log_count.mean()))
  solutions = jax.device_get(probe_solver.follow(data, *start, options))
  return [
    (int(index), probe_solver.Solution(*(column[row] for column in solutions)))
    for row, index in enumerate(order)
  ]


def _solve_each(
  data: probe_objective.Data, classes: np.ndarray, l2: np.ndarray, tol: float, max_iterations: int
) -> list[tuple[int, probe_solver.Solution]]:
  """Returns (position, solution) pairs; each fit starts from the zero head."""
  point, curvature, memory = probe_solver.begin(data, np.zeros(classes.max() + 1, np.float32))
  solutions = []
  for index, strength in enumerate(l2):
    options = np.array([strength, tol, 0, max_iterations], np.float32)
    solution, *_ = probe_solver.solve(data, point, point.weights, curvature, memory, options)
    solutions.append((index, solution))
  return jax.device_get(solutions)


def _device_data(scores: np.ndarray, classes: np.ndarray, weights: Any) -> probe_objective.Data:
  """Returns what is fitted: the scores with a column of ones, classes [n] and weights [n]."""
  padded = np.pad(scores, ((0, 0), (0, 1)), constant_values=1)
  labels = jnp.asarray(classes[None], jnp.int32)
  return probe_objective.Data(jnp.asarray(padded, jnp.float32), labels, weights)


def _extrapolation(log_l2: np.ndarray) -> np.ndarray:
  """Returns each spacing of the grid over the one before it; 0 where there is none."""
  steps = np.zeros(len(log_l2))
  spacing = np.diff(log_l2)
  np.divide(spacing[1:], spacing[:-1], out=steps[2:], where=spacing[:-1] != 0)
  return steps
