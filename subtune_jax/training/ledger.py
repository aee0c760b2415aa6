"""One JSON line per finished training: what was done is never done again after a kill."""

from collections.abc import Mapping
import dataclasses
import fcntl
import hashlib
import inspect
import json
import os
import pathlib
from typing import Any, NamedTuple

from absl import logging

from subtune_jax import files, processes, strict_json

VERSION = 2  # of what keys are made of


def key_of(description: Mapping[str, Any]) -> str:
  """Identity of a training: a hash of everything that its result depends on."""
  text = json.dumps(description, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
  """A value as JSON: dataclasses as dicts, functions by their qualified name.

  A dataclass that is a function as well has the name of its class beside its fields.

  A field with the metadata "omit_default" is left out at its default, so that adding one does not
  make old ledgers forget.

  Raises:
    ValueError: a function whose name does not tell it from another one.
  """
  if dataclasses.is_dataclass(value):
    called = {"function": _name(type(value))} if callable(value) else {}
    return called | {
      f.name: plain(getattr(value, f.name))
      for f in dataclasses.fields(value)
      if not (f.metadata.get("omit_default") and getattr(value, f.name) == f.default)
    }
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if callable(value):
    return _name(value)
  return value


def _name(value: Any) -> str:
  name = getattr(value, "__qualname__", "")
  if not name or inspect.ismethod(value) or (inspect.isfunction(value) and "<" in name):
    raise ValueError(
      f"{value!r} is part of what a training depends on, and its name does not say what it "
      "computes; use a function at the top of a module, or a frozen dataclass with __call__"
    )
  return f"{value.__module__}.{name}"


class _Place(NamedTuple):
  """How far a file was read."""

  inode: int
  offset: int
  lines: int


class Ledger:
  """Rows by key, appended whole and flushed to the disk; several processes may share the file.

  Each line says the version of what its key is made of. Lines of another version stay in the file
  and are not read: those of the first, which say none, had keys that knew the weights by a
  string and penalties by their fields, so nothing proves what they belong to. Their trainings are
  done again.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    self._rows: dict[str, dict[str, Any]] = {}
    self._read = _Place(0, 0, 0)

  def rows(self) -> dict[str, dict[str, Any]]:
    """Every finished row of this version by its key; see `new_rows`."""
    return processes.on_first(self._all)

  def _all(self) -> dict[str, dict[str, Any]]:
    self.new_rows()
    return dict(self._rows)

  def new_rows(self) -> dict[str, dict[str, Any]]:
    """Those that were added since the last look, by this process or another one.

    A last line cut off by a kill is dropped. A row with a number that is not finite is read as
    diverged (`strict_json.loads`). A file that was replaced is read from its start.

    Raises:
      ValueError: a line before the last is not a row of a ledger.
    """
    if not self.path.exists():
      self._rows, self._read = {}, _Place(0, 0, 0)
      return {}
    with open(self.path, "rb") as f:
      found = os.fstat(f.fileno())
      if found.st_ino != self._read.inode or found.st_size < self._read.offset:  # another file
        self._rows, self._read = {}, _Place(found.st_ino, 0, 0)
      f.seek(self._read.offset)
      *lines, rest = f.read().split(b"\n")
    if rest:
      logging.warning("%s: dropped a line that a kill had cut off", self.path)
    rows, others = {}, 0
    for number, line in enumerate(lines, self._read.lines + 1):
      try:
        row = strict_json.loads(line)
        key, version = row["key"], row.pop("version", 1)
      except (ValueError, KeyError, TypeError) as e:
        raise ValueError(
          f"{self.path}: line {number} is damaged; remove that line to train it again"
        ) from e
      if version == VERSION:
        rows[key] = row
      else:
        others += 1
    if others:
      logging.warning(
        "%s: %d lines have keys of another version than %d; these trainings are done again",
        self.path, others, VERSION,
      )  # fmt: skip
    end = self._read.offset + sum(len(line) + 1 for line in lines)
    self._read = _Place(found.st_ino, end, self._read.lines + len(lines))
    self._rows |= rows
    return rows

  def append(self, row: Mapping[str, Any]) -> None:
    """Adds a row, which needs a "key"; on the disk when this returns. NaN is written as null."""
    line = strict_json.dumps({**row, "version": VERSION}).encode() + b"\n"
    assert row["key"]
    if not processes.is_first():
      return
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with files.naming(self.path), open(self.path, "a+b") as f:
      fcntl.flock(f, fcntl.LOCK_EX)
      if f.seek(0, os.SEEK_END):
        f.seek(-1, os.SEEK_END)
        if f.read() != b"\n":  # a kill has cut the last line off
          f.seek(0)
          f.truncate(f.read().rfind(b"\n") + 1)
      f.write(line)
      f.flush()
      os.fsync(f.fileno())
