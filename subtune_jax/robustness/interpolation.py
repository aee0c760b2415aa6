"""Weight interpolation between two solutions of one network (WiSE-FT, arXiv 2109.01903)."""

import math
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def interpolate(start: PyTree, end: PyTree, alpha: float) -> PyTree:
  """(1 - alpha) start + alpha end, leaf by leaf; the ends are the solutions themselves.

  Running statistics of BatchNorm are interpolated with the parameters. WiSE-FT interpolates the
  zero-shot model and the fine-tuned one; a probe on the same backbone serves as well as a start.

  Args:
    start: variables, e.g. {"params", "batch_stats"} of the probe.
    end: variables of the fine-tuned network, of the same structure and shapes.
    alpha: 0 gives `start` and 1 gives `end`, bit for bit.

  Raises:
    ValueError: alpha is no finite number, or the trees differ in structure or shapes.
  """
  if not math.isfinite(alpha):
    raise ValueError(f"alpha is {alpha}; give a finite number, 0 to 1 between the two solutions")
  structure: Any = jax.tree.structure(start)  # jax has no types for it
  if structure != jax.tree.structure(end):
    raise ValueError("the two solutions differ in structure; interpolate one network with itself")
  leaves, _ = jax.tree_util.tree_flatten_with_path(start)
  for (path, a), b in zip(leaves, jax.tree.leaves(end), strict=True):
    if jnp.shape(a) != jnp.shape(b):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      raise ValueError(f"{name} is {jnp.shape(a)} at the start and {jnp.shape(b)} at the end")
  if alpha in (0, 1):
    return end if alpha else start
  return jax.tree.map(lambda a, b: ((1 - alpha) * a + alpha * b).astype(a.dtype), start, end)
