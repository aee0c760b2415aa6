"""The optimiser of a stage: `optax.multi_transform` over its labels.

Peak learning rates live in the optimiser's state, not in the compiled program, so that a grid of
rates and any number of seeds share one compilation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from subtune_jax import masks, methods


class RateState(NamedTuple):
  """State of `scale_by_rate`: steps taken and the peak learning rate."""

  count: jax.Array
  peak: jax.Array


def scale_by_rate(
  peak: float, schedule: Callable[[jax.Array], jax.Array]
) -> optax.GradientTransformation:
  """Multiplies updates by `-peak * schedule(count)`; `peak` is state, `schedule` is static."""

  def init(params):
    del params
    return RateState(jnp.zeros([], jnp.int32), jnp.asarray(peak, jnp.float32))

  def update(updates, state, params=None):
    del params
    rate = -state.peak * schedule(state.count)
    updates = jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates)
    return updates, RateState(optax.safe_increment(state.count), state.peak)

  return optax.GradientTransformation(init, update)


def make_schedule(kind: str, total_steps: int, warmup: float) -> Callable[[jax.Array], jax.Array]:
  """A multiplier of the peak rate: linear warm-up over a share of the steps, then `kind`."""
  warmup_steps = round(warmup * total_steps)
  rest = max(total_steps - warmup_steps, 1)
  after = (
    optax.cosine_decay_schedule(1.0, rest) if kind == "cosine" else optax.constant_schedule(1.0)
  )
  if not warmup_steps:
    return after
  return optax.join_schedules(
    [optax.linear_schedule(0.0, 1.0, warmup_steps), after], [warmup_steps]
  )


def _direction(solver: methods.Gradient) -> optax.GradientTransformation:
  decay = (
    optax.add_decayed_weights(solver.weight_decay) if solver.weight_decay else optax.identity()
  )
  if solver.optimizer == "adam":
    return optax.chain(optax.scale_by_adam(), decay)
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
    rate per label.
  """
  schedule = make_schedule(solver.schedule, total_steps, solver.warmup)
  transforms = {
    label: optax.chain(_direction(solver), scale_by_rate(rate, schedule))
    for label, rate in solver.learning_rates.items()
  }
  clip = optax.clip_by_global_norm(solver.clip_norm) if solver.clip_norm else optax.identity()
  return optax.chain(clip, masks.multi_transform(transforms, labels))
