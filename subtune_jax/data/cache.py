"""Decoded images kept on disk, memory-mapped, under the user's cache folder and nowhere else.

The folder is $SUBTUNE_JAX_CACHE, or ~/.cache/subtune_jax/data. A file is an .npy array followed by
a trailer: the key and the SHA-256 of the array, as JSON, then the trailer's length and a mark.
Each is written under a temporary name and renamed, so that processes that build the same one at
once do not disturb each other. A file whose key or checksum does not fit is rebuilt.
"""

from collections.abc import Callable, Iterable, Mapping
import contextlib
import errno
import hashlib
import io
import json
import math
import os
import pathlib
import re
import struct
import tempfile
import time
from typing import Any, BinaryIO

from absl import logging
import numpy as np

VERSION = 1
FOLDER_VARIABLE = "SUBTUNE_JAX_CACHE"
LIMIT_VARIABLE = "SUBTUNE_JAX_CACHE_BYTES"
DEFAULT_LIMIT = 4 * 2**30  # bytes of one split's images

_PLACE = ("name", "split", "image_size", "interpolation")  # One file for each; the rest may change.
_MARK = b"subtune1"
_TAIL = struct.Struct("<Q8s")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DAY = 24 * 3600
_BLOCK = 2**22


def folder() -> pathlib.Path:
  """Returns the cache's folder; it need not exist."""
  chosen = os.environ.get(FOLDER_VARIABLE)
  return pathlib.Path(chosen) if chosen else pathlib.Path.home() / ".cache/subtune_jax/data"


def limit() -> int:
  """Returns how many bytes of decoded images may be cached per split: $SUBTUNE_JAX_CACHE_BYTES.

  Raises:
    ValueError: the variable is not a number of bytes.
  """
  text = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT))
  if not re.fullmatch("[0-9]{1,18}", text):
    raise ValueError(f"{LIMIT_VARIABLE}={text!r} must be a number of bytes; 0 caches nothing.")
  return int(text)


def fits(n: int, shape: tuple[int, ...]) -> bool:
  """Returns whether `n` uint8 images of `shape` are few enough to be cached."""
  return n * math.prod(shape) <= limit()


def images(
  key: Mapping[str, Any],
  build: Callable[[], Iterable[np.ndarray]],
  n: int,
  shape: tuple[int, int, int],
) -> np.ndarray:
  """Returns images from the cache, which is filled when it does not hold them.

  Where the cache's folder cannot be written, they are built in memory, with a warning. The
  caller asks `fits` first.

  Args:
    key: JSON values that decide the pixels: "name", "split", "image_size" and "interpolation",
      which name the file, and the versions and the source's fingerprint, which must agree with
      those in the file.
    build: called when the cache has no such images; yields blocks [m, height, width, 3] uint8, n
      images in all. An error in it leaves no file.
    n: number of images.
    shape: (height, width, 3).

  Returns:
    [n, height, width, 3] uint8, memory-mapped and read-only.

  Raises:
    ValueError: `build` yields another number or shape of images.
  """
  key, full = _plain(key), (n, *shape)
  path = folder() / f"{_slug(key)}.npy"
  found = _open(path, key, full)
  if found is not None:
    return found
  try:
    temporary = _temporary(path)
  except OSError as error:
    logging.warning("Cannot write to the cache, building in memory: %s", error)
    return _in_memory(build, full)
  try:
    with os.fdopen(temporary[0], "wb") as file:
      _write(file, key, build, full)
    made = np.load(temporary[1], mmap_mode="r")
    os.replace(temporary[1], path)
  except BaseException as error:
    with contextlib.suppress(OSError):
      os.unlink(temporary[1])
    if getattr(error, "errno", None) not in _FULL:
      raise
    logging.warning("Cannot write to the cache, building in memory: %s", error)
    return _in_memory(build, full)
  logging.info("Cached %d images in %s", n, path)
  return made


def report(key: Mapping[str, Any], build: Callable[[], Any]) -> Any:
  """Returns the JSON value that `build` gives, from the cache when it was made for the same key.

  Args:
    key: as for `images`; "name" names the file.
    build: called when the cache has no such value.
  """
  key = _plain(key)
  path = folder() / f"{_slug(key)}.json"
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    stored = json.loads(path.read_text("utf-8"))
    if stored["key"] == key and stored["sha256"] == _sha256_of(stored["value"]):
      return stored["value"]
    logging.info("%s is stale or damaged; making it again", path)
  value = build()
  text = json.dumps({"key": key, "value": value, "sha256": _sha256_of(value)})
  try:
    descriptor, temporary = _temporary(path)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
      file.write(text)
    os.replace(temporary, path)
  except OSError as error:
    logging.warning("Cannot write to the cache: %s", error)
  return value


