"""What a search keeps: a ledger line and the logits of each finished training.

Several processes may work on one store. Whoever trains something holds a lock on its key, which the
system releases when the process ends, however it ends; the others do something else meanwhile.
"""

from collections.abc import Iterator, Mapping
import contextlib
import fcntl
import os
import pathlib
import threading
from typing import Any

import numpy as np

from subtune_jax import files
from subtune_jax.training import ledger as ledger_lib

Row = dict[str, Any]


class Store:
  """A folder with `ledger.jsonl`, `logits/KEY.npz` and locks.

  Args:
    folder: made where it is missing. Searches of any kind, with any settings, may share one.
  """

  def __init__(self, folder: str | os.PathLike):
    self.folder = pathlib.Path(folder)
    self._locks, self._logits = self.folder / "locks", self.folder / "logits"
    for path in (self._locks, self._logits):
      path.mkdir(parents=True, exist_ok=True)
    self._ledger = ledger_lib.Ledger(self.folder / "ledger.jsonl")
    self._rows = self._ledger.rows()
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._rows)

  def get(self, key: str) -> Row | None:
    """The line of a finished training, or None."""
    return self._rows.get(key)

  def refresh(self) -> None:
    """Reads what other processes have finished since."""
    with self._lock:
      self._rows.update(self._ledger.new_rows())

  def logits(self, key: str) -> dict[str, np.ndarray]:
    """Held-out logits of a finished training: "logits" [n, classes] and "rows" [n].

    Raises:
      ValueError: the file is missing or damaged.
    """
    path = self._logits / f"{key}.npz"
    try:
      with np.load(path) as arrays:
        return dict(arrays)
    except Exception as e:
      raise ValueError(
        f"{path} cannot be read ({e}); remove the line of {key} from {self._ledger.path} to train "
        "it again"
      ) from e

  def add(self, row: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the logits, then the line, which makes the training finished."""
    files.write_npz(self._logits / f"{row['key']}.npz", arrays)
    self._ledger.append(row)
    self._rows[row["key"]] = dict(row)

  @contextlib.contextmanager
  def claim(self, key: str) -> Iterator[bool]:
    """Whether this process may train `key` now: no other one does, and none has finished it."""
    with open(self._locks / key, "w") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        yield False
        return
      self.refresh()
      yield key not in self._rows
