"""Files of a run: written whole or not at all, and read with errors that say what to do."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import io
import os
import pathlib
from typing import Any
import zipfile
import zlib

import numpy as np

from subtune_jax import processes


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
  """Puts the path into an OSError of writing that has none, such as that of a full disk."""
  try:
    yield
  except OSError as error:
    if error.errno is None or error.filename is not None:
      raise
    raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
  """Writes `data` so that a reader sees the old file or the new one, never a part.

  Of several processes of a run only the first writes.
  """
  if not processes.is_first():
    return
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with naming(path):
      temporary.write_bytes(data)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_npz(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes a compressed .npz, whole or not at all."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **dict(arrays))  # type: ignore[arg-type]  # numpy's stub has no names
  write_atomically(path, buffer.getvalue())


def read_npz(
  path: pathlib.Path, wanted: str, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
  """Arrays of an .npz.

  Args:
    path: of the file.
    wanted: says in an error what it was needed for.
    names: of the arrays; None reads all.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, or lacks one of `names`.
  """
  if not path.is_file():
    raise FileNotFoundError(f"{path} is missing, {wanted}. Copy the whole workdir, or run again.")
  try:
    with np.load(path, allow_pickle=False) as arrays:
      return {key: arrays[key] for key in (arrays.files if names is None else names)}
  except KeyError as error:
    raise ValueError(f"{path} lacks {error}; it is not of this study. Run again.") from error
  except (
    zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, AttributeError
  ) as error:  # fmt: skip
    raise ValueError(f"{path} is damaged ({error}), {wanted}. Run again to write it.") from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Fields of a nested config by dotted name: {"data.image_size": 64}."""
  flat: dict[str, Any] = {}
  for name, value in tree.items():
    if isinstance(value, Mapping) and value:
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[f"{prefix}{name}"] = value
  return flat
