"""One code for numpy and JAX arrays, and passes over the rows of logits that copy little.

numpy in: computed by numpy in blocks of rows, with sums in float64. JAX arrays in, or traced: one
jitted program, so that sharded logits stay where they are. What is left after a pass (a number or
two per row) goes to the host, in float64, unless it is traced or spread over several hosts.
"""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = np.ndarray | jax.Array
Number = float | Array  # one number: a float of numpy's, an array without axes of JAX's
BLOCK_BYTES = 2**21  # of one block of rows: fits the cache, with a copy or two
SCATTER_PASSES = 4  # of means by scatter, which adds one by one: each adds what the last one lost


def is_concrete(x: Any) -> bool:
  """Whether this process can read the values of `x`: not traced, not on other hosts."""
  if isinstance(x, jax.core.Tracer):
    return False
  return not isinstance(x, jax.Array) or x.is_fully_addressable


def namespace(*arrays: Any) -> ModuleType:
  """`jax.numpy` where any of `arrays` is a JAX array or traced, else `numpy`."""
  return jnp if any(isinstance(x, jax.Array) for x in arrays) else np


def host(x: Array) -> Array:
  """`x` as numpy, floats as float64, where its values can be read; else `x` itself."""
  if not is_concrete(x):
    return x
  x = np.asarray(x)
  return x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def widen(xp: ModuleType, x: Array) -> Array:
  """`x` in the precision that sums are made in: float64 in numpy, at least float32 in JAX."""
  return x.astype(np.float64) if xp is np else at_least_float32(x)


def at_least_float32(x: Array) -> Array:
  """`x` in its own precision, but lower ones as float32."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def nan_unless(valid: Array | bool, x: Array) -> Array:
  """The floats `x`, or NaN all over where the traced `valid` (`checks.valid`) is false."""
  return x if valid is True else jnp.where(valid, x, np.nan)


def blocks(logits: Array) -> Iterator[slice]:
  """Slices of rows that are `BLOCK_BYTES` of logits each."""
  rows = max(1, BLOCK_BYTES // max(1, logits.itemsize * logits[:1].size))
  for start in range(0, len(logits), rows):
    yield slice(start, start + rows)


def map_rows(
  f: Callable[..., tuple[Array, ...]], rows: tuple[Array, ...], shared: tuple[Any, ...] = ()
) -> tuple[Array, ...]:
  """Returns what `f(xp, *rows, *shared)` returns, one value or more per row.

  Args:
    f: a function of the module that works on its arrays and then on arrays; its results have the
      rows as their first axis. A function of a module, so that it is compiled once.
    rows: arrays with the rows as their first axis, logits first.
    shared: arrays that every row needs whole.
  """
  xp = namespace(*rows, *shared)
  if xp is jnp:
    return jax.jit(f, static_argnums=0)(jnp, *rows, *shared)
  done = [f(np, *(r[block] for r in rows), *shared) for block in blocks(rows[0])]
  return tuple(np.concatenate(parts) for parts in zip(*done, strict=True))


def sum_rows(
  f: Callable[..., tuple[Array, ...]], rows: tuple[Array, ...], shared: tuple[Any, ...] = ()
) -> tuple[Array, ...]:
  """Like `map_rows` for an `f` that returns sums over its rows."""
  xp = namespace(*rows, *shared)
  if xp is jnp:
    return jax.jit(f, static_argnums=0)(jnp, *rows, *shared)
  done = [f(np, *(r[block] for r in rows), *shared) for block in blocks(rows[0])]
  return tuple(sum(parts) for parts in zip(*done, strict=True))


def log_softmax(xp: ModuleType, z: Array) -> Array:
  """Logarithm of the softmax over the last axis; z: [..., C], at least one finite value a row."""
  z = z - z.max(-1, keepdims=True)
  return z - xp.log(xp.exp(z).sum(-1, keepdims=True))


def at_labels(xp: ModuleType, z: Array, labels: Array) -> Array:
  """Column `labels` of each row: z [N, C], labels [N] -> [N]."""
  return xp.take_along_axis(z, labels[:, None], axis=1)[:, 0]
