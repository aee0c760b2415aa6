"""The linear probe's objective and its derivatives at a point, on rotated features.

Softmax cross-entropy in terms of margins, in float32; see `probe.fit_path` for the definition.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Data(NamedTuple):
  """What is fitted.

  Attributes:
    scores: [n, r + 1] rotated features, and a column of ones.
    labels: [1, n].
    weights: [n] of the examples, of mean 1; None where all count alike.
  """

  scores: jax.Array
  labels: jax.Array
  weights: jax.Array | None = None

  def weigh(self, values: jax.Array) -> jax.Array:
    """Values [n] or [C, n] times the weights of the examples."""
    if self.weights is None:
      return values
    return values * (self.weights if values.ndim == 1 else self.weights[None])


class Point(NamedTuple):
  """Weights, and what follows from them under a strength.

  Attributes:
    weights: [C, r + 1] of the scores; the last column is the intercept.
    margins: [C, n] logits less the true class' logit.
    others: [C, n] probabilities of all but the true class, 0 for it.
    loss: weighted mean of the cross-entropy.
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


def unit(curvature: jax.Array, l2: jax.Array) -> jax.Array:
  """Returns 1 / second derivative of the objective in each weight: a preconditioner."""
  return 1 / (curvature + without_intercept(jnp.full_like(curvature[:1], l2)))


def decrease(point: Point, curvature: jax.Array) -> jax.Array:
  """Estimates objective - optimum: half the squared norm of the preconditioned gradient."""
  return 0.5 * jnp.sum(unit(curvature, point.l2) * point.gradient * point.gradient)


def centred(point: Point) -> Point:
  """Takes out the mean over classes: no probability depends on it, and the penalty falls.

  The gradient at the centred weights is the centred gradient.
  """
  mean = point.weights.mean(axis=0, keepdims=True)
  saved = 0.5 * point.l2 * len(point.weights) * jnp.sum(without_intercept(mean) * mean)
  return point._replace(
    weights=point.weights - mean,
    objective=point.objective - saved,
    gradient=point.gradient - point.gradient.mean(axis=0, keepdims=True),
  )


def without_intercept(weights: jax.Array) -> jax.Array:
  """The weights that are penalised, and 0 for the intercept."""
  return weights.at[..., -1].set(0)


def point_under(point: Point, l2: jax.Array) -> Point:
  """The same weights under another strength."""
  penalty = (l2 - point.l2) * without_intercept(point.weights)
  objective = point.objective + 0.5 * jnp.sum(penalty * point.weights)
  return point._replace(objective=objective, gradient=point.gradient + penalty, l2=l2)


def margins(data: Data, weights: jax.Array) -> jax.Array:
  """Returns the logits less the true class' logit: [C, n]."""
  logits = jnp.dot(weights, data.scores.T, precision=jax.lax.Precision.HIGHEST)
  return logits - jnp.take_along_axis(logits, data.labels, axis=0, mode="promise_in_bounds")


def is_true(labels: jax.Array, num_classes: int) -> jax.Array:
  """[C, n] bool, whether the class is the label."""
  return jax.lax.broadcasted_iota(jnp.int32, (num_classes, labels.shape[1]), 0) == labels


def others(data: Data, margins: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the probabilities [C, n] of all but the true class, 0 for it, and the mean loss.

  Both come from the differences to the true class' logit, so that a small loss keeps its relative
  precision: logsumexp minus that logit cancels to noise in float32, on which a fit stalls.
  """
  shift = jnp.maximum(margins.max(axis=0, keepdims=True), 0)
  others = jnp.where(is_true(data.labels, len(margins)), 0, jnp.exp(margins - shift))
  excess = jnp.expm1(-shift) + others.sum(axis=0, keepdims=True)
  return others * (1 / (1 + excess)), data.weigh(shift + jnp.log1p(excess)).mean()


def point(
  data: Data,
  weights: jax.Array,
  margins: jax.Array,
  others: jax.Array,
  loss: jax.Array,
  l2: jax.Array,
) -> Point:
  """The point at some weights, for which all but the objective and its gradient is known."""
  true = -others.sum(axis=0, keepdims=True)
  residual = data.weigh(jnp.where(is_true(data.labels, len(others)), true, others))
  penalty = l2 * without_intercept(weights)
  residual = residual / len(data.scores)
  gradient = jnp.dot(residual, data.scores, precision=jax.lax.Precision.HIGHEST) + penalty
  objective = loss + 0.5 * jnp.sum(penalty * weights)
  return Point(weights, margins, others, loss, objective, gradient, l2)


def curvature(data: Data, point: Point) -> jax.Array:
  """Returns the second derivative of the mean cross-entropy in each weight: [C, r + 1]."""
  true = 1 - point.others.sum(axis=0, keepdims=True)
  probability = jnp.where(is_true(data.labels, len(point.others)), true, point.others)
  spread = data.weigh(probability * (1 - probability)) / len(data.scores)
  squares = data.scores * data.scores
  curvature = jnp.dot(spread, squares, precision=jax.lax.Precision.HIGHEST)
  return curvature.at[:, -1].add(jnp.finfo(squares.dtype).eps)  # nothing else bounds it


def hessian_product(data: Data, point: Point, direction: jax.Array) -> jax.Array:
  """Returns the second derivative of the objective times a direction: [C, r + 1]."""
  change = margins(data, direction)
  weighted = point.others * change
  mean = weighted.sum(axis=0, keepdims=True)
  # The true class' margin does not change: its entry makes the sum over classes 0.
  others = weighted - point.others * mean
  true = -others.sum(axis=0, keepdims=True)
  spread = data.weigh(jnp.where(is_true(data.labels, len(point.others)), true, others))
  spread = spread / len(data.scores)
  penalty = point.l2 * without_intercept(direction)
  return jnp.dot(spread, data.scores, precision=jax.lax.Precision.HIGHEST) + penalty
