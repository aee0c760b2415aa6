"""A task's export: its tuned leaves and head only, and the backbone they belong to."""

from collections.abc import Mapping
import os
from typing import Any

from flax import serialization
import jax
import numpy as np

from subtune_jax import files, methods
from subtune_jax.training import checkpoint, resume

PyTree = Any


def backbone_digest(variables: PyTree, *, head: bool = False) -> str:
  """SHA-256 over a network's names, shapes, dtypes and bytes: parameters and statistics.

  Args:
    variables: {"params", "batch_stats"}.
    head: whether the head counts.
  """
  params = {k: v for k, v in variables["params"].items() if head or methods.backbone(k, v)}
  named = resume.named_leaves(params, "params")
  return checkpoint.digest(
    named | resume.named_leaves(variables.get("batch_stats", {}), "batch_stats")
  )


def save_task(
  path: str | os.PathLike,
  variables: PyTree,
  touched: PyTree,
  pretrained: PyTree,
  note: dict[str, Any],
) -> None:
  """Writes the leaves that a training could change.

  Args:
    path: folder to write.
    variables: after the training.
    touched: bool tree over params and batch_stats (`FitResult.touched`).
    pretrained: the variables that the training started from; their digest is stored.
    note: anything else to keep, e.g. the backbone's name and the classes (JSON).
  """
  kept = jax.tree.map(lambda x, t: x if t else None, variables, touched)
  note = {**note, "kind": "task", "backbone_digest": backbone_digest(pretrained)}
  checkpoint.save(path, resume.named_leaves(kept, "task"), note)


def load_task(path: str | os.PathLike, pretrained: PyTree) -> tuple[PyTree, dict[str, Any]]:
  """Puts a task's leaves onto its backbone.

  Args:
    path: folder that `save_task` wrote.
    pretrained: variables of the same backbone; the head may have any number of classes. A task
      that holds every leaf, as of a training from random weights, needs but the same shapes.

  Returns:
    The task's variables, and its note.

  Raises:
    CheckpointError: damaged, not a task, or of another backbone.
  """
  arrays, note = read_task(path)
  return put_task(path, arrays, note, pretrained), note


def read_task(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """(leaves, note) of a task's export. Raises CheckpointError: damaged, or not a task."""
  arrays, note = checkpoint.load(path)
  if note.get("kind") != "task":
    raise checkpoint.CheckpointError(f"{path} is no exported task but {note.get('kind')!r}")
  return arrays, note


def put_task(
  path: str | os.PathLike, arrays: Mapping[str, np.ndarray], note: Mapping[str, Any],
  pretrained: PyTree,
) -> PyTree:  # fmt: skip
  """The variables of a task that `read_task` read, on its backbone; see `load_task`."""
  named = resume.named_leaves(dict(pretrained), "task")
  found = backbone_digest(pretrained)
  if set(named) - set(arrays) and found != note["backbone_digest"]:
    raise checkpoint.CheckpointError(
      f"{path} belongs to another backbone ({note.get('backbone', 'unnamed')}, digest "
      f"{note['backbone_digest'][:12]}); this one has digest {found[:12]}"
    )
  unknown = sorted(set(arrays) - set(named))
  if unknown:
    raise checkpoint.CheckpointError(f"{path} holds leaves that the network lacks: {unknown[:5]}")
  misshapen = [
    name for name, leaf in named.items()
    if name in arrays and "/head/" not in name and arrays[name].shape != leaf.shape
  ]  # fmt: skip
  if misshapen:
    raise checkpoint.CheckpointError(f"{path} holds leaves of other shapes: {misshapen[:5]}")
  leaves = [arrays.get(name, leaf) for name, leaf in named.items()]
  return jax.tree.unflatten(jax.tree.structure(dict(pretrained)), leaves)


def save_variables(path: str | os.PathLike, variables: PyTree) -> None:
  """Writes a whole network to a file that `weights.load_pretrained` reads: Flax's msgpack.

  The file does not say how the network saw images: load it with `preprocessing`.

  Args:
    path: of the file, such as "resnet26.msgpack"; an existing one is replaced.
    variables: {"params", "batch_stats"}.
  """
  kept = {name: variables[name] for name in ("params", "batch_stats") if variables.get(name)}
  host = jax.device_get(serialization.to_state_dict(kept))
  temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
  try:
    with files.naming(path), open(temporary, "wb") as file:
      file.write(serialization.msgpack_serialize(host))
    os.replace(temporary, path)
  except BaseException:
    if os.path.exists(temporary):
      os.unlink(temporary)
    raise
