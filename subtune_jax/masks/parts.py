"""What labels are for: the trained and the frozen part, their optimiser and their sizes."""

from collections.abc import Mapping
from typing import overload

import numpy as np
import optax

from subtune_jax.masks import tree as tree_lib

Tree = tree_lib.Tree


def labels_by_path(tree: Tree, labels: Tree) -> dict[str, str]:
  """Returns path -> label for the leaves of `tree`, after checking that `labels` fits it.

  Raises:
    ValueError: a leaf of `labels` is not a string, or one of the two has paths that the other
      lacks.
  """
  found = dict(tree_lib.flatten(labels)[0])
  strange = [f"{path}: {value!r}" for path, value in found.items() if not isinstance(value, str)]
  if strange:
    raise ValueError(
      f"labels must be strings, got {tree_lib.shorten(strange)}. Make them by masks.label"
    )
  tree_lib.check_same_paths("the tree", tree_lib.paths(tree), "labels", list(found))
  return {path: found[path] for path in tree_lib.paths(tree)}


def partition(tree: Tree, labels: Tree) -> tuple[Tree, Tree]:
  """Splits `tree` into the leaves that are trained and those that are frozen.

  Args:
    tree: any pytree.
    labels: tree of strings of the same structure (see `label`).

  Returns:
    (trained, frozen), both with the containers of `tree`, and None in place of the leaves of the
    other part. So gradients and optimiser states made from `trained` have no frozen leaves.
    A None of `tree` itself becomes `OriginalNone` in both.
  """
  label_of = labels_by_path(tree, labels)
  leaves, treedef = tree_lib.flatten(tree, keep_none=True)

  def part(is_wanted):
    return treedef.unflatten(
      tree_lib.OriginalNone() if leaf is None else leaf if is_wanted(label_of[path]) else None
      for path, leaf in leaves
    )

  return part(lambda name: name != tree_lib.FROZEN), part(lambda name: name == tree_lib.FROZEN)


def combine(a: Tree, b: Tree) -> Tree:
  """Puts the two parts of a partition together again.

  The containers are those of `a`.

  Raises:
    ValueError: a leaf is in both or in neither, or the structures differ.
  """
  leaves, treedef = tree_lib.flatten(a, keep_none=True)
  others = dict(tree_lib.flatten(b, keep_none=True)[0])
  tree_lib.check_same_paths(
    "the first tree", [path for path, _ in leaves], "the second", list(others)
  )
  both, neither, combined = [], [], list[object]()
  for path, leaf in leaves:
    other = others[path]
    if isinstance(leaf, tree_lib.OriginalNone) and isinstance(other, tree_lib.OriginalNone):
      combined.append(None)
      continue
    if leaf is None and other is None:
      neither.append(path)
    elif leaf is not None and other is not None:
      both.append(path)
    combined.append(other if leaf is None else leaf)
  if both or neither:
    raise ValueError(
      "the two trees are not the parts of one partition: "
      f"in both: {tree_lib.shorten(both) or 'nothing'}; "
      f"in neither: {tree_lib.shorten(neither) or 'nothing'}"
    )
  return treedef.unflatten(combined)


def multi_transform(
  transforms: Mapping[str, optax.GradientTransformation], labels: Tree
) -> optax.GradientTransformationExtraArgs:
  """Returns `optax.multi_transform` for `labels`, where frozen leaves get exactly zero.

  It takes the whole tree of parameters or the trained part alone. The second is what costs no
  gradient for the frozen leaves; with both, they own no optimiser state.

  Args:
    transforms: label -> transformation, one for each label but `FROZEN`.
    labels: tree of strings (see `label`).

  Raises:
    ValueError: labels without a transformation, or transformations without a label.
  """
  label_of = labels_by_path(labels, labels)
  used, given = set(label_of.values()) - {tree_lib.FROZEN}, set(transforms)
  if used != given:
    raise ValueError(
      "labels and transforms disagree. Labels without a transform: "
      f"{sorted(used - given) or 'none'}; transforms without a label: "
      f"{sorted(given - used) or 'none'} (leaves labelled {tree_lib.FROZEN!r} take no transform)"
    )

  def labels_of(tree):
    leaves, treedef = tree_lib.flatten(tree)
    extra = [path for path, _ in leaves if path not in label_of]
    if extra:
      raise ValueError(
        f"leaves of the optimised tree that have no label: {tree_lib.shorten(extra)}"
      )
    return treedef.unflatten([label_of[path] for path, _ in leaves])

  return optax.multi_transform({**transforms, tree_lib.FROZEN: optax.set_to_zero()}, labels_of)


@overload
def count_params(tree: Tree) -> int: ...


@overload
def count_params(tree: Tree, labels: Tree) -> dict[str, int]: ...


def count_params(tree: Tree, labels: Tree | None = None) -> int | dict[str, int]:
  """Returns the number of parameters in `tree`; with `labels`, label -> number, frozen last."""
  sizes = {
    path: int(np.prod(np.shape(leaf), dtype=np.int64)) for path, leaf in tree_lib.flatten(tree)[0]
  }
  if labels is None:
    return sum(sizes.values())
  label_of = labels_by_path(tree, labels)
  counts = dict.fromkeys(
    sorted(set(label_of.values()), key=lambda name: (name == tree_lib.FROZEN, name)), 0
  )
  for path, size in sizes.items():
    counts[label_of[path]] += size
  return counts


def summary(tree: Tree, labels: Tree) -> str:
  """Returns a table to print: what each label covers, how many parameters, what share."""
  counts = count_params(tree, labels)
  total = sum(counts.values())
  label_of = labels_by_path(tree, labels)

  def share(count):
    return f"{100 * count / max(total, 1):.1f} %"

  width = max([len("label"), *map(len, counts)])
  number = max(len("parameters"), len(f"{total:,}"))
  rows = [f"{'label':<{width}}  {'parameters':>{number}}  {'share':>7}  what"]
  for name, count in counts.items():
    what = tree_lib.shorten(_covering(label_of, name), 8)
    rows.append(f"{name:<{width}}  {count:>{number},}  {share(count):>7}  {what}")
  trained = total - counts.get(tree_lib.FROZEN, 0)
  rows.append(f"{trained:,} of {total:,} parameters are trained ({share(trained)})")
  return "\n".join(rows)


def _covering(label_of: Mapping[str, str], name: str) -> list[str]:
  """Returns the largest subtrees, in natural order, all of whose leaves have the label `name`."""
  mixed = {""}  # prefixes with another label below them
  for path, other in label_of.items():
    parts = path.split("/")
    if other != name:
      mixed.update("/".join(parts[:i]) for i in range(len(parts) + 1))
  found = set()
  for path, other in label_of.items():
    if other == name:
      parts = path.split("/")
      prefixes = ["/".join(parts[: i + 1]) for i in range(len(parts))]
      found.add(next((prefix for prefix in prefixes if prefix not in mixed), path))
  return sorted(found, key=tree_lib.natural_key)
