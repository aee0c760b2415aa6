"""Reads torch's legacy `.pth` files (five pickles, then raw storages) without torch.

The pickles go to `pickle_machine`, which resolves no name but those given here: the stand-ins for
tensor rebuilding.
"""

from collections.abc import Callable, Mapping
import io
import math
import textwrap
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from subtune_jax.weights import errors, pickle_machine
from subtune_jax.weights.pickle_machine import Damaged, Refused

# Protocol 2, then the ten bytes of torch's magic number 0x1950a86a20f9469cfc6c.
SIGNATURE = b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_PROTOCOL_VERSION = 1001
_MAX_DIMENSIONS = 8
_MAX_REASON = 400  # characters of an error message that quote the file

_STORAGE_TYPES = {
  "torch.FloatStorage": np.dtype("<f4"),
  "torch.DoubleStorage": np.dtype("<f8"),
  "torch.HalfStorage": np.dtype("<f2"),
  "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "torch.LongStorage": np.dtype("<i8"),
  "torch.IntStorage": np.dtype("<i4"),
  "torch.ShortStorage": np.dtype("<i2"),
  "torch.CharStorage": np.dtype("i1"),
  "torch.ByteStorage": np.dtype("u1"),
  "torch.BoolStorage": np.dtype("?"),
}


class _Storage(NamedTuple):
  """A reference to raw numbers that follow the pickles."""

  dtype: np.dtype
  key: str
  numel: int


class _Tensor(NamedTuple):
  """A strided view of a storage, in elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def read(data: bytes, name: str) -> Mapping[str, np.ndarray]:
  """Returns the tensors of a legacy file as read-only views of `data`.

  Args:
    data: the whole file.
    name: the file's name, for error messages.

  Raises:
    WeightsError: a name other than those of tensor rebuilding, or a damaged file.
  """
  try:
    return _read(data)
  except Refused as e:
    reason = textwrap.shorten(str(e), _MAX_REASON)
    raise errors.WeightsError(f"{name} was refused: {reason}. Nothing in it was executed") from e
  except Damaged as e:
    reason = textwrap.shorten(str(e), _MAX_REASON)
    raise errors.WeightsError(f"{name} is damaged: {reason}. Get the file again") from e


def _read(data: bytes) -> dict[str, np.ndarray]:
  stream = io.BytesIO(data)
  _, protocol = _load(stream), _load(stream)  # the signature has checked the first
  if protocol != _PROTOCOL_VERSION:
    raise Damaged(f"its protocol version is not {_PROTOCOL_VERSION}")
  system = _load(stream)
  if not isinstance(system, dict) or system.get("little_endian") is not True:
    raise Refused("it was not written on a little-endian machine")
  tensors = _load(stream)
  if not isinstance(tensors, dict):
    raise Refused(f"it holds a {type(tensors).__name__}, not a dict of tensors")
  keys = _load(stream)
  wrong = [k for k, v in tensors.items() if not isinstance(v, _Tensor)]
  if wrong:
    raise Refused(f"it is not a plain state dict: {wrong[0]!r} is not a tensor")
  declared = _declared_storages(tensors)
  storages = _map_storages(data, stream.tell(), keys, declared)
  return {k: _view(k, t, storages[t.storage.key]) for k, t in tensors.items()}


def _load(stream: io.BytesIO) -> Any:
  return pickle_machine.load(stream, _resolve, _storage)


def _declared_storages(tensors: Mapping[str, _Tensor]) -> dict[str, _Storage]:
  """Returns the storages that the tensors refer to, each declared in one way only."""
  declared = {}
  for tensor in tensors.values():
    storage = tensor.storage
    if declared.setdefault(storage.key, storage) != storage:
      raise Damaged(f"storage {storage.key!r} is declared twice, differently")
  return declared


def _map_storages(
  data: bytes, position: int, keys: Any, declared: Mapping[str, _Storage]
) -> dict[str, np.ndarray]:
  """Returns each storage's numbers: an int64 count, then the raw values, in the order of `keys`."""
  if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys):
    raise Damaged("its list of storages is not a list of names")
  if len(set(keys)) != len(keys) or set(keys) != set(declared):
    raise Damaged(f"it lists {len(keys)} storages, its tensors use {len(declared)}")
  storages = {}
  for key in keys:
    storage = declared[key]
    numel = int.from_bytes(data[position : position + 8], "little")
    position += 8
    nbytes = storage.numel * storage.dtype.itemsize
    if position + nbytes > len(data):
      raise Damaged(f"storage {key!r} ends at byte {position + nbytes} of {len(data)}")
    if numel != storage.numel:
      raise Damaged(f"storage {key!r} holds {numel} values, {storage.numel} are declared")
    storages[key] = np.frombuffer(data, storage.dtype, storage.numel, position)
    position += nbytes
  if position != len(data):
    raise Damaged(f"{len(data) - position} bytes follow the last storage")
  return storages


def _view(name: str, tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
  """Returns a strided view, every element of which lies inside the storage."""
  _, offset, shape, strides = tensor
  numel = math.prod(shape)
  if not numel:
    raise Refused(f"tensor {name!r} (shape {shape}) is empty")
  strides = tuple(s if n > 1 else 0 for n, s in zip(shape, strides, strict=True))
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  if numel > storage.size or last >= storage.size:
    raise Damaged(
      f"tensor {name!r} (shape {shape}, strides {strides}, offset {offset}) reaches outside its "
      f"storage of {storage.size} values"
    )
  steps = tuple(s * storage.itemsize for s in strides)
  return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def _integers(value: Any, what: str) -> tuple[int, ...]:
  if not isinstance(value, tuple) or not all(type(v) is int and 0 <= v < 2**63 for v in value):
    raise Damaged(f"{what} of a tensor is not a tuple of integers of at least 0")
  return value


def _rebuild_tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, *rest):
  del requires_grad, hooks, rest  # they say nothing about the values
  if not isinstance(storage, _Storage):
    raise Damaged("a tensor has no storage")
  shape, strides = _integers(shape, "the shape"), _integers(strides, "the strides")
  (offset,) = _integers((offset,), "the offset")
  if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
    raise Damaged(f"a tensor has {len(shape)} sizes and {len(strides)} strides")
  return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor, requires_grad=True, hooks=None):
  del requires_grad, hooks
  if not isinstance(tensor, _Tensor):
    raise Damaged("a parameter is not a tensor")
  return tensor


def _ordered_dict():
  return {}


_NAMES = {
  **_STORAGE_TYPES,
  "collections.OrderedDict": _ordered_dict,
  "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
  "torch._utils._rebuild_parameter": _rebuild_parameter,
}


def _resolve(name: str) -> np.dtype | Callable[..., Any]:
  """Returns what `module.attribute` stands for; every name but those of tensors is refused."""
  if name not in _NAMES:
    raise Refused(f"it names {name!r}, which no file of weights needs")
  return _NAMES[name]


def _storage(reference: Any) -> _Storage:
  """Returns a storage from its persistent id: ("storage", type, key, location, numel, view)."""
  if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
    raise Damaged("it refers to something that is not a storage")
  kind, key, numel = reference[1], reference[2], reference[4]
  if not isinstance(kind, np.dtype):
    raise Damaged("a storage has no type")
  if not isinstance(key, str):
    raise Damaged("a storage has no name")
  if len(reference) == 6 and reference[5] is not None:
    raise Refused(f"storage {key!r} is a view of another one, as before torch 0.4")
  (numel,) = _integers((numel,), "the storage's size")
  return _Storage(kind, key, numel)
