"""The linear probe's solver: L-BFGS with a memory that lasts along a path of strengths.

A fit is converged by the Newton decrement, which conjugate gradients compute.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.training import probe_objective

# 12 pairs save 5 to 20 % of the iterations, and each takes longer by as much on a CPU.
_MEMORY_SIZE = 5
# The line search ends at this share of the slope at its start, or after so many trials.
_SLOPE_SHARE = 0.3
_TRIALS = 20
# A fit ends when its objective has not fallen for so many iterations: float32 is exhausted.
_PATIENCE = 10
# Newton's direction is exact enough when its terms are below this share of the tolerance. A fit
# ends at another share: between that and 1 is room for the terms left out and for float32.
_REST = 0.05
_SETTLED = 0.75
_NEWTON_TRIALS = 100
_NO: Any = np.bool_(False)  # these stand where a program has arrays
_ZERO: Any = np.int32(0)


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
  count: jax.Array  # type: ignore[assignment]  # a field, in place of tuple's method
  l2: jax.Array


class _Search(NamedTuple):
  """A fit under way."""

  point: probe_objective.Point
  curvature: jax.Array  # [C, r + 1] of the mean cross-entropy, at an earlier point
  memory: _Memory
  ahead: jax.Array  # [C, r + 1] the direction to take in place of L-BFGS', if `turn`
  turn: jax.Array
  gap: jax.Array  # estimate of objective - optimum at the end of the last descent
  least: jax.Array  # the least objective so far
  waited: jax.Array  # iterations since then
  iterations: jax.Array


class Solution(NamedTuple):
  weights: jax.Array  # [C, r + 1]
  objective: jax.Array
  gradient_norm: jax.Array
  iterations: jax.Array
  converged: jax.Array


@jax.jit
def begin(
  data: probe_objective.Data, bias: jax.Array
) -> tuple[probe_objective.Point, jax.Array, _Memory]:
  """Returns the point where all weights are zero but the intercepts, and an empty memory."""
  weights = jnp.zeros((len(bias), data.scores.shape[1])).at[:, -1].set(bias)
  margins = probe_objective.margins(data, weights)
  point = probe_objective.point(
    data, weights, margins, *probe_objective.others(data, margins), jnp.float32(0)
  )
  zeros = jnp.zeros((_MEMORY_SIZE, *weights.shape))
  memory = _Memory(zeros, zeros, jnp.zeros(_MEMORY_SIZE), jnp.int32(0), jnp.float32(0))
  return point, probe_objective.curvature(data, point), memory


@jax.jit
def follow(
  data: probe_objective.Data,
  point: probe_objective.Point,
  curvature: jax.Array,
  memory: _Memory,
  options: jax.Array,
) -> Solution:
  """Fits one strength after the other, as one program; `options` [k, 4], see `solve`."""

  def fit(carry, own):
    previous, point, curvature, memory = carry
    solution, *after = solve(data, point, previous, curvature, memory, own)
    return (point.weights, *after), solution

  return jax.lax.scan(fit, (point.weights, point, curvature, memory), options)[1]


@jax.jit
def solve(
  data: probe_objective.Data,
  point: probe_objective.Point,
  previous: jax.Array,
  curvature: jax.Array,
  memory: _Memory,
  options: jax.Array,
) -> tuple[Solution, probe_objective.Point, jax.Array, _Memory]:
  """Fits one strength by L-BFGS, from a point and the memory of another strength.

  Args:
    data: what is fitted.
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
  point, memory = probe_objective.point_under(point, l2), _memory_under(memory, l2)

  def goes_on(search):
    return (search.iterations < max_iterations) & (search.waited < _PATIENCE)

  def settled(search):
    return search.gap <= _SETTLED * tol * search.point.objective

  def descends(search):
    rough = probe_objective.decrease(search.point, search.curvature)
    return (search.turn | (rough > tol * search.point.objective)) & goes_on(search)

  def iterate(search):
    return _iterate(data, search, l2, step != 0)

  def descend(search):  # by the old curvature; `descends` then decides by the new one
    search = jax.lax.while_loop(descends, iterate, search)
    return search._replace(
      curvature=probe_objective.curvature(data, search.point), turn=np.bool_(False)
    )

  def until_small(search):  # the rough estimate is cheap; the Newton step settles it
    search = descend(search)
    search = jax.lax.while_loop(descends, descend, search)
    unit = probe_objective.unit(search.curvature, l2)
    newton, gap = _newton(data, search.point, search.memory, unit, tol)
    return search._replace(ahead=newton, turn=~settled(search._replace(gap=gap)), gap=gap)

  def unsettled(search):
    return ~settled(search) & goes_on(search)

  infinite: Any = np.float32(np.inf)
  search = _Search(
    point, curvature, memory, extrapolation, _NO, infinite, point.objective, _ZERO, _ZERO
  )
  search = jax.lax.while_loop(unsettled, until_small, search)
  converged = settled(search)
  point = probe_objective.centred(search.point)
  norm = jnp.linalg.norm(point.gradient)
  solution = Solution(point.weights, point.objective, norm, search.iterations, converged)
  return solution, point, search.curvature, search.memory


