"""Images that are decoded when they are asked for, and batches computed ahead of their use."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
import functools
import hashlib
import json
import operator
import os
import time
from typing import Any

import numpy as np

from subtune_jax.data import decode

_END = object()


@functools.cache
def workers() -> futures.ThreadPoolExecutor:
  """The threads that decode, one per processor, shared by all sets; Pillow releases the lock."""
  return futures.ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")


class LazyImages:
  """Looks like a uint8 array [n, height, width, 3]; rows are read when indexed.

  `images[indices]` returns an array in the order of the indices, the same whichever were read
  before, so that a resumed run sees the same batches. Nothing is kept: the memory is that of the
  rows asked for.
  """

  dtype = np.dtype(np.uint8)
  ndim = 4

  def __init__(
    self,
    sources: Sequence[Any],
    read: Callable[[Any], np.ndarray],
    image_size: int,
    stamp: Callable[[Any], Any],
  ):
    """Images of any source that can be read by one function from many threads.

    Args:
      sources: one per image, such as a path.
      read: source -> [image_size, image_size, 3] uint8.
      image_size: height and width, in pixels.
      stamp: source -> what `fingerprint` covers of it, as JSON.
    """
    self._sources, self._read, self._stamp = list(sources), read, stamp
    self.shape = (len(self._sources), image_size, image_size, 3)
    self._fingerprint: str | None = None

  def __len__(self) -> int:
    return self.shape[0]

  @property
  def nbytes(self) -> int:
    """What the decoded images would take."""
    return int(np.prod(self.shape, dtype=np.int64))

  def __getitem__(self, indices: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns [m, height, width, 3] uint8, or one image for an integer.

    Raises:
      IndexError: out of range, or neither an integer, a slice nor a vector of integers.
      BrokenImageError: a file cannot be read any more.
    """
    rows = self._rows(indices)
    if rows.ndim == 0:
      return self._checked(self._sources[int(rows)])
    out = np.empty((len(rows), *self.shape[1:]), np.uint8)

    def fill(position):
      out[position] = self._checked(self._sources[rows[position]])

    collections.deque(workers().map(fill, range(len(rows))), maxlen=0)
    return out

  def __iter__(self) -> Iterator[np.ndarray]:
    return (self[index] for index in range(len(self)))

  def __array__(self, *args, **kwargs):
    raise TypeError(
      f"These images are decoded on demand and would take {self.nbytes} bytes as an array; "
      "index them batch by batch, or write images[:] to decode them all."
    )

  def take(self, indices: slice | Sequence[int] | np.ndarray) -> "LazyImages":
    """Returns the images at `indices`, still unread."""
    sources = [self._sources[row] for row in self._rows(indices)]
    return LazyImages(sources, self._read, self.shape[1], self._stamp)

  def decoded(self) -> "LazyImages":
    """Returns the same images with the same fingerprint, decoded now and held in memory."""
    stamps = [self._stamp(source) for source in self._sources]
    read: Any = functools.partial(operator.getitem, self[:])
    return LazyImages(range(len(self)), read, self.shape[1], stamps.__getitem__)

  def fingerprint(self) -> str:
    """Returns the SHA-256 (hex) of the shape and the sources' stamps, taken once; no pixels."""
    if self._fingerprint is None:
      stamps = [self._stamp(source) for source in self._sources]
      self._fingerprint = hashlib.sha256(json.dumps([self.shape, stamps]).encode()).hexdigest()
    return self._fingerprint

  def _rows(self, indices: Any) -> np.ndarray:
    """Returns int64 rows in 0..n-1, a vector or a scalar."""
    if isinstance(indices, slice):
      return np.arange(*indices.indices(len(self)))
    rows = np.asarray(indices)
    if rows.size == 0 and rows.ndim == 1:
      return rows.astype(np.int64)
    if rows.ndim > 1 or rows.dtype.kind not in "iu":
      raise IndexError(
        "Lazy images take an integer, a slice or a vector of integers; got shape "
        f"{rows.shape} and dtype {rows.dtype}. For a mask, pass np.flatnonzero(mask)."
      )
    outside = np.flatnonzero((rows < -len(self)) | (rows >= len(self)))
    if outside.size:
      bad = np.ravel(rows)[outside[0]]
      raise IndexError(f"Index {bad} is out of range; allowed: 0 to {len(self) - 1}.")
    rows = rows.astype(np.int64)
    return np.where(rows < 0, rows + len(self), rows)

  def _checked(self, source: Any) -> np.ndarray:
    image = self._read(source)
    if image.shape != self.shape[1:] or image.dtype != np.uint8:
      raise ValueError(
        f"Reading {source!r} gave {image.dtype} {image.shape}; expected uint8 {self.shape[1:]}."
      )
    return image


def from_files(
  paths: Sequence[str | os.PathLike], image_size: int, interpolation: str = "bicubic"
) -> LazyImages:
  """Returns the images in files, each resized to a square.

  The fingerprint covers the size and time of modification of each file, not its pixels.

  Args:
    paths: one per image.
    image_size: height and width, in pixels.
    interpolation: "bicubic", "bilinear" or "lanczos".

  Raises:
    ValueError: an unknown interpolation, or a size that is not a positive integer.
  """
  decode.check_size(image_size, interpolation)
  read = functools.partial(decode.square, image_size=image_size, interpolation=interpolation)
  return LazyImages(
    paths, read, image_size, lambda path: [interpolation, decode.VERSION, *file_stamp(path)]
  )


def file_stamp(path: str | os.PathLike) -> tuple[int, int]:
  """Returns (size in bytes, time of modification in nanoseconds) of a file."""
  stat = os.stat(path)
  return stat.st_size, stat.st_mtime_ns


class Prefetch:
  """Iterates over batches that a background thread computes ahead.

  Attributes:
    waited_seconds: how long the consumer has waited for batches so far.
  """

  def __init__(self, batches: Iterable[Any], depth: int = 2):
    """Starts to compute the first batches; see `prefetch`."""
    if depth < 1:
      raise ValueError(f"depth must be at least 1, got {depth}.")
    self.waited_seconds = 0.0
    self._batches = iter(batches)
    self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    self._ahead = collections.deque(self._submit() for _ in range(depth))

  def _submit(self) -> futures.Future:
    return self._thread.submit(next, self._batches, _END)

  def __iter__(self) -> "Prefetch":
    return self

  def __next__(self) -> Any:
    if not self._ahead:
      raise StopIteration
    begin = time.perf_counter()
    try:
      batch = self._ahead.popleft().result()
    except BaseException:
      self.close()
      raise
    finally:
      self.waited_seconds += time.perf_counter() - begin
    if batch is _END:
      self.close()
      raise StopIteration
    self._ahead.append(self._submit())
    return batch

  def close(self) -> None:
    """Stops; waits for the batch that is being computed. Batches computed ahead are dropped."""
    self._ahead.clear()
    self._thread.shutdown(wait=True, cancel_futures=True)
    if hasattr(self._batches, "close"):
      self._batches.close()

  def __enter__(self) -> "Prefetch":
    return self

  def __exit__(self, *exception: Any) -> None:
    self.close()


def prefetch(batches: Iterable[Any], depth: int = 2) -> Prefetch:
  """Computes the next `depth` batches in a background thread while the consumer works.

  Args:
    batches: computed one after the other, in order, in one thread; an error is raised where its
      batch would have come.
    depth: how many are held at most, beside the consumer's own.

  Returns:
    An iterator over the same batches, with `waited_seconds`. Close it, or use it in a `with`, when
    it is left before its end.

  Raises:
    ValueError: depth is below 1.
  """
  return Prefetch(batches, depth)
