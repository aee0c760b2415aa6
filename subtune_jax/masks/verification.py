"""Proof, on anybody's train step, that frozen leaves are not trained and cost nothing.

How the gradient of a frozen leaf is found in a program: the true gradient of the step's own loss
is computed first, for every leaf. The step is then traced, what XLA would remove as dead code is
removed, and each value that is left is reduced to a fingerprint (16 sums of it under
random signs). A frozen leaf whose gradient has the fingerprint of a live value, up to a factor, is
computed by the step. The gradient of the trained leaves alone is the reference: a value that it
needs as well (a shared cotangent) is not held against the step.

What it cannot see: gradients of a zero or non-finite value, and functions with a `custom_vjp`
whose gradient is not that of their forward pass, are listed as unchecked or missed; per-example
gradients are seen only once they are summed; the inside of `shard_map`, `while_loop` and `cond`
is not looked into, only what comes out.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from subtune_jax.masks import gradients
from subtune_jax.masks import state as state_lib
from subtune_jax.masks import tree as tree_lib


@dataclasses.dataclass(frozen=True)
class Report:
  """What `verify` measured on a step that passed.

  Attributes:
    num_trained: number of leaves that are trained.
    num_frozen: number of leaves that are frozen.
    flops: of the compiled step, by XLA's count (nan where the platform has none).
    full_flops: of the loss and the gradient of every leaf, without optimiser.
    state_bytes: bytes of the optimiser state; where the state has no field `opt_state`, bytes of
      all that is not parameters.
    unmoved: trained leaves that the step left as they were.
    unchecked: frozen leaves whose gradient is zero or not finite at this state, or that are no
      part of the state or integers, so that whether the step computes it could not be seen.
  """

  num_trained: int
  num_frozen: int
  flops: float
  full_flops: float
  state_bytes: int
  unmoved: tuple[str, ...]
  unchecked: tuple[str, ...]


def verify(
  step: Callable[..., Any],
  state: Any,
  batch: Any,
  labels: Any,
  *,
  params: Callable[[Any], Any] | None = None,
  loss: Callable[[Any], jax.Array] | None = None,
) -> Report:
  """Proves that `step` leaves the frozen leaves bit-equal, without state and without gradient.

  The step is run twice. It may be jitted and may donate; it must be traceable as a whole.

  Args:
    step: (state, batch) -> new state, or (new state, metrics, ...).
    state: a pytree: a Flax TrainState, an nnx.State, or any other.
    batch: what the step takes; use at least two examples.
    labels: tree of strings shaped as the parameters; `masks.FROZEN` is what must not be trained.
    params: state -> parameters. By default `state.params` or `state["params"]`.
    loss: what the step returns -> the scalar that it differentiates. By default the metrics if
      they are a scalar, or their only leaf under the name `loss`.

  Returns:
    A report, with flops and bytes.

  Raises:
    ValueError: naming each frozen leaf that changed, owns state, or whose gradient is computed;
      or saying why the step cannot be judged.
  """
  get = params or _default_params
  known = state_lib.describe(get, state, labels)
  get_loss = _loss_getter(jax.eval_shape(step, state, batch), state, loss)
  jitted = jax.jit(lambda state, batch: step(state, batch))
  flops = gradients.flops(jitted.lower(state, batch).compile())
  last = state
  for _ in range(2):
    last = _new_state(jitted(last, batch), state)
  broken = {path: [] for path in known.paths}
  unmoved = state_lib.compare(known, state, last, broken)
  state_lib.find_owned(known, state, broken)
  search = gradients.Gradients(step, get_loss, last, batch, known)
  unchecked = search.find(broken)
  _raise_broken(broken)
  return Report(
    num_trained=known.frozen.count(False),
    num_frozen=known.frozen.count(True),
    flops=flops,
    full_flops=search.full_flops,
    state_bytes=state_lib.state_bytes(known, state),
    unmoved=tuple(unmoved),
    unchecked=tuple(unchecked),
  )


def _raise_broken(broken: Mapping[str, list[str]]) -> None:
  found = sorted((path for path in broken if broken[path]), key=tree_lib.natural_key)
  lines = [f"  {path}: {'; '.join(broken[path])}" for path in found]
  if lines:
    raise ValueError(
      f"{len(lines)} frozen leaves are not left alone by the step:\n" + "\n".join(lines) + "\n"
      "Differentiate the trained part alone (masks.partition, masks.combine in the loss) and "
      "build the optimiser on it by masks.multi_transform"
    )


def _default_params(state: Any) -> Any:
  if isinstance(state, Mapping) and "params" in state:
    return state["params"]
  if hasattr(state, "params"):
    return state.params
  raise ValueError(
    f"a state of type {type(state).__name__} has neither .params nor ['params']: pass "
    "params=, a function from the state to its parameters"
  )


def _new_state(output: Any, state: Any) -> Any:
  """Returns the state in what a step returns."""
  structure = jax.tree.structure(state)
  if jax.tree.structure(output) == structure:
    return output
  if isinstance(output, tuple) and output and jax.tree.structure(output[0]) == structure:
    return output[0]
  raise ValueError(
    "step must return a new state of the structure it was given, or a tuple that starts with it; "
    f"it returned {jax.tree.structure(output)} for the state {structure}"
  )


def _loss_getter(
  output: Any, state: Any, loss: Callable[[Any], Any] | None
) -> Callable[[Any], jax.Array]:
  """Returns a function from what the step returns to its scalar loss."""
  _new_state(output, state)
  hint = "pass loss=, a function from what the step returns to the scalar loss"
  if loss is not None:
    shape = jax.eval_shape(loss, output)
    if getattr(shape, "size", None) != 1:
      raise ValueError(f"loss= must give a scalar, got {shape}")
    return lambda output: jnp.reshape(loss(output), ())
  if jax.tree.structure(output) == jax.tree.structure(state):
    raise ValueError(f"the step returns no loss: return (state, loss), or {hint}")
  found = list(zip(tree_lib.paths(output[1:]), jax.tree.leaves(output[1:]), strict=True))
  scalars = [i for i, (_, leaf) in enumerate(found) if leaf.size == 1]
  named = [i for i in scalars if "loss" in found[i][0].split("/")]
  chosen = named or scalars
  if len(chosen) != 1:
    raise ValueError(
      f"which of the step's metrics is the loss? {[found[i][0] for i in chosen]} of "
      f"{[path for path, _ in found]}: {hint}"
    )
  return lambda output: jnp.reshape(jax.tree.leaves(output[1:])[chosen[0]], ())
