"""Nested dicts as flat ones, in memory that the file's length bounds."""

from collections.abc import Callable, Mapping
from typing import Any

from subtune_jax.weights import errors

_MAX_DEPTH = 64
_LEAST = 2**20
_PER_BYTE = 16
_PER_NAME = 128  # what a name costs besides its characters


def flatten(
  tree: Any,
  children: Callable[[Any], Mapping[Any, Any] | None],
  separator: str,
  file_size: int,
) -> dict[str, Any]:
  """Returns the leaves of a tree by name.

  A file can refer to one part from many places, or to a part from inside of it; so depth is
  limited, and the memory of all names together to 16 times the file's size plus 1 MiB.

  Args:
    tree: anything; for a leaf the result has one item, named "".
    children: a node's parts by key, or None for a leaf.
    separator: between the keys that make a name.
    file_size: bytes that the tree was read from.

  Raises:
    Damaged: two leaves of one name, or a tree beyond the limits.
  """
  left = _PER_BYTE * file_size + _LEAST
  leaves = {}
  pending = [("", tree, 0)]
  while pending:
    name, node, depth = pending.pop()
    parts = children(node)
    if parts is None:
      if name in leaves:
        raise errors.Damaged(f"it has two values of the name {errors.quote(name)}")
      leaves[name] = node
      continue
    if depth == _MAX_DEPTH:
      raise errors.Damaged(f"it nests more than {_MAX_DEPTH} levels deep")
    prefix = f"{name}{separator}" if depth else ""
    left -= sum(len(prefix) + len(_text(key)) + _PER_NAME for key in parts)
    if left < 0:
      raise errors.Damaged("its names outgrow the file, through parts that repeat")
    pending += reversed([(f"{prefix}{_text(k)}", v, depth + 1) for k, v in parts.items()])
  return leaves


def _text(key: Any) -> str:
  if not isinstance(key, str | int):
    raise errors.Damaged("a dict has a key that is neither text nor an integer")
  return str(key)
