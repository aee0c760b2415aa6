"""A table of features, images by features, in memory or, where it is large, in a scratch file."""

from collections.abc import Iterator
import pathlib
import tempfile

import numpy as np

MEMORY_BYTES = 1 << 30
_CHUNK_BYTES = 64 << 20


class FeatureStore:
  """[rows, columns] float32, written by rows and read by columns.

  A file is read and written, not mapped: pages that are mapped count as memory of the process.

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
    self._folder: tempfile.TemporaryDirectory | None = None
    self._array: np.ndarray | None = None
    self._path = pathlib.Path()  # of the file, where there is no array
    if 4 * rows * columns <= memory_bytes:
      self._array = np.zeros(self.shape, np.float32)
      return
    self._folder = tempfile.TemporaryDirectory(prefix="features-", dir=directory)
    self._path = pathlib.Path(self._folder.name, "features")
    with open(self._path, "wb") as file:
      file.truncate(4 * rows * columns)

  def write(self, begin: int, rows: np.ndarray) -> None:
    """Rows from `begin` on."""
    if self._array is not None:
      self._array[begin : begin + len(rows)] = rows
      return
    with open(self._path, "r+b") as file:
      file.seek(4 * begin * self.shape[1])
      file.write(np.ascontiguousarray(rows, np.float32).data)

  def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
    """(first column, [rows, some columns]) over the whole table."""
    rows, columns = self.shape
    width = max(1, _CHUNK_BYTES // (4 * max(rows, 1)))
    for begin in range(0, columns, width):
      yield begin, self._part(begin, min(width, columns - begin))

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

  def _part(self, begin: int, width: int) -> np.ndarray:
    """[rows, width] the columns from `begin` on."""
    if self._array is not None:
      return np.ascontiguousarray(self._array[:, begin : begin + width])
    found = np.empty((self.shape[0], width), np.float32)
    with open(self._path, "rb") as file:
      for number, row in enumerate(found):
        file.seek(4 * (number * self.shape[1] + begin))
        file.readinto(row.data)
    return found
