"""Arrays of numbers from raw bytes."""

from collections.abc import Sequence
import math
from typing import Any, Literal

import numpy as np

from subtune_jax.weights import errors

_MAX_DIMENSIONS = 32
_MAX_EMPTY = 2**31  # product of the other sizes of an array without values


def empty(what: str, dtype: np.dtype, shape: Sequence[int]) -> np.ndarray:
  """Returns a read-only array of a shape without values.

  Raises:
    Damaged: its other sizes are beyond what numpy and JAX can describe.
  """
  if math.prod(n or 1 for n in shape) >= _MAX_EMPTY:
    raise errors.Damaged(f"{what} is empty and huge")
  values = np.empty(tuple(shape), dtype)
  values.flags.writeable = False
  return values


def array(
  what: str,
  data: bytes | bytearray | memoryview,
  dtype: np.dtype,
  shape: Sequence[Any],
  order: Literal["C", "F"] = "C",
) -> np.ndarray:
  """Returns a read-only view of bytes that are as many as the shape says.

  Args:
    what: the array in words, for error messages.
    data: the raw values.
    dtype: of plain numbers.
    shape: as the file declares it.
    order: of the values in the file.

  Raises:
    Damaged: another number of bytes, or a shape that is none.
  """
  if len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
    raise errors.Damaged(f"{what} has no shape")
  if math.prod(shape) * dtype.itemsize != len(data):
    raise errors.Damaged(f"{what} has {len(data)} bytes, which {dtype} {tuple(shape)} does not fit")
  if not data:
    return empty(what, dtype, shape)
  values = np.ndarray(tuple(shape), dtype, data, order=order)
  if not dtype.isnative:
    values = values.astype(dtype.newbyteorder("="))
  values.flags.writeable = False
  return values
