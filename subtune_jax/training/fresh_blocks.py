"""Blocks that start from fresh weights instead of the pretrained ones (SubTuning, appendix)."""

from collections.abc import Collection
import hashlib
from typing import Any

import jax
import jax.numpy as jnp

from subtune_jax import masks
from subtune_jax.models import backbone
from subtune_jax.training import trainable_split

PyTree = Any
_DRAW = int.from_bytes(hashlib.sha256(b"reinit").digest()[:4], "big")


def draw(
  model: Any, variables: PyTree, blocks: Collection[str], seed: int
) -> tuple[PyTree, PyTree]:
  """Variables whose named blocks are as the model initialises them.

  Args:
    model: a backbone.
    variables: {"params", "batch_stats"} of it.
    blocks: of its `block_names`; none leaves the variables as they are.
    seed: of the draw, which is not that of a network made at random from this seed.

  Returns:
    The variables, and {"params", "batch_stats"} trees of bool: leaves that were drawn.
  """
  trees = {name: variables[name] for name in ("params", "batch_stats")}
  drawn = {name: _inside(tree, tuple(blocks)) for name, tree in trees.items()}
  if not blocks:
    return variables, drawn
  key = jax.random.fold_in(jax.random.key(seed), _DRAW)
  images = jnp.zeros((1, model.image_size, model.image_size, 3))
  fresh = {"batch_stats": {}, **backbone.initialise(model, key, images)}
  changed = {}
  for name, tree in trees.items():
    new = dict(zip(masks.paths(fresh[name]), jax.tree.leaves(fresh[name]), strict=True))
    rows = zip(masks.paths(tree), jax.tree.leaves(tree), jax.tree.leaves(drawn[name]), strict=True)
    leaves = [new[path] if chosen else own for path, own, chosen in rows]
    changed[name] = jax.tree.unflatten(jax.tree.structure(tree), leaves)
  return {**variables, **changed}, drawn


def _inside(tree: PyTree, blocks: tuple[str, ...]) -> PyTree:
  """Whether each leaf lies in one of the blocks."""
  own = [trainable_split.unit_of(path, blocks) is not None for path in masks.paths(tree)]
  return jax.tree.unflatten(jax.tree.structure(tree), own)
