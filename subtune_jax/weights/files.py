"""Files of tensors: which format a file has, and the reader for it.

Damage to a zip, which is what torch writes now and what `.npz` is, shows in its CRC-32s. Legacy
`.pth`, safetensors, msgpack and ONNX files carry no checksum of their values, and Orbax's cover
only a part: one changed byte reads as another number, and only a known SHA-256 (`digest`) tells.
"""

from collections.abc import Callable, Mapping
import hashlib
import mmap
import os
import pathlib

import numpy as np

from subtune_jax.weights import (
  errors,
  msgpack_file,
  npz,
  onnx_file,
  orbax_folder,
  safetensors_file,
  torch_legacy,
  torch_zip,
  zip_archive,
)

_SUPPORTED = (
  "torch .pth (zip, TorchScript or legacy), safetensors, .npz, Flax msgpack, ONNX, Orbax (a folder)"
)


def read_tensors(path: str | pathlib.Path) -> Mapping[str, np.ndarray]:
  """Reads every tensor of a file or of an Orbax folder; executes nothing that it holds.

  Args:
    path: in a supported format, which its content tells (not its suffix).

  Returns:
    Name to array. The arrays are read-only, and views of the file's bytes where the format
    admits it.

  Raises:
    WeightsError: there is no such file, its format is not supported, or it is damaged.
  """
  if pathlib.Path(path).is_dir():
    return read_folder(path)
  return parse(map_file(path), str(path))


def map_file(path: str | pathlib.Path) -> mmap.mmap | bytes:
  """Returns the content of a file, mapped into memory and read as it is used.

  Do not shorten a file while it is mapped: the system ends a process that reads what is gone.

  Raises:
    WeightsError: it cannot be read.
  """
  try:
    with pathlib.Path(path).open("rb") as f:
      empty = not os.fstat(f.fileno()).st_size
      return b"" if empty else mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
  except OSError as e:
    raise errors.WeightsError(_unreadable(path, e)) from e


def parse(data: mmap.mmap | bytes, name: str) -> Mapping[str, np.ndarray]:
  """`read_tensors` of a file that is open already; `name` is for error messages."""
  return _explained(lambda: _parse(data, name), name)


def read_folder(path: str | pathlib.Path) -> Mapping[str, np.ndarray]:
  """`read_tensors` of a folder: an Orbax checkpoint, its keys joined by '/'."""
  if not orbax_folder.matches(pathlib.Path(path)):
    raise errors.WeightsError(
      f"cannot read weights from {path}: it is a folder, but no Orbax checkpoint (it has no "
      f"{orbax_folder.METADATA}); supported formats: {_SUPPORTED}"
    )
  return _explained(lambda: orbax_folder.read(pathlib.Path(path)), str(path))


def digest(path: str | pathlib.Path) -> str:
  """Returns the SHA-256 of a file, or of a folder's files: their sorted names and contents.

  Raises:
    WeightsError: it cannot be read.
  """
  root = pathlib.Path(path)
  try:
    if not root.is_dir():
      return _file_digest(root).hexdigest()
    total = hashlib.sha256()
    for name in sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()):
      total.update(hashlib.sha256(name.encode()).digest() + _file_digest(root / name).digest())
    return total.hexdigest()
  except OSError as e:
    raise errors.WeightsError(_unreadable(path, e)) from e


def _file_digest(path: pathlib.Path):
  with path.open("rb") as f:
    return hashlib.file_digest(f, "sha256")


def _unreadable(path: str | pathlib.Path, error: OSError) -> str:
  return f"cannot read weights from {path}: {error.strerror or error}"


def _parse(data: mmap.mmap | bytes, name: str) -> dict[str, np.ndarray]:
  def starts_with(signature: bytes) -> bool:
    return data[: len(signature)] == signature

  if starts_with(torch_legacy.SIGNATURE):
    return torch_legacy.read(data, name)
  if starts_with(zip_archive.SIGNATURE):
    archive = zip_archive.Archive(data)
    if torch_zip.root(archive) is not None:
      return torch_zip.read(archive, name, len(data))
    if npz.holds_arrays(archive):
      return npz.read(archive)
    raise errors.Refused("it is a zip archive, but neither torch's nor numpy's", _other_format())
  if safetensors_file.matches(data):
    return safetensors_file.read(data[:])
  if msgpack_file.matches(data):
    return msgpack_file.read(data[:], name)
  if onnx_file.matches(data):
    return onnx_file.read(data[:])
  raise errors.WeightsError(
    f"{name} is in no known format (it starts with {data[:8]!r}); {_other_format()}"
  )


def _other_format() -> str:
  return f"supported formats: {_SUPPORTED}"


def _explained(read: Callable[[], Mapping[str, np.ndarray]], name: str) -> Mapping[str, np.ndarray]:
  """Returns what `read` returns; its errors name the file and the fix."""
  try:
    return read()
  except errors.Refused as e:
    raise errors.WeightsError(
      f"{name} was refused: {e}. Nothing in it was executed; {e.fix}"
    ) from e
  except errors.Damaged as e:
    raise errors.WeightsError(f"{name} is damaged: {e}. Get the file again") from e