def _plain(key: Mapping[str, Any]) -> dict[str, Any]:
  return json.loads(json.dumps({**key, "cache": VERSION}, sort_keys=True))


def _sha256_of(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _slug(key: Mapping[str, Any]) -> str:
  """Returns a file name for the key's place: readable, and different for different places."""
  place = [key.get(part) for part in _PLACE]
  readable = "-".join(str(part) for part in place if part is not None)
  return f"{re.sub('[^A-Za-z0-9]+', '_', readable)[-60:].strip('_')}-{_sha256_of(place)[:24]}"


def _temporary(path: pathlib.Path) -> tuple[int, str]:
  """Returns (descriptor, path) of a new file beside `path`; removes those left by dead runs."""
  path.parent.mkdir(parents=True, exist_ok=True)
  for old in path.parent.glob("*.partial"):
    with contextlib.suppress(OSError):
      if time.time() - old.stat().st_mtime > _DAY:
        old.unlink()
  return tempfile.mkstemp(suffix=".partial", dir=path.parent)


def _write(file: BinaryIO, key: dict, build: Callable, full: tuple[int, ...]) -> None:
  file.write(_header(full))
  digest = hashlib.sha256()
  for block in _blocks(build, full):
    file.write(block.data)
    digest.update(block.data)
  trailer = json.dumps({"key": key, "sha256": digest.hexdigest()}).encode()
  file.write(trailer + _TAIL.pack(len(trailer), _MARK))
  file.flush()
  os.fsync(file.fileno())


def _in_memory(build: Callable, full: tuple[int, ...]) -> np.ndarray:
  out, done = np.empty(full, np.uint8), 0
  for block in _blocks(build, full):
    out[done : done + len(block)] = block
    done += len(block)
  return out


def _blocks(build: Callable, full: tuple[int, ...]) -> Iterable[np.ndarray]:
  """Yields the blocks of `build`, contiguous, after checking their shape and, last, their sum."""
  done = 0
  for block in build():
    done += len(block)
    if block.dtype != np.uint8 or block.shape[1:] != full[1:] or done > full[0]:
      raise ValueError(
        f"cache: got {block.dtype} {block.shape}, {done} images so far; expected {full} in all."
      )
    yield np.ascontiguousarray(block)
  if done != full[0]:
    raise ValueError(f"cache: got {done} images, expected {full[0]}.")


def _open(path: pathlib.Path, key: dict, full: tuple[int, ...]) -> np.ndarray | None:
  """Returns the array in `path`; None when there is none, or it is stale or damaged (logged)."""
  try:
    with open(path, "rb") as file:
      trailer, size = _read_trailer(file)
      if trailer["key"] != key:
        logging.info("%s is stale; rebuilding it", path)
        return None
      header = _header(full)
      file.seek(0)
      if file.read(len(header)) != header or size != len(header) + math.prod(full):
        raise ValueError(f"it does not hold images of shape {full}")
      if _checksum(file, len(header), size) != trailer["sha256"]:
        raise ValueError("its checksum does not fit")
      return np.memmap(file, np.uint8, "r", len(header), full)
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
    logging.warning("%s is damaged (%s); rebuilding it", path, error)
    return None


def _header(full: tuple[int, ...]) -> bytes:
  """Returns the .npy header of uint8 images."""
  file = io.BytesIO()
  header = {"descr": "|u1", "fortran_order": False, "shape": full}
  np.lib.format.write_array_header_1_0(file, header)
  return file.getvalue()


def _read_trailer(file: BinaryIO) -> tuple[dict, int]:
  """Returns (trailer, bytes before it)."""
  end = file.seek(0, os.SEEK_END)
  file.seek(max(0, end - _TAIL.size))
  length, mark = _TAIL.unpack(file.read(_TAIL.size))
  if mark != _MARK or length > end - _TAIL.size:
    raise ValueError("it has no trailer")
  file.seek(end - _TAIL.size - length)
  return json.loads(file.read(length)), end - _TAIL.size - length


def _checksum(file: BinaryIO, begin: int, end: int) -> str:
  """Returns the SHA-256 (hex) of the bytes from `begin` to `end`."""
  file.seek(begin)
  digest, left = hashlib.sha256(), end - begin
  while left > 0 and (block := file.read(min(_BLOCK, left))):
    digest.update(block)
    left -= len(block)
  return digest.hexdigest()