def _iterate(
  data: probe_objective.Data, search: _Search, l2: jax.Array, extrapolates: jax.Array
) -> _Search:
  """One step of L-BFGS, or the first along the extrapolation, or Newton's."""
  point = search.point
  unit = probe_objective.unit(search.curvature, l2)
  direction = -_inverse_hessian(search.memory, unit, point.gradient)
  first = (search.iterations == 0) & extrapolates
  direction = jnp.where(search.turn | first, search.ahead, direction)
  new = _line_search(data, point, direction)
  better = new.objective < search.least
  return search._replace(
    point=new,
    memory=_remember(search.memory, new.weights - point.weights, new.gradient - point.gradient),
    turn=_NO,
    least=jnp.minimum(new.objective, search.least),
    waited=jnp.where(better, 0, search.waited + 1),
    iterations=search.iterations + 1,
  )


def _memory_under(memory: _Memory, l2: jax.Array) -> _Memory:
  """The same steps under another strength."""
  changes = memory.changes + (l2 - memory.l2) * probe_objective.without_intercept(memory.steps)
  products = jnp.sum(changes * memory.steps, axis=(1, 2))
  return memory._replace(changes=changes, products=products, l2=l2)


def _line_search(
  data: probe_objective.Data, point: probe_objective.Point, direction: jax.Array
) -> probe_objective.Point:
  """Returns a point along the direction whose slope is below `_SLOPE_SHARE` of that at the start.

  Newton's steps on the slope, from a step of 1, kept within the interval that holds the minimum:
  the objective is convex along the line. A direction that does not descend is not followed.
  """
  change = probe_objective.margins(data, direction)
  penalty = point.l2 * probe_objective.without_intercept(direction)
  linear, quadratic = jnp.sum(penalty * point.weights), jnp.sum(penalty * direction)
  first_slope = jnp.sum(point.gradient * direction)

  def proceed(carry):
    _, _, _, _, slope, _, trial = carry
    return (jnp.abs(slope) > _SLOPE_SHARE * jnp.abs(first_slope)) & (trial < _TRIALS)

  def attempt(carry):
    _, length, low, high, _, _, trial = carry
    margins = point.margins + length * change
    others, loss = probe_objective.others(data, margins)
    weighted = others * change
    mean, square = jnp.sum(weighted, axis=0), jnp.sum(weighted * change, axis=0)
    slope = data.weigh(mean).mean() + linear + length * quadratic
    curvature = data.weigh(square - mean * mean).mean() + quadratic
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
  return probe_objective.point(data, point.weights + length * direction, *found, point.l2)


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


def _newton(
  data: probe_objective.Data,
  point: probe_objective.Point,
  memory: _Memory,
  unit: jax.Array,
  tol: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns Newton's direction [C, r + 1] and what it says objective - optimum is.

  That is half the squared Newton decrement g H^-1 g (Boyd and Vandenberghe, Convex Optimization,
  section 9.5.1), times exp of the largest change of a margin along the direction, by which the
  Hessian of a softmax may differ between here and the optimum (Bach, Self-concordant analysis for
  logistic regression, 2010). H^-1 g comes from conjugate gradients, preconditioned by L-BFGS: the
  terms of the decrement are added until two in a row are each below `_REST` of the tolerance.
  """
  gradient = probe_objective.centred(point).gradient
  limit = _REST * tol * point.objective

  def precondition(rest):
    return _inverse_hessian(memory, unit, rest)

  def goes_on(carry):
    *_, small, trial = carry
    return (small < 2) & (trial < _NEWTON_TRIALS)

  def proceed(carry):
    step, rest, along, size, decrement, small, trial = carry
    rise = probe_objective.hessian_product(data, point, along)
    length = size / jnp.maximum(jnp.sum(along * rise), jnp.finfo(size.dtype).tiny)
    step, rest = step + length * along, rest - length * rise
    preconditioned = precondition(rest)
    new_size = jnp.sum(rest * preconditioned)
    term = 0.5 * length * size
    along = preconditioned + new_size / jnp.maximum(size, jnp.finfo(size.dtype).tiny) * along
    small = jnp.where(term <= limit, small + 1, 0)
    return step, rest, along, new_size, decrement + term, small, trial + 1

  first = precondition(-gradient)
  vectors = jnp.zeros_like(gradient), -gradient, first, -jnp.sum(gradient * first)
  carry = (*vectors, np.float32(0), np.int32(0), np.int32(0))
  step, *_, decrement, small, _ = jax.lax.while_loop(goes_on, proceed, carry)
  change = jnp.abs(probe_objective.margins(data, step)).max()
  return step, jnp.where(small < 2, np.inf, decrement * jnp.exp(change))
