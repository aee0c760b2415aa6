"""Proof, on anybody's train step, that frozen leaves are not trained and cost nothing.

Values: frozen leaves are compared bit by bit after one step and after two, and so are the arrays of
the state that lie, in any field, under the path of a module whose parameters are all frozen
(running statistics).

State: what is named after a frozen leaf is its own, and so is a part of an array or a list without
such names that only a frozen leaf can have a use for: a copy, an average, or the slot of a frozen
leaf in an optimiser of all parameters (`kept`). An array that the loss reads and the step never
changes is a part of the model.

Gradients: the true gradient of the step's own loss is computed first, for every leaf. The step is
then traced, what XLA would remove as dead code is removed, and each value that is left is reduced
to a fingerprint (16 sums of it under random signs). A frozen leaf whose gradient has the
fingerprint of a live value, up to a factor, is computed by the step. The gradient of the trained
leaves alone is the reference: a value that it needs as well (a shared cotangent) is held against
the step only if, traced with the frozen leaf in a type of its own, the step has that value in this
type.

What it cannot see:

* changes and state that only come after the first two steps;
* gradients of a zero or non-finite value, listed as unchecked; those of functions with a
  `custom_vjp` that are not those of their forward pass; per-example gradients before they are
  summed; the inside of `shard_map`, `while_loop` and `cond`, only what comes out;
* statistics whose path names no module (a flat list of them). Those of a norm whose own parameters
  are frozen count as frozen, also inside a trained block;
* state without names in which the slots of frozen leaves stay idle and are not in the order of the
  parameters, or that holds another function of a frozen leaf than a multiple of it (a compressed
  copy, one of its squares), an average that one step does not move in its precision, or a single
  number; and state without names of single layers of an array that stacks trained and frozen ones.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from subtune_jax.masks import gradients, kept
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
    unchecked: frozen leaves of which it could not be seen whether the step computes their
      gradient: it is zero or not finite at this state; they are no part of the state, or integers;
      or it equals one that training needs, and the step takes no leaves of another type.
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

  The step is run twice, and again with other values in its parameters. It may be jitted and may
  donate; it must be traceable as a whole.

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
    ValueError: naming each frozen leaf that changed, owns state, or whose gradient is computed,
      and the statistics of frozen modules that changed; or saying why the step cannot be judged.
  """
  get = params or _default_params
  known = state_lib.describe(get, state, labels)
  jitted = jax.jit(lambda state, batch: step(state, batch))  # traced once for all that follows
  get_loss = _loss_getter(jax.eval_shape(jitted, state, batch), state, loss)

  def run(state):
    return _new_state(jitted(state, batch), state)

  flops = gradients.flops(jitted.lower(state, batch).compile())
  states = [state]
  for _ in range(2):
    states.append(run(states[-1]))
  last = states[-1]
  broken: dict[str, list[str]] = {path: [] for path in known.paths}
  unmoved = state_lib.compare(known, states, broken)
  read = kept.reads(lambda *args: get_loss(jitted(*args)), state, batch)
  unnamed = state_lib.find_owned(known, states, read, broken)
  read |= kept.reads(lambda *args: known.trained(_new_state(jitted(*args), state)), state, batch)
  kept.find(known, run, last, unnamed, read, broken)
  search = gradients.Gradients(jitted, get_loss, last, batch, known)
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
      "Differentiate the trained part alone (masks.partition, masks.combine in the loss), build "
      "the optimiser on it by masks.multi_transform, and run frozen norms on running statistics"
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
  structure: Any = jax.tree.structure(state)  # jax has no types for it
  if structure == jax.tree.structure(output):
    return output
  if isinstance(output, tuple) and output and structure == jax.tree.structure(output[0]):
    return output[0]
  raise ValueError(
    "step must return a new state of the structure it was given, or a tuple that starts with it; "
    f"it returned {jax.tree.structure(output)} for the state {structure}"
  )


def _loss_getter(
  output: Any, state: Any, loss: Callable[[Any], Any] | None
) -> Callable[[Any], jax.Array]:
  """Returns a function from what the step returns to its scalar loss."""
  new = _new_state(output, state)
  hint = "pass loss=, a function from what the step returns to the scalar loss"
  if loss is not None:
    shape = jax.eval_shape(loss, output)
    if getattr(shape, "size", None) != 1:
      raise ValueError(f"loss= must give a scalar, got {shape}")
    return lambda output: jnp.reshape(loss(output), ())
  if new is output:
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
