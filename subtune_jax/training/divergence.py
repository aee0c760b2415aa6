"""What a training that diverged is told by: a number that is not finite.

The losses of an epoch are taken before each update, so they say nothing of the last one: weights
and logits are looked at too.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import masks, methods

PyTree = Any


class NonFiniteLossError(ValueError):
  """A training diverged: its loss, its weights or its logits became NaN or infinite."""


def check_steps(metrics: Any, stage: methods.Stage, epoch: int) -> None:
  """Raises NonFiniteLossError at the first step whose loss or gradient is not finite.

  Args:
    metrics: "loss" and "gradient_norm" [steps] of an epoch.
    stage: that was run.
    epoch: its number in the stage, from 0.
  """
  for name, what in (("loss", "the loss"), ("gradient_norm", "the gradient's norm")):
    values = np.asarray(metrics[name])
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
      step = epoch * len(values) + int(bad[0]) + 1
      raise NonFiniteLossError(
        f"{what} is {values[bad[0]]} at step {step} (epoch {epoch + 1}) {_remedy(stage)}"
      )


def check(what: str, tree: PyTree, stage: methods.Stage, epoch: int) -> None:
  """Raises NonFiniteLossError unless every floating-point number of `tree` is finite.

  Args:
    what: the tree, for the message: "the validation logits".
    tree: arrays, on the host or on devices.
    stage: that was run.
    epoch: its number in the stage, from 0.
  """
  leaves = jax.tree.leaves(tree)
  flags = jax.device_get([_is_finite(leaf) for leaf in leaves])
  if not all(flags):
    name = masks.paths(tree)[int(np.argmin(flags))]
    where = f"{what} ({name})" if name else what
    raise NonFiniteLossError(f"{where} are not finite after epoch {epoch + 1} {_remedy(stage)}")


def _is_finite(leaf: Any) -> Any:
  if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
    return True
  if isinstance(leaf, jax.Array):
    return _all_finite(leaf)  # a program per shape, whatever the tree
  return np.isfinite(np.asarray(leaf)).all()


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
  return jnp.isfinite(x).all()


def _remedy(stage: methods.Stage) -> str:
  solver = stage.solver
  if not isinstance(solver, methods.Gradient):
    return f"of stage {stage.name!r}; raise its l2, or standardize the features"
  rates = dict(solver.learning_rates)
  return (
    f"of stage {stage.name!r} with learning rates {rates}; lower them, or clip the gradient "
    "(clip_norm)"
  )
