"""Reads Orbax checkpoints: folders that StandardCheckpointer or PyTreeCheckpointer wrote."""

import math
import pathlib
from typing import Any

from absl import logging
import numpy as np

from subtune_jax.weights import errors, nested_names

METADATA = "_METADATA"  # the file that such a folder has
_MAX_GROWTH = 8  # of all arrays together, in sizes of the folder: they are compressed
_MIN_GROWTH = 2**20  # bytes
_SHOWN = 20


def matches(path: pathlib.Path) -> bool:
  """Tells whether a folder is an Orbax checkpoint of a tree."""
  return (path / METADATA).is_file()


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the arrays by name, the keys of nested trees joined by '/'.

  Raises:
    Refused: Orbax is not installed, or the arrays would take more memory than a folder of this
      size may.
    Damaged: Orbax cannot restore it.
  """
  try:
    import orbax.checkpoint  # here: it takes seconds, and few weights need it
  except ImportError as e:
    raise errors.Refused("it is an Orbax checkpoint", "run: pip install orbax-checkpoint") from e
  size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
  checkpointer = orbax.checkpoint.PyTreeCheckpointer()
  item = _attempt(lambda: checkpointer.metadata(path.absolute()).item_metadata)
  metadata = getattr(item, "tree", None)
  if metadata is None:
    raise errors.Damaged(f"its {METADATA} describes no tree")
  described = nested_names.flatten(metadata, _children, "/", size)
  nbytes = sum(_nbytes(leaf) for leaf in described.values())
  if nbytes > _MAX_GROWTH * size + _MIN_GROWTH:
    raise errors.Refused(
      f"its arrays take {nbytes} bytes, more than {_MAX_GROWTH} times its size",
      "restore it with Orbax where you trust it, and save it again",
    )
  tree = _attempt(lambda: checkpointer.restore(path.absolute(), restore_args=_arguments(metadata)))
  leaves = nested_names.flatten(tree, _children, "/", size)
  arrays = {k: v for k, v in leaves.items() if isinstance(v, np.ndarray)}
  if not arrays:
    raise errors.Damaged("it holds no array")
  dropped = [k for k in leaves if k not in arrays]
  logging.info("%s: %d arrays; %d values are dropped, as no arrays: %s",
               path, len(arrays), len(dropped), ", ".join(dropped[:_SHOWN]))  # fmt: skip
  for array in arrays.values():
    array.flags.writeable = False
  return arrays


def _attempt(call):
  """Returns what Orbax returns; it has no error of its own for a damaged checkpoint."""
  try:
    return call()
  except Exception as e:
    raise errors.Damaged(f"Orbax cannot restore it ({errors.quote(str(e))[1:-1]})") from e


def _children(value: Any) -> dict[Any, Any] | None:
  if isinstance(value, list | tuple):
    return dict(enumerate(value))
  return value if isinstance(value, dict) else None


def _nbytes(leaf: Any) -> int:
  shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
  return 0 if shape is None or dtype is None else math.prod(shape) * np.dtype(dtype).itemsize


def _arguments(metadata: Any) -> Any:
  """Returns the tree with what to restore each leaf as: text as text, all else as an array."""
  import jax
  import orbax.checkpoint

  def argument(leaf):
    text = getattr(leaf, "shape", None) is None
    return orbax.checkpoint.RestoreArgs(restore_type=str if text else np.ndarray)

  return jax.tree.map(argument, metadata)
