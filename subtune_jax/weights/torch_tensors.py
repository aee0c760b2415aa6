"""What the pickles of torch's two file formats say of tensors, and the arrays that result."""

from collections.abc import Mapping
import io
import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from subtune_jax.weights import errors, pickle_machine, raw_arrays

_MAX_DIMENSIONS = 8

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
_TORCH_DTYPES = (
  *("float32", "float64", "float16", "bfloat16", "complex64", "complex128"),
  *("int8", "int16", "int32", "int64", "uint8", "bool"),
)


class Storage(NamedTuple):
  """A reference to raw numbers elsewhere in the file."""

  dtype: np.dtype
  key: str
  numel: int

  @property
  def nbytes(self) -> int:
    """Length of the numbers."""
    return self.numel * self.dtype.itemsize


class Tensor(NamedTuple):
  """A strided view of a storage, in elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class Pickles:
  """Runs the pickles of one file.

  Attributes:
    storages: those that the pickles refer to, by key.
  """

  def __init__(self, script: bool = False):
    """Prepares to run them; `script` admits the names of a TorchScript archive."""
    self.storages: dict[str, Storage] = {}
    self._script = script

  def load(self, stream: io.BytesIO) -> Any:
    """Returns the value of one pickle, with a `Tensor` for each tensor.

    Raises:
      Refused: a name other than those of tensors and plain data.
      Damaged: a malformed pickle.
    """
    return pickle_machine.load(stream, self._resolve, self._persistent)

  def _resolve(self, name: str) -> Any:
    if self._script and name.startswith("__torch__."):
      return pickle_machine.Kind()
    known = _NAMES | _SCRIPT_NAMES if self._script else _NAMES
    if name not in known:
      raise errors.Refused(f"it names {errors.quote(name)}, which no file of weights needs")
    return known[name]

  def _persistent(self, reference: Any) -> Storage:
    storage = _storage(reference)
    if self.storages.setdefault(storage.key, storage) != storage:
      raise errors.Damaged(f"storage {errors.quote(storage.key)} is declared twice, differently")
    return storage


def arrays(
  tensors: Mapping[str, Tensor], storages: Mapping[str, bytes | memoryview]
) -> dict[str, np.ndarray]:
  """Returns the tensors as read-only views of their storages.

  Args:
    tensors: by name.
    storages: the raw bytes of each tensor's storage by key, as long as the storage says.

  Raises:
    Damaged: a tensor that reaches outside its storage.
  """
  return {name: _view(name, t, storages[t.storage.key]) for name, t in tensors.items()}


def _view(name: str, tensor: Tensor, data: bytes | memoryview) -> np.ndarray:
  """Returns a strided view, every element of which lies inside the storage."""
  storage, offset, shape, strides = tensor
  numel = math.prod(shape)
  what = f"tensor {errors.quote(name)} (shape {shape}, strides {strides}, offset {offset})"
  if not numel:
    return raw_arrays.empty(what, storage.dtype, shape)
  strides = tuple(s if n > 1 else 0 for n, s in zip(shape, strides, strict=True))
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  if numel > storage.numel or last >= storage.numel:
    raise errors.Damaged(f"{what} reaches outside its storage of {storage.numel} values")
  size = storage.dtype.itemsize
  return np.ndarray(shape, storage.dtype, data, offset * size, tuple(s * size for s in strides))


def _integers(value: Any, what: str) -> tuple[int, ...]:
  if not isinstance(value, tuple) or len(value) > _MAX_DIMENSIONS:
    raise errors.Damaged(f"{what} of a tensor is not a tuple of at most {_MAX_DIMENSIONS} sizes")
  if not all(type(v) is int and 0 <= v < 2**63 for v in value):
    raise errors.Damaged(f"{what} of a tensor is not made of integers of at least 0")
  return value


def _storage(reference: Any) -> Storage:
  """Returns a storage from its persistent id: ("storage", type, key, location, numel, view)."""
  if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
    raise errors.Damaged("it refers to something that is not a storage")
  kind, key, numel = reference[1], reference[2], reference[4]
  if not isinstance(kind, np.dtype):
    raise errors.Damaged("a storage has no type")
  if not isinstance(key, str):
    raise errors.Damaged("a storage has no name")
  if len(reference) == 6 and reference[5] is not None:
    raise errors.Refused(
      f"storage {errors.quote(key)} is a view of another one, as before torch 0.4"
    )
  (numel,) = _integers((numel,), "the storage's size")
  return Storage(kind, key, numel)


def _rebuild_tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, *rest):
  del requires_grad, hooks, rest  # they say nothing about the values
  if not isinstance(storage, Storage):
    raise errors.Damaged("a tensor has no storage")
  shape, strides = _integers(shape, "the shape"), _integers(strides, "the strides")
  (offset,) = _integers((offset,), "the offset")
  if len(shape) != len(strides):
    raise errors.Damaged(f"a tensor has {len(shape)} sizes and {len(strides)} strides")
  return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor, requires_grad=True, hooks=None):
  del requires_grad, hooks
  if not isinstance(tensor, Tensor):
    raise errors.Damaged("a parameter is not a tensor")
  return tensor


def _ordered_dict(items=None):
  made: dict[Any, Any] = {}
  if items is None:
    return made
  pairs = isinstance(items, list) and all(isinstance(p, list | tuple) for p in items)
  if not pairs or any(len(p) != 2 for p in items):
    raise errors.Damaged("an OrderedDict is made of something that is not a list of pairs")
  pickle_machine.set_items(made, [p[0] for p in items], [p[1] for p in items])
  items[:] = [None]  # a list makes one dict: a thousand of them would not show in the file's size
  return made


def _size(sizes=()):
  return _integers(sizes, "the size")


def _first(value, *rest):
  del rest  # a type, in TorchScript's annotations of lists and dicts
  return value


def _opaque(*arguments):
  del arguments
  return pickle_machine.OPAQUE


_NAMES = {
  **_STORAGE_TYPES,
  **{f"torch.{name}": pickle_machine.OPAQUE for name in _TORCH_DTYPES},
  "torch.Size": _size,
  "torch._utils._rebuild_tensor": _rebuild_tensor,
  "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
  "torch._utils._rebuild_parameter": _rebuild_parameter,
  "collections.OrderedDict": _ordered_dict,
  "argparse.Namespace": pickle_machine.Kind(),
  # A scalar of numpy, such as a best accuracy: its dtype, and its bytes as text.
  "numpy.core.multiarray.scalar": _opaque,
  "numpy._core.multiarray.scalar": _opaque,
  "numpy.dtype": _opaque,
  "_codecs.encode": _opaque,
}

_SCRIPT_NAMES = {
  "torch.jit._pickle.restore_type_tag": _first,
  "torch.jit._pickle.build_intlist": _first,
  "torch.jit._pickle.build_doublelist": _first,
  "torch.jit._pickle.build_boollist": _first,
  "torch.jit._pickle.build_tensorlist": _first,
}
