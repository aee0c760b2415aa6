"""Named arrays and a JSON note on disk, written by Orbax whole or not at all.

A checkpoint is a folder that Orbax renames into place when it is complete, so a process killed
while it writes leaves the one before. The note carries a SHA-256 of the arrays, which is checked on
reading.
"""

from collections.abc import Mapping
import hashlib
import os
import pathlib
import shutil
from typing import Any

from absl import logging
import jax
import numpy as np

from subtune_jax import files, processes

FORMAT = "subtune_jax/1"
_DIGEST = "sha256_of_arrays"


class CheckpointError(ValueError):
  """A checkpoint that cannot be read, or that belongs to something else."""


def digest(arrays: Mapping[str, Any]) -> str:
  """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
  sha = hashlib.sha256()
  for name in sorted(arrays):
    array = np.asarray(arrays[name])
    sha.update(f"{name}:{array.dtype}:{array.shape};".encode())
    sha.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
  return sha.hexdigest()


def _checkpointer(*, reading: bool = False):
  """Of several processes of a run all write together; each reads for itself."""
  import orbax.checkpoint as ocp  # heavy; not every run writes a checkpoint

  own = jax.process_index()
  alone = {"primary_host": own, "active_processes": {own}, "barrier_sync_key_prefix": f"p{own}"}
  options = ocp.options.MultiprocessingOptions(**(alone if reading else {}))
  handler = ocp.CompositeCheckpointHandler(
    arrays=ocp.PyTreeCheckpointHandler(multiprocessing_options=options),
    note=ocp.JsonCheckpointHandler(multiprocessing_options=options),
    composite_options=ocp.CompositeOptions(multiprocessing_options=options),
  )
  return ocp, ocp.Checkpointer(handler, multiprocessing_options=options)


def save(path: str | os.PathLike, arrays: Mapping[str, Any], note: Mapping[str, Any]) -> None:
  """Writes `arrays` (name -> array) and `note` (JSON) to the folder `path`, atomically.

  An existing checkpoint of that name is replaced.
  """
  ocp, checkpointer = _checkpointer()
  host = {name: np.asarray(value) for name, value in jax.device_get(dict(arrays)).items()}
  note = {**note, "format": FORMAT, "arrays": sorted(host), _DIGEST: digest(host)}
  with files.naming(path), checkpointer:
    checkpointer.save(
      pathlib.Path(path).absolute(),
      args=ocp.args.Composite(arrays=ocp.args.PyTreeSave(host), note=ocp.args.JsonSave(note)),
      force=True,
    )


def load(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Reads what `save` wrote.

  Returns:
    The arrays by name, and the note.

  Raises:
    CheckpointError: the folder is missing, is no checkpoint of this library, or is damaged.
  """
  path = pathlib.Path(path).absolute()
  if not path.is_dir():
    raise CheckpointError(f"no checkpoint at {path}")
  ocp, checkpointer = _checkpointer(reading=True)
  try:
    with checkpointer:
      note = checkpointer.restore(path, args=ocp.args.Composite(note=ocp.args.JsonRestore())).note
  except Exception as e:
    raise CheckpointError(f"{path} is not a readable checkpoint: {_short(e)}") from e
  if not isinstance(note, dict) or note.get("format") != FORMAT:
    found = note.get("format") if isinstance(note, dict) else type(note).__name__
    raise CheckpointError(f"{path} is foreign: its format is {found!r}, not {FORMAT!r}")
  ocp, checkpointer = _checkpointer(reading=True)
  try:
    with checkpointer:
      arrays = _restore_arrays(ocp, checkpointer, path, note["arrays"])
  except Exception as e:
    raise CheckpointError(f"the arrays of {path} are damaged: {_short(e)}") from e
  if digest(arrays) != note[_DIGEST]:
    raise CheckpointError(
      f"the arrays of {path} are damaged: their SHA-256 is not the one in the note"
    )
  return arrays, note


def _restore_arrays(
  ocp: Any, checkpointer: Any, path: pathlib.Path, names: list[str]
) -> dict[str, np.ndarray]:
  """The named arrays as numpy, whatever devices they were saved from."""
  restore_args = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
  args = ocp.args.PyTreeRestore(item=dict.fromkeys(names, 0), restore_args=restore_args)
  return dict(checkpointer.restore(path, args=ocp.args.Composite(arrays=args)).arrays)


def _short(error: Exception) -> str:
  text = " ".join(str(error).split())
  return f"{type(error).__name__}: {text[:200]}"


class Checkpoints:
  """Numbered checkpoints in a folder; the newest `keep` are kept."""

  def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
    self.directory = pathlib.Path(directory)
    self.keep = keep

  def steps(self) -> list[int]:
    """Steps of the finished checkpoints, ascending."""
    if not self.directory.is_dir():
      return []
    return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdecimal())

  def save(self, step: int, arrays: Mapping[str, Any], note: Mapping[str, Any]) -> None:
    """Writes one and removes the oldest beyond `keep`."""
    save(self.directory / str(step), arrays, note)
    if processes.is_first():
      for old in self.steps()[: -self.keep]:
        shutil.rmtree(self.directory / str(old))

  def restore(
    self, *, last_good: bool = False
  ) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The newest checkpoint, or None where there is none.

    Args:
      last_good: fall back to the newest readable one instead of failing on a damaged one.

    Raises:
      CheckpointError: the newest is damaged and `last_good` is off, or none is readable.
    """
    steps = processes.agreed(self.steps())
    for step in reversed(steps):
      path = self.directory / str(step)
      try:
        return load(path)
      except CheckpointError as e:
        older = [s for s in steps if s < step]
        if not last_good or not older:
          fix = (
            f"set config.resume='last_good' to go on from step {older[-1]}, or " if older else ""
          )
          raise CheckpointError(f"{e}. To go on, {fix}delete {path} to start over") from e
        logging.warning("%s; going on from step %d", e, older[-1])
    return None

  def clear(self) -> None:
    """Removes all of them."""
    if processes.is_first():
      shutil.rmtree(self.directory, ignore_errors=True)
