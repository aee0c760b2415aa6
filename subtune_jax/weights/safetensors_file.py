"""Reads safetensors files, through the library of that name."""

import mmap

import ml_dtypes
import numpy as np

from subtune_jax.weights import errors, raw_arrays

_MAX_HEADER = 100_000_000  # bytes, as the library has it
_DTYPES = {
  "F64": np.dtype("<f8"),
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "I64": np.dtype("<i8"),
  "I32": np.dtype("<i4"),
  "I16": np.dtype("<i2"),
  "I8": np.dtype("i1"),
  "U64": np.dtype("<u8"),
  "U32": np.dtype("<u4"),
  "U16": np.dtype("<u2"),
  "U8": np.dtype("u1"),
  "BOOL": np.dtype("?"),
}


def matches(data: mmap.mmap | bytes) -> bool:
  """Tells whether a file starts as the format does: a header's length, then its JSON."""
  return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= _MAX_HEADER


def read(data: bytes) -> dict[str, np.ndarray]:
  """Returns the tensors; the library copies them, so that the file is twice in memory.

  Raises:
    Refused: a type of tensor that has no equal here.
    Damaged: a header that the library rejects.
  """
  try:
    import safetensors
  except ImportError as e:
    raise errors.Refused("it is a safetensors file", "run: pip install safetensors") from e
  try:
    entries = safetensors.deserialize(data)
  except safetensors.SafetensorError as e:
    raise errors.Damaged(f"its header is malformed ({errors.quote(str(e))[1:-1]})") from e
  tensors = {}
  for name, entry in entries:
    what = f"tensor {errors.quote(name)}"
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
      known = ", ".join(_DTYPES)
      raise errors.Refused(f"{what} is of type {entry['dtype']}", f"save it as one of {known}")
    tensors[name] = raw_arrays.array(what, entry["data"], dtype, entry["shape"])
  return tensors
