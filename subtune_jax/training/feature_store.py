"""A table of features, images by features, in memory or, where it is large, in a scratch file."""

from collections.abc import Iterator
import pathlib
import tempfile

import numpy as np

MEMORY_BYTES = 1 << 30
_CHUNK_BYTES = 64 << 20


class FeatureStore:
  """[rows, columns] float32, written by rows and read by columns.

  A file is mapped anew for each part of it, so that only that part counts as memory.

  Args:
    rows: of the table.
    columns: of it.
    memory_bytes: a larger table goes to a file.
    directory: where the file goes; the system's default when None.
  """

  def __init__(
    self,
    rows: int,
    columns: int,
    memory_bytes: int = MEMORY_BYTES,
    directory: str | None = None,
  ):
    self.shape = (rows, columns)
    self._folder = self._path = self._array = None
    if 4 * rows * columns <= memory_bytes:
      self._array = np.zeros(self.shape, np.float32)
      return
    self._folder = tempfile.TemporaryDirectory(prefix="features-", dir=directory)
    self._path = pathlib.Path(self._folder.name, "features")
    with open(self._path, "wb") as file:
      file.truncate(4 * rows * columns)

  def write(self, begin: int, rows: np.ndarray) -> None:
    """Rows from `begin` on."""
    self._table("r+")[begin : begin + len(rows)] = rows

  def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
    """(first column, [rows, some columns]) over the whole table."""
    rows, columns = self.shape
    width = max(1, _CHUNK_BYTES // (4 * max(rows, 1)))
    for begin in range(0, columns, width):
      yield begin, np.ascontiguousarray(self._table("r")[:, begin : begin + width])

  def columns(self, index: np.ndarray) -> np.ndarray:
    """[rows, len(index)] the columns at rising positions."""
    index = np.asarray(index)
    if self._array is not None:
      return self._array[:, index]
    found = np.empty((self.shape[0], len(index)), np.float32)
    for begin, chunk in self.chunks():
      low, high = np.searchsorted(index, (begin, begin + chunk.shape[1]))
      found[:, low:high] = chunk[:, index[low:high] - begin]
    return found

  def close(self) -> None:
    """Frees the memory and removes the file."""
    self._array = None
    if self._folder:
      self._folder.cleanup()

  def _table(self, mode: str) -> np.ndarray:
    if self._array is not None:
      return self._array
    return np.memmap(self._path, np.float32, mode, shape=self.shape)
