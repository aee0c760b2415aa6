"""Reads torch's legacy `.pth` files (five pickles, then raw storages) without torch."""

from collections.abc import Mapping
import io
import mmap
from typing import Any

import numpy as np

from subtune_jax.weights import errors, torch_state, torch_tensors

# Protocol 2, then the ten bytes of torch's magic number 0x1950a86a20f9469cfc6c.
SIGNATURE = b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_PROTOCOL_VERSION = 1001


def read(data: mmap.mmap | bytes, name: str) -> dict[str, np.ndarray]:
  """Returns the tensors of a legacy file as read-only views of `data`.

  Args:
    data: the whole file; a mapped one at its start.
    name: the file's name, for the log.

  Raises:
    Refused: a name other than those of tensors and plain data, or no clear state dict.
    Damaged: a file that contradicts itself or ends early.
  """
  stream: Any = io.BytesIO(data) if isinstance(data, bytes) else data  # a mapped file is a stream
  pickles = torch_tensors.Pickles()
  _, protocol = pickles.load(stream), pickles.load(stream)  # the signature has checked the first
  if protocol != _PROTOCOL_VERSION:
    raise errors.Damaged(f"its protocol version is not {_PROTOCOL_VERSION}")
  system = pickles.load(stream)
  if not isinstance(system, dict) or system.get("little_endian") is not True:
    raise errors.Refused("it was not written on a little-endian machine")
  value, keys = pickles.load(stream), pickles.load(stream)
  storages = _map_storages(data, stream.tell(), keys, pickles.storages)
  return torch_tensors.arrays(torch_state.tensors(value, name, len(data)), storages)


def _map_storages(
  data: mmap.mmap | bytes, position: int, keys: Any, declared: Mapping[str, torch_tensors.Storage]
) -> dict[str, memoryview]:
  """Returns each storage's bytes: an int64 count, then the raw values, in the order of `keys`."""
  if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys):
    raise errors.Damaged("its list of storages is not a list of names")
  if len(set(keys)) != len(keys) or set(keys) != set(declared):
    raise errors.Damaged(f"it lists {len(keys)} storages, its tensors use {len(declared)}")
  view = memoryview(data)
  storages = {}
  for key in keys:
    storage = declared[key]
    numel = int.from_bytes(view[position : position + 8], "little")
    position += 8
    end = position + storage.nbytes
    if end > len(data):
      raise errors.Damaged(f"storage {errors.quote(key)} ends at byte {end} of {len(data)}")
    if numel != storage.numel:
      raise errors.Damaged(
        f"storage {errors.quote(key)} holds {numel} values, {storage.numel} are declared"
      )
    storages[key] = view[position:end]
    position = end
  if position != len(data):
    raise errors.Damaged(f"{len(data) - position} bytes follow the last storage")
  return storages
