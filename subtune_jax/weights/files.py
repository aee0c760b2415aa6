"""Files of tensors: which format a file has, and the reader for it."""

from collections.abc import Callable, Mapping
import pathlib
from typing import NamedTuple

import numpy as np

from subtune_jax.weights import errors, torch_legacy


class _Format(NamedTuple):
  """A file format: its name, the bytes that it starts with, and its reader, if there is one."""

  title: str
  signature: bytes
  read: Callable[[bytes, str], Mapping[str, np.ndarray]] | None


_FORMATS = (
  _Format("torch .pth (legacy)", torch_legacy.SIGNATURE, torch_legacy.read),
  _Format("torch .pth (zip) or .npz", b"PK\x03\x04", None),
)


def read_tensors(path: str | pathlib.Path) -> Mapping[str, np.ndarray]:
  """Reads every tensor of a file; executes nothing that the file holds.

  Args:
    path: a file in a supported format, which its first bytes tell (not its suffix).

  Returns:
    Name to array. The arrays are read-only views of the file's bytes.

  Raises:
    WeightsError: there is no such file, its format is not supported, or it is damaged.
  """
  return parse(read_bytes(path), str(path))


def read_bytes(path: str | pathlib.Path) -> bytes:
  """Returns the whole file.

  Raises:
    WeightsError: it cannot be read.
  """
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as e:
    raise errors.WeightsError(f"cannot read weights from {path}: {e.strerror or e}") from e


def parse(data: bytes, name: str) -> Mapping[str, np.ndarray]:
  """`read_tensors` of a file that was read already; `name` is for error messages."""
  supported = ", ".join(f.title for f in _FORMATS if f.read)
  for form in _FORMATS:
    if data.startswith(form.signature):
      if form.read is None:
        raise errors.WeightsError(f"{name} is a {form.title}; supported formats: {supported}")
      return form.read(data, name)
  raise errors.WeightsError(
    f"{name} is in no known format (it starts with {data[:8]!r}); supported formats: {supported}"
  )
