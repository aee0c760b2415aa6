"""Reads numpy's `.npz` archives; arrays of objects, which are pickles, are refused."""

import io
import tokenize

import ml_dtypes
import numpy as np

from subtune_jax.weights import errors, raw_arrays, zip_archive

_SUFFIX = ".npy"
_MAX_HEADER = 10_000
_KINDS = "biufc"
_READERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}
_FIX = "save plain arrays of numbers with numpy.savez"
# What numpy's parser of headers, which are Python literals, raises for text that is none.
_HEADER_ERRORS = (
  *(ValueError, TypeError, SyntaxError, KeyError, EOFError, OverflowError),
  *(tokenize.TokenError, RecursionError, MemoryError),
)


def holds_arrays(archive: zip_archive.Archive) -> bool:
  """Tells whether every entry is an array file."""
  return bool(archive.names) and all(name.endswith(_SUFFIX) for name in archive.names)


def read(archive: zip_archive.Archive) -> dict[str, np.ndarray]:
  """Returns the arrays: of stored entries, views of the file.

  Two-byte values without a type are bfloat16, which numpy's format has no name for.

  Raises:
    Refused: an array of objects, text or records.
    Damaged: an array whose checksum is wrong or whose header does not fit its length.
  """
  names = [name.removesuffix(_SUFFIX) for name in archive.names]
  return {name: _array(name, archive.read(name + _SUFFIX)) for name in names}


def _array(name: str, content: bytes | memoryview) -> np.ndarray:
  head = io.BytesIO(content[: _MAX_HEADER + 16])
  try:
    reader = _READERS[np.lib.format.read_magic(head)]
    shape, fortran, dtype = reader(head, max_header_size=_MAX_HEADER)
  except _HEADER_ERRORS as e:
    raise errors.Damaged(f"the header of array {errors.quote(name)} is malformed") from e
  if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None and dtype.subdtype is None:
    dtype = np.dtype(ml_dtypes.bfloat16)
  elif dtype.kind not in _KINDS:
    raise errors.Refused(f"array {errors.quote(name)} holds no numbers", _FIX)
  values = memoryview(content)[head.tell() :]
  what = f"array {errors.quote(name)}"
  return raw_arrays.array(what, values, dtype, shape, "F" if fortran else "C")
