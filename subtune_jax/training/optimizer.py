"""The optimiser of a stage: `optax.multi_transform` over its labels.

Peak learning rates live in the optimiser's state, not in the compiled program, so that a grid of
rates and any number of seeds share one compilation.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from subtune_jax import masks, methods


class RateState(NamedTuple):
  """State of `scale_by_rate`: steps taken, the peak learning rate, and its tensors' multipliers."""

  count: jax.Array  # type: ignore[assignment]  # a field, in place of tuple's method
  peak: jax.Array
  multipliers: Any = None


def scale_by_rate(
  peak: float, schedule: Callable[[jax.Array], jax.Array], *, per_tensor: bool = False
) -> optax.GradientTransformation:
  """Multiplies updates by `-peak * schedule(count)`; `peak` is state, `schedule` is static.

  Args:
    peak: of the rate.
    schedule: a multiplier of it for each step.
    per_tensor: whether the state holds a further multiplier for each tensor, 1 at first and changed
      by `set_multipliers`.
  """

  def init(params):
    ones = jax.tree.map(lambda _: jnp.ones([], jnp.float32), params) if per_tensor else None
    return RateState(jnp.zeros([], jnp.int32), jnp.asarray(peak, jnp.float32), ones)

  def update(updates, state, params=None):
    del params
    rate = -state.peak * schedule(state.count)
    if per_tensor:
      updates = jax.tree.map(lambda u, m: _scaled(u, rate, m), updates, state.multipliers)
    else:
      updates = jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates)
    return updates, state._replace(count=optax.safe_increment(state.count))

  return optax.GradientTransformation(init, update)


def _scaled(update: jax.Array, rate: jax.Array, multiplier: jax.Array) -> jax.Array:
  """`rate * multiplier * update`; at multiplier 0 it is -0.0, which added changes no bit."""
  update = jnp.where(multiplier > 0, update, jnp.ones_like(update))  # of inf and NaN too
  return (rate * multiplier).astype(update.dtype) * update


def multipliers(opt_state: Any) -> dict[str, jax.Array]:
  """Path -> multiplier of the tensors that have one."""
  states = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, RateState))
  trees = [node.multipliers for node in states if isinstance(node, RateState)]
  return {
    path: value
    for tree in trees
    for path, value in zip(masks.paths(tree), jax.tree.leaves(tree), strict=True)
  }


def set_multipliers(opt_state: Any, values: Mapping[str, jax.Array], *, fresh: bool) -> Any:
  """The state of an optimiser with other multipliers.

  Args:
    opt_state: of `make_optimizer`, of a solver with `rates`.
    values: path -> scalar, for every trained tensor.
    fresh: whether momentum, and Adam's moments and their count, begin anew; the schedule goes on.
  """
  moments = (optax.ScaleByAdamState, optax.TraceState)

  def visit(node):
    if isinstance(node, RateState):
      tree = node.multipliers
      leaves = [values[path] for path in masks.paths(tree)]
      return node._replace(multipliers=jax.tree.unflatten(jax.tree.structure(tree), leaves))
    return jax.tree.map(jnp.zeros_like, node) if fresh and isinstance(node, moments) else node

  return jax.tree.map(
    visit, opt_state, is_leaf=lambda node: isinstance(node, (RateState, *moments))
  )


def make_schedule(kind: str, total_steps: int, warmup: float) -> Callable[[jax.Array], jax.Array]:
  """A multiplier of the peak rate: linear warm-up over a share of the steps, then `kind`."""
  warmup_steps = round(warmup * total_steps)
  rest = max(total_steps - warmup_steps, 1)
  after = optax.constant_schedule(1.0)
  if kind == "cosine":
    after = optax.cosine_decay_schedule(1.0, rest)
  elif kind == "steps":
    ends = (round(share * total_steps) - warmup_steps for share in methods.DECAYS)
    after = optax.piecewise_constant_schedule(1.0, dict.fromkeys(ends, 0.1))
  if not warmup_steps:
    return after
  return optax.join_schedules(
    [optax.linear_schedule(0.0, 1.0, warmup_steps), after], [warmup_steps]
  )


def _direction(solver: methods.Gradient) -> optax.GradientTransformation:
  decay = (
    optax.add_decayed_weights(solver.weight_decay) if solver.weight_decay else optax.identity()
  )
  decoupled = {"adam": optax.scale_by_adam, "adabelief": optax.scale_by_belief}
  if solver.optimizer in decoupled:
    return optax.chain(decoupled[solver.optimizer](), decay)
  coupled = {
    "adadelta": optax.scale_by_adadelta, "adagrad": optax.scale_by_rss,
    "rmsprop": optax.scale_by_rms,
  }  # fmt: skip
  if solver.optimizer in coupled:
    return optax.chain(decay, coupled[solver.optimizer]())
  trace = optax.trace(solver.momentum, solver.nesterov) if solver.momentum else optax.identity()
  return optax.chain(decay, trace)


def make_optimizer(
  solver: methods.Gradient, labels: Any, total_steps: int
) -> optax.GradientTransformation:
  """Builds the optimiser of a stage.

  Args:
    solver: the stage's `Gradient`.
    labels: label of each trained leaf; None (or "frozen") elsewhere.
    total_steps: steps of the stage, for the schedule.

  Returns:
    Clipping by the global norm of the trained leaves, then a `multi_transform` with one learning
    rate per label and, with `solver.rates`, a multiplier of it for each tensor.
  """
  schedule = make_schedule(solver.schedule, total_steps, solver.warmup)
  transforms = {
    label: optax.chain(
      _direction(solver), scale_by_rate(rate, schedule, per_tensor=solver.rates is not None)
    )
    for label, rate in solver.learning_rates.items()
  }
  clip = optax.clip_by_global_norm(solver.clip_norm) if solver.clip_norm else optax.identity()
  return optax.chain(clip, masks.multi_transform(transforms, labels))
