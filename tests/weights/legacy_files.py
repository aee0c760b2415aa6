"""Writes torch's file formats by hand, so that tests can also write them wrongly."""

from collections.abc import Mapping
import io
import math
import pickle
import struct
from typing import NamedTuple
import zipfile

import numpy as np

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)
_STORAGE = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


class Tensor(NamedTuple):
  """A tensor of the file: a view of a storage, as the pickle declares it."""

  storage: np.ndarray
  key: str
  shape: tuple[int, ...]
  strides: tuple[int, ...]
  offset: int = 0
  numel: int | None = None  # what the pickle says; the storage's own size by default


def dense(array: np.ndarray, key: str) -> Tensor:
  """A contiguous tensor with a storage of its own."""
  strides = tuple(math.prod(array.shape[i + 1 :]) for i in range(array.ndim))
  return Tensor(np.ravel(array), key, array.shape, strides)


def text(value: str) -> bytes:
  """Opcodes that push a string."""
  return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
  """Opcodes that push an integer of any size."""
  return pickle.dumps(value, 2)[2:-1]


def numbers(values: tuple[int, ...]) -> bytes:
  """Opcodes that push a tuple of integers."""
  return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(t: Tensor) -> bytes:
  """Opcodes that rebuild a tensor."""
  numel = t.storage.size if t.numel is None else t.numel
  kind = f"ctorch\n{_STORAGE[t.storage.dtype.name]}\n".encode()
  reference = b"(" + text("storage") + kind + text(t.key) + text("cpu") + integer(numel) + b"NtQ"
  view = integer(t.offset) + numbers(t.shape) + numbers(t.strides)
  arguments = b"(" + reference + view + b"\x89ccollections\nOrderedDict\n)Rt"
  return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def body(items: dict[str, bytes]) -> bytes:
  """A pickle of an OrderedDict whose values are given as opcodes."""
  pairs = b"".join(text(name) + value for name, value in items.items())
  return b"\x80\x02ccollections\nOrderedDict\n)R(" + pairs + b"u."


def write(
  tensors: dict[str, Tensor],
  *,
  pickled: bytes | None = None,
  protocol: int = 1001,
  system: bytes = SYSTEM,
  keys: list[str] | None = None,
) -> bytes:
  """A whole file; `pickled` replaces the pickle of the dict."""
  storages = {t.key: t.storage for t in tensors.values()}
  pickled = body({k: tensor(t) for k, t in tensors.items()}) if pickled is None else pickled
  head = MAGIC + pickle.dumps(protocol, 2) + system + pickled
  head += pickle.dumps(list(storages) if keys is None else keys, 2)
  payload = [struct.pack("<q", s.size) + s.tobytes() for s in storages.values()]
  return head + b"".join(payload)


def module(attributes: Mapping[str, bytes], name: str = "M") -> bytes:
  """Opcodes of a TorchScript object, whose attributes are given as opcodes."""
  pairs = b"".join(text(key) + value for key, value in attributes.items())
  return f"c__torch__.{name}\n{name}\n".encode() + b")\x81}(" + pairs + b"ub"


def write_zip(
  tensors: Mapping[str, Tensor],
  *,
  pickled: bytes | None = None,
  script: bool = False,
  byteorder: bytes = b"little",
  deflated: bool = False,
) -> bytes:
  """A whole zip file; `script` adds what tells a TorchScript archive."""
  stream = io.BytesIO()
  method = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
  pickled = body({k: tensor(t) for k, t in tensors.items()}) if pickled is None else pickled
  with zipfile.ZipFile(stream, "w", method) as archive:
    archive.writestr("w/data.pkl", pickled)
    archive.writestr("w/byteorder", byteorder)
    if script:
      archive.writestr("w/constants.pkl", b"\x80\x02).")
    for key, storage in {t.key: t.storage for t in tensors.values()}.items():
      archive.writestr(f"w/data/{key}", storage.tobytes())
  return stream.getvalue()
