"""Rematerialisation: what a block computes is computed anew in the backward pass, and not kept.

A step keeps the inputs of such a block alone. That takes less memory, and the time of a second
forward pass through it.
"""

from collections.abc import Collection
import itertools
from typing import Any

import jax

from subtune_jax import masks
from subtune_jax.models import backbone
from subtune_jax.training import trainable_split

PyTree = Any
ALL = "all"


def blocks_of(text: str, model: Any, params: PyTree) -> tuple[str, ...]:
  """The blocks that a text names, input to output.

  Args:
    text: "all", "" for none, or selectors of `subtune_jax.masks` with commas between: a block is
      named where one of its leaves is.
    model: a backbone.
    params: of it.

  Raises:
    ValueError: a selector that names nothing, or nothing inside a block.
  """
  if text in ("", ALL):
    return tuple(model.block_names) if text else ()
  found = set()
  for selector in (part.strip() for part in text.split(",")):
    try:
      chosen = masks.select(params, selector)
    except ValueError as e:
      raise ValueError(f"remat: {e}") from e
    rows = zip(masks.paths(params), jax.tree.leaves(chosen), strict=True)
    own = {trainable_split.unit_of(path, model.block_names) for path, named in rows if named}
    if not own - {None}:
      raise ValueError(
        f"remat names {selector!r}, which lies in no block; blocks: {', '.join(model.block_names)}"
      )
    found |= own
  return tuple(name for name in model.block_names if name in found)


def apply(
  model: Any, blocks: Collection[str], variables: PyTree, x: jax.Array, *, start: str | None,
  stop: str | None, mutable: Any, **options: Any,
) -> Any:  # fmt: skip
  """`model.apply`, with the named blocks computed anew in the backward pass.

  Args:
    model: a backbone.
    blocks: of its `block_names`.
    variables: of it.
    x: what `start` reads.
    start: see `Backbone.__call__`; `stop` likewise.
    mutable: ["batch_stats"], or False.
    **options: others of `model.apply`.
  """
  if not blocks:
    return model.apply(variables, x, start=start, stop=stop, mutable=mutable, **options)
  units = backbone.unit_range(model.block_names, start, stop)
  after = dict(itertools.pairwise((*units, stop)))
  updated: dict[str, PyTree] = {}
  for name, members in itertools.groupby(units, lambda unit: unit if unit in blocks else None):
    run = tuple(members)

    def part(variables, x, run=run):
      own = {"start": run[0], "stop": after[run[-1]], "mutable": mutable}
      return model.apply(variables, x, **own, **options)

    out = (part if name is None else jax.checkpoint(part))({**variables, **updated}, x)
    x, updated = out if mutable else (out, {})
  return (x, updated) if mutable else x
