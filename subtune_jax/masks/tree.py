"""Pytrees as leaves with paths: what the other files of this folder build on."""

from collections.abc import Sequence
import re
from typing import Any

import flax
from flax import nnx
from flax.core import meta
import jax

FROZEN = "frozen"
TUNED = "tuned"
HEAD = "head"

Tree = Any

_BOXES = (nnx.Variable, meta.AxisMetadata)  # containers of one leaf, not shown in paths


@flax.struct.dataclass
class OriginalNone:
  """Stands in both parts of a partition for a `None` of the tree. Has no leaves, as `None`."""


def paths(tree: Tree) -> list[str]:
  """Returns the path of each leaf, "a/b/0", in the order of `jax.tree.leaves`."""
  return [path for path, _ in flatten(tree)[0]]


def natural_key(name: str) -> list[tuple[bool, int, str]]:
  """Returns a sort key that puts block2 before block10."""
  return [
    (part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)
  ]


def flatten(tree: Tree, keep_none: bool = False) -> tuple[list[tuple[str, Any]], Any]:
  """Returns [(path, leaf)] and the treedef, in the order of `jax.tree.leaves`."""

  def is_none(x):
    return keep_none and (x is None or isinstance(x, OriginalNone))

  def below(node, is_leaf):
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=is_leaf)[0]

  leaves = []
  for keys, node in below(tree, lambda x: isinstance(x, _BOXES) or is_none(x)):
    if isinstance(node, _BOXES):
      # The first key below a box is its own field (`value`).
      leaves += [(join_path((*keys, *inner[1:])), leaf) for inner, leaf in below(node, is_none)]
    else:
      leaves.append((join_path(keys), node))
  if len({path for path, _ in leaves}) < len(leaves):
    raise ValueError("two leaves have the same path: a key contains '/' or is both 1 and '1'")
  return leaves, jax.tree.structure(tree, is_leaf=is_none)


def join_path(keys: Sequence[Any]) -> str:
  """Returns jax's path of keys as "a/b/0"."""
  return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def check_same_paths(name_a: str, a: list[str], name_b: str, b: list[str]) -> None:
  missing = sorted(set(a) - set(b), key=natural_key)
  extra = sorted(set(b) - set(a), key=natural_key)
  if missing or extra:
    raise ValueError(
      f"{name_a} and {name_b} differ in structure: only in {name_a}: "
      f"{shorten(missing) or 'nothing'}; only in {name_b}: {shorten(extra) or 'nothing'}"
    )


def shorten(names: Sequence[str], limit: int = 10) -> str:
  """Joins the first names, and says how many more there are."""
  more = len(names) - limit
  return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
