"""One JSON line per finished training: what was done is never done again after a kill."""

from collections.abc import Mapping
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
from typing import Any

from absl import logging

from subtune_jax import strict_json


def key_of(description: Mapping[str, Any]) -> str:
  """Identity of a training: a hash of everything that its result depends on."""
  text = json.dumps(description, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
  """A value as JSON: dataclasses as dicts, functions by their qualified name.

  A field with the metadata "omit_default" is left out at its default, so that adding one does not
  make old ledgers forget.
  """
  if dataclasses.is_dataclass(value):
    return {
      f.name: plain(getattr(value, f.name))
      for f in dataclasses.fields(value)
      if not (f.metadata.get("omit_default") and getattr(value, f.name) == f.default)
    }
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if callable(value):
    return f"{value.__module__}.{value.__qualname__}"
  return value


class Ledger:
  """Rows by key, appended whole and flushed to the disk; several processes may share the file."""

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)

  def rows(self) -> dict[str, dict[str, Any]]:
    """Every finished row by its key. A last line cut off by a kill is dropped.

    A row with a number that is not finite is read as diverged (`strict_json.loads`).

    Raises:
      ValueError: a line before the last is not a row of a ledger.
    """
    if not self.path.exists():
      return {}
    *lines, rest = self.path.read_bytes().split(b"\n")
    if rest:
      logging.warning("%s: dropped a line that a kill had cut off", self.path)
    rows = {}
    for number, line in enumerate(lines, 1):
      try:
        row = strict_json.loads(line)
        rows[row["key"]] = row
      except (ValueError, KeyError, TypeError) as e:
        raise ValueError(
          f"{self.path}: line {number} is damaged; remove that line to train it again"
        ) from e
    return rows

  def append(self, row: Mapping[str, Any]) -> None:
    """Adds a row, which needs a "key"; on the disk when this returns. NaN is written as null."""
    line = strict_json.dumps(dict(row)).encode() + b"\n"
    assert row["key"]
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with open(self.path, "a+b") as f:
      fcntl.flock(f, fcntl.LOCK_EX)
      f.seek(0)
      content = f.read()
      whole = content.rfind(b"\n") + 1
      if whole < len(content):
        f.truncate(whole)
      f.seek(0, os.SEEK_END)
      f.write(line)
      f.flush()
      os.fsync(f.fileno())
