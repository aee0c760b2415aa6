"""Frozen weights kept as bfloat16 on the devices: half of their memory, and no number changes.

The backbone is rounded to bfloat16 once, before any training (`rounded`); its arrays stay float32.
Of such numbers the cast to bfloat16 is exact, so a step that keeps what it does not train as
bfloat16 (`narrowed`) and casts it back where it computes (`widened`) gives the bits of one that
keeps float32. Trained leaves, their gradients and the optimiser's state are float32.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import masks, methods

PyTree = Any
FLOAT32, BFLOAT16 = DTYPES = ("float32", "bfloat16")


def rounded(variables: PyTree) -> PyTree:
  """The variables with each float32 parameter outside the head at the nearest bfloat16 number."""
  params = variables["params"]
  leaves = [
    _nearest(leaf) if leaf.dtype == np.float32 and methods.backbone(path, leaf) else leaf
    for path, leaf in zip(masks.paths(params), jax.tree.leaves(params), strict=True)
  ]
  return {**variables, "params": jax.tree.unflatten(jax.tree.structure(params), leaves)}


def narrowed(fixed: PyTree) -> PyTree:
  """The frozen half of the variables, parameters as bfloat16 where that is exact.

  Args:
    fixed: {"params", "batch_stats"}, None where a leaf is trained. Running statistics stay as they
      are, and so do leaves that an earlier stage trained.
  """
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if _is_exact(x) else x, fixed["params"])
  return {**fixed, "params": params}


def widened(variables: PyTree) -> PyTree:
  """The variables with float32 in place of bfloat16; others are the same arrays."""
  return jax.tree.map(
    lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, variables
  )  # fmt: skip


def check(params: PyTree, trained: Sequence[PyTree], drawn: PyTree) -> None:
  """Raises ValueError for a parameter of the backbone that is never trained and is not rounded.

  Args:
    params: to start from.
    trained: of each stage, the labels of the parameters.
    drawn: bool tree: those that were drawn anew.
  """
  rows = zip(
    masks.paths(params), jax.tree.leaves(params), jax.tree.leaves(drawn),
    *(jax.tree.leaves(labels) for labels in trained), strict=True,
  )  # fmt: skip
  for path, leaf, is_drawn, *labels in rows:
    moves = is_drawn or any(label != masks.FROZEN for label in labels)
    counts = not moves and leaf.dtype == np.float32 and methods.backbone(path, leaf)
    if counts and not _is_exact(leaf):
      raise ValueError(
        f"frozen_dtype is 'bfloat16' and {path} holds numbers that bfloat16 does not; start from "
        "training.frozen_storage.rounded(variables), or set frozen_dtype='float32'"
      )


def _nearest(leaf: Any) -> np.ndarray:
  return np.asarray(leaf).astype(jnp.bfloat16).astype(np.float32)


def _is_exact(leaf: Any) -> bool:
  return leaf.dtype == np.float32 and np.array_equal(_nearest(leaf), np.asarray(leaf))
