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
    self._trace = lambda state: jax.make_jaxpr(step)(state, batch)
    self._step = self._trace(state)
    self._state, self._batch = state, jax.tree.leaves(batch)
    self._leaves = [*jax.tree.leaves(state), *self._batch]
    closed = jax.make_jaxpr(lambda state, batch: get_loss(step(state, batch)))(state, batch)
    live, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True], instantiate=True)
    self._loss = lambda leaves: jax.core.eval_jaxpr(live, closed.consts, *leaves)[0]
    self._tolerance = fingerprints.tolerance(self._step.jaxpr)
    function, self._chosen = self._gradient(frozen_too=True)
    self._compiled = jax.jit(function).lower(self._leaves).compile()
    self.full_flops = flops(self._compiled)

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

  def _marks(self, state: Any) -> list[fingerprints.Mark | None]:
    """Returns the fingerprint of the loss's gradient for each leaf of the params."""
    leaves, structure = jax.tree.flatten(state)
    _, gradients = self._compiled([*leaves, *self._batch])
    for j, gradient in zip(self._chosen, gradients, strict=True):
      leaves[j] = gradient
    true = self._known.leaves(jax.tree.unflatten(structure, leaves))
    return [fingerprints.mark(g) if _is_float(g) and sources else None
            for g, sources in zip(true, self._known.sources, strict=True)]  # fmt: skip

  def find(self, broken: dict[str, list[str]]) -> list[str]:
    """Notes in `broken` the frozen leaves whose gradient is live. Returns those that it cannot see.

    Raises:
      ValueError: not even the gradients of trained leaves can be found.
    """
    known = self._known
    marks = self._marks(self._state)
    sizes = frozenset(mark.size for mark in marks if mark is not None)
    live = fingerprints.fingerprints(self._step, self._leaves, sizes)
    largest = max([mark.rms for mark in marks if mark is not None], default=0.0)

    def visible(mark):
      return mark.rms > 1e-6 * largest

    trained = [mark for mark, frozen in zip(marks, known.frozen, strict=True)
               if not frozen and mark is not None]  # fmt: skip
    if not any(visible(mark) and mark.among(live, self._tolerance) for mark in trained):
      raise ValueError(
        "the gradient of no trained leaf was found among the values of the step, so nothing can be "
        "said of the frozen ones: is `loss` the quantity that the step differentiates? (pass "
        "loss=) Steps inside shard_map or pmap cannot be looked into"
      )
    suspects = [i for i, mark in enumerate(marks) if known.frozen[i] and mark is not None
                and visible(mark) and mark.among(live, self._tolerance)]  # fmt: skip
    computed, unseen = self._judge(suspects, marks, sizes) if suspects else (set(), set())
    for i in sorted(computed):
      broken[known.paths[i]].append("its gradient is computed")
    unseen |= {i for i, mark in enumerate(marks)
               if known.frozen[i] and not (mark is not None and visible(mark))}  # fmt: skip
    return [known.paths[i] for i in sorted(unseen)]

  def _judge(self, suspects, marks, sizes) -> tuple[set[int], set[int]]:
    """Returns the suspects whose gradient is computed, and those of which that cannot be said.

    A gradient that training needs for another reason (a shared cotangent) is no offence, unless
    the step computes it for the frozen leaf as well.
    """
    function, _ = self._gradient(frozen_too=False)
    reference = jax.make_jaxpr(function)(self._leaves)
    needed = fingerprints.fingerprints(reference, self._leaves, sizes, carry_only=True)
    shared = [i for i in suspects if marks[i].among(needed, self._tolerance)]
    if not shared:
      return set(suspects), set()
    computed, unseen = self._judge_by_type(shared, sizes)
    return computed | (set(suspects) - set(shared)), unseen

  def _judge_by_type(self, ids: list[int], sizes: frozenset[int]) -> tuple[set[int], set[int]]:
    """As `_judge`, of leaves whose gradient equals another one.

    The step is traced with these leaves in a type that it has nowhere else. A gradient has the type
    of its leaf, and other values become no narrower: what has this type and the value of the
    gradient is the gradient of the leaf.
    """
    known, found = self._known, fingerprints.dtypes(self._step.jaxpr)
    found |= {jnp.asarray(leaf).dtype for leaf in self._leaves}
    types = map(jnp.dtype, (jnp.bfloat16, jnp.float16))
    rare = next((dtype for dtype in types if dtype not in found), None)
    others = {j for i, sources in enumerate(known.sources) if i not in ids for j in sources}
    unseen = {i for i in ids if rare is None or set(known.sources[i]) & others}
    leaves, structure = jax.tree.flatten(self._state)
    rounded = list(leaves)
    for j in {j for i in set(ids) - unseen for j in known.sources[i]}:
      rounded[j] = jnp.asarray(leaves[j]).astype(rare)
      leaves[j] = rounded[j].astype(leaves[j].dtype)
    try:
      traced = self._trace(jax.tree.unflatten(structure, rounded))
    except Exception:  # anybody's step, which may take parameters of one type alone
      return set(), set(ids)
    rows = fingerprints.fingerprints(traced, [*rounded, *self._batch], sizes, dtype=rare)
    marks = enumerate(self._marks(jax.tree.unflatten(structure, leaves)))
    computed = {i for i, mark in marks if i in ids and i not in unseen and mark is not None
                and mark.among(rows, 2e-2, length_tolerance=2e-2)}  # fmt: skip
    return computed, unseen
