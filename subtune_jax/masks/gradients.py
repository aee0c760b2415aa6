"""The search for the gradients of frozen leaves among the values that a train step computes."""

from typing import Any

import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np

from subtune_jax.masks import fingerprints
from subtune_jax.masks import state as state_lib


def flops(compiled: Any) -> float:
  analysis = compiled.cost_analysis()
  analysis = analysis[0] if isinstance(analysis, list | tuple) else analysis
  return float((analysis or {}).get("flops", np.nan))


def _is_float(x: Any) -> bool:
  return jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)


class Gradients:
  """The search for the gradients of frozen leaves among the values that a step computes."""

  def __init__(self, step, get_loss, state, batch, known: state_lib.Params):
    self._known = known
    self._step = jax.make_jaxpr(step)(state, batch)
    self._leaves, _ = jax.tree.flatten((state, batch))
    closed = jax.make_jaxpr(lambda state, batch: get_loss(step(state, batch)))(state, batch)
    live, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True], instantiate=True)
    self._loss = lambda leaves: jax.core.eval_jaxpr(live, closed.consts, *leaves)[0]
    self._tolerance = fingerprints.tolerance(self._step.jaxpr)
    self._true, self.full_flops = self._true_gradients(state)

  def _gradient(self, frozen_too: bool):
    """Returns a function of the state's leaves that params are made of, and those leaves' ids."""
    known = self._known
    wanted = [sources for sources, frozen in zip(known.sources, known.frozen, strict=True)
              if frozen_too or not frozen]  # fmt: skip
    chosen = sorted({j for sources in wanted for j in sources if _is_float(self._leaves[j])})

    def loss(values, leaves):
      leaves = list(leaves)
      for j, value in zip(chosen, values, strict=True):
        leaves[j] = value
      return self._loss(leaves)

    return lambda leaves: jax.value_and_grad(loss)([leaves[j] for j in chosen], leaves), chosen

  def _true_gradients(self, state) -> tuple[list[Any], float]:
    """Returns the gradient of the loss, leaf by leaf of the params, and the flops of it all."""
    function, chosen = self._gradient(frozen_too=True)
    compiled = jax.jit(function).lower(self._leaves).compile()
    _, gradients = compiled(self._leaves)
    leaves, structure = jax.tree.flatten(state)
    for j, gradient in zip(chosen, gradients, strict=True):
      leaves[j] = gradient
    return self._known.leaves(structure.unflatten(leaves)), flops(compiled)

  def find(self, broken: dict[str, list[str]]) -> list[str]:
    """Notes in `broken` the frozen leaves whose gradient is live. Returns those that it cannot see.

    Raises:
      ValueError: not even the gradients of trained leaves can be found.
    """
    known = self._known
    marks = [fingerprints.mark(g) if _is_float(g) and sources else None
             for g, sources in zip(self._true, known.sources, strict=True)]  # fmt: skip
    sizes = frozenset(int(np.size(g)) for g in self._true)
    live = fingerprints.fingerprints(self._step, self._leaves, sizes)
    largest = max([mark.rms for mark in marks if mark is not None], default=0.0)

    def visible(mark):
      return mark.rms > 1e-6 * largest

    trained = [i for i, mark in enumerate(marks) if not known.frozen[i] and mark is not None]
    if not any(visible(marks[i]) and marks[i].among(live, self._tolerance) for i in trained):
      raise ValueError(
        "the gradient of no trained leaf was found among the values of the step, so nothing can be "
        "said of the frozen ones: is `loss` the quantity that the step differentiates? (pass "
        "loss=) Steps inside shard_map or pmap cannot be looked into"
      )
    suspects = [i for i, mark in enumerate(marks) if known.frozen[i] and mark is not None
                and visible(mark) and mark.among(live, self._tolerance)]  # fmt: skip
    if suspects:
      function, _ = self._gradient(frozen_too=False)
      reference = jax.make_jaxpr(function)(self._leaves)
      needed = fingerprints.fingerprints(reference, self._leaves, sizes, carry_only=True)
      for i in suspects:
        if not marks[i].among(needed, self._tolerance):
          broken[known.paths[i]].append("its gradient is computed")
    return [known.paths[i] for i, mark in enumerate(marks)
            if known.frozen[i] and not (mark is not None and visible(mark))]  # fmt: skip
