"""Checkpoints of a training under way: written now and then, found again after a kill."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from subtune_jax.training import checkpoint

PyTree = Any


def named_leaves(tree: PyTree, prefix: str) -> dict[str, Any]:
  """'/'-path -> leaf, each path below `prefix`."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    f"{prefix}/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf
    for path, leaf in leaves
  }


@dataclasses.dataclass(frozen=True)
class Found:
  """A checkpoint that was read.

  Attributes:
    arrays: '/'-path -> array.
    note: what was written beside them.
  """

  arrays: dict[str, np.ndarray]
  note: dict[str, Any]

  def fill(self, prefix: str, template: PyTree) -> PyTree:
    """A tree like `template` with the arrays stored under `prefix`.

    Raises:
      CheckpointError: names, shapes or dtypes differ from the template's.
    """
    wanted = named_leaves(template, prefix)
    stored = {k: v for k, v in self.arrays.items() if k.startswith(prefix + "/")}
    missing, extra = sorted(set(wanted) - set(stored)), sorted(set(stored) - set(wanted))
    misshapen = [
      f"{k}: {stored[k].dtype}{list(stored[k].shape)} stored, {v.dtype}{list(v.shape)} wanted"
      for k, v in wanted.items()
      if k in stored and (stored[k].shape != v.shape or stored[k].dtype != v.dtype)
    ]
    if missing or extra or misshapen:
      raise checkpoint.CheckpointError(
        f"the checkpoint does not fit this training: missing {missing[:5]}, unknown {extra[:5]}, "
        f"of another shape {misshapen[:5]}; start again in another workdir"
      )
    return jax.tree.unflatten(jax.tree.structure(template), [stored[k] for k in wanted])


class Saver:
  """Writes a training's checkpoints no more often than every so many seconds.

  Args:
    checkpoints: the folder.
    key: identity of the training; a checkpoint of another key is refused.
    every_seconds: between two checkpoints; 0 writes one after every epoch.
    last_good: go on from an older checkpoint where the newest is damaged.
  """

  def __init__(
    self,
    checkpoints: checkpoint.Checkpoints,
    key: str,
    *,
    every_seconds: float = 30.0,
    last_good: bool = False,
  ):
    self.checkpoints, self.key = checkpoints, key
    self.every_seconds, self.last_good = every_seconds, last_good
    self._last = time.monotonic()

  def due(self) -> bool:
    """Whether enough time has passed."""
    return time.monotonic() - self._last >= self.every_seconds

  def save(self, step: int, trees: dict[str, PyTree], note: dict[str, Any]) -> None:
    """Writes the trees and the note as checkpoint number `step`."""
    arrays: dict[str, Any] = {}
    for prefix, tree in trees.items():
      arrays |= named_leaves(tree, prefix)
    self.checkpoints.save(step, arrays, {**note, "key": self.key})
    self._last = time.monotonic()

  def restore(self) -> Found | None:
    """The newest checkpoint, or None.

    Raises:
      CheckpointError: it is damaged, or belongs to another training.
    """
    found = self.checkpoints.restore(last_good=self.last_good)
    if found is None:
      return None
    arrays, note = found
    if note.get("key") != self.key:
      raise checkpoint.CheckpointError(
        f"{self.checkpoints.directory} belongs to another training ({note.get('key')}, not "
        f"{self.key}); delete it or take another workdir"
      )
    return Found(arrays, note)
