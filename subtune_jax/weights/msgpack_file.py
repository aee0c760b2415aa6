"""Reads Flax's msgpack files (`flax.serialization.to_bytes`).

The library decodes maps, numbers and text, within limits that keep memory near the file's size;
arrays, which Flax nests as extensions, are taken apart here.
"""

from collections.abc import Mapping
import mmap
from typing import Any

from absl import logging
import ml_dtypes
import msgpack
import numpy as np

from subtune_jax.weights import errors, nested_names, raw_arrays

_ARRAY, _SCALAR = 1, 3  # codes of Flax's extensions; all others are dropped
_CHUNKED = "__msgpack_chunked_array__"
_MAX_LIST = 128  # of one list; the library allocates it when it reads its length
_SHOWN = 20
_HEAD = 512  # bytes: more than a shape and the name of a type take
_DTYPES = {
  name: np.dtype(name)
  for name in (
    *("float16", "float32", "float64", "complex64", "complex128", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
  )
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
_BIN_SIZES = {0xC4: 1, 0xC5: 2, 0xC6: 4}  # bytes of the length, by msgpack's type of raw bytes


def matches(data: mmap.mmap | bytes) -> bool:
  """Tells whether a file starts with a map, of at least one item."""
  return bool(data) and (0x81 <= data[0] <= 0x8F or data[0] in (0xDE, 0xDF))


def read(data: bytes, name: str) -> dict[str, np.ndarray]:
  """Returns the arrays by name, the keys of nested maps joined by '/'.

  Args:
    data: the whole file.
    name: the file's name, for the log.

  Raises:
    Damaged: a malformed file.
  """
  try:
    tree = msgpack.unpackb(
      data, raw=False, strict_map_key=False, ext_hook=_extension, object_pairs_hook=_map,
      max_array_len=_MAX_LIST,
    )  # fmt: skip
  except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as e:
    raise errors.Damaged("its msgpack is malformed or ends early") from e
  leaves = nested_names.flatten(tree, _children, "/", len(data))
  arrays = {k: v for k, v in leaves.items() if isinstance(v, np.ndarray)}
  if not arrays:
    raise errors.Damaged("it holds no array")
  dropped = [errors.quote(k)[1:-1] for k in leaves if k not in arrays]
  shown = ", ".join(dropped[:_SHOWN]) or "nothing"
  logging.info("%s: %d arrays; %d values are dropped, as no arrays: %s",
               name, len(arrays), len(dropped), shown)  # fmt: skip
  return arrays


def _children(value: Any) -> Mapping[Any, Any] | None:
  return value if isinstance(value, dict) else None


def _map(pairs: list[tuple[Any, Any]]) -> Any:
  """Returns a map as a dict, or as the array whose chunks it holds."""
  made = dict(pairs)
  if len(made) != len(pairs):
    raise errors.Damaged("a map has a key twice")
  return _unchunk(made) if _CHUNKED in made else made


def _unchunk(parts: Mapping[str, Any]) -> np.ndarray:
  """Returns an array that Flax saved in parts, as one of more than 1 GiB."""
  chunks, shape = _sequence(parts.get("chunks")), _sequence(parts.get("shape"))
  if not chunks or not all(isinstance(c, np.ndarray) for c in chunks):
    raise errors.Damaged("an array in chunks has none")
  if any(c.ndim != 1 or c.dtype != chunks[0].dtype for c in chunks):
    raise errors.Damaged("the chunks of an array are not of one kind")
  joined = np.concatenate(chunks)
  return raw_arrays.array("an array in chunks", joined.view(np.uint8).data, joined.dtype, shape)


def _sequence(parts: Any) -> list[Any]:
  """Returns the values of a dict that has the keys "0", "1", and so on."""
  if not isinstance(parts, dict) or any(str(i) not in parts for i in range(len(parts))):
    raise errors.Damaged("an array in chunks is not numbered")
  return [parts[str(i)] for i in range(len(parts))]


def _extension(code: int, data: bytes) -> np.ndarray | None:
  """Returns an array from Flax's extension: its shape, its type's name, its bytes."""
  if code not in (_ARRAY, _SCALAR):
    return None
  head = msgpack.Unpacker(raw=False, max_buffer_size=_HEAD, max_array_len=_MAX_LIST)
  head.feed(data[:_HEAD])
  if head.read_array_header() != 3:
    raise errors.Damaged("an array is not of three parts")
  shape, dtype = head.unpack(), head.unpack()
  if not isinstance(shape, list) or not isinstance(dtype, str) or dtype not in _DTYPES:
    raise errors.Damaged("an array has no shape or an unknown type")
  start = head.tell()
  width = _BIN_SIZES.get(data[start] if start < len(data) else -1)
  if width is None:
    raise errors.Damaged("an array has no bytes")
  start += 1 + width
  if int.from_bytes(data[start - width : start], "big") != len(data) - start:
    raise errors.Damaged("an array is longer or shorter than it declares")
  return raw_arrays.array("an array", memoryview(data)[start:], _DTYPES[dtype], shape)
