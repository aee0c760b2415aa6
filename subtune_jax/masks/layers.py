"""Layers that a scan keeps in one array: taken apart, trained one by one, put together again."""

from collections.abc import Callable, Mapping, Sequence
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.masks import parts, selection
from subtune_jax.masks import tree as tree_lib

Tree = tree_lib.Tree


def unstack(tree: Tree, selector: str | Sequence[str], axis: int = 0) -> Tree:
  """Turns subtrees that stack layers in their leaves into dicts of layers.

  A model that scans over its layers (`nn.scan`) keeps them in one leaf [num_layers, ...]. After
  `unstack(params, "layers")`, `params["layers"]` is {"0": ..., "1": ...}, each with the structure
  that the stack had, and the pattern "layers/3" selects one layer.

  Args:
    tree: any pytree.
    selector: pattern that names the stacked subtree (or leaf), or several.
    axis: the axis of the layers, in every leaf below.

  Raises:
    ValueError: the pattern matches nothing, or the leaves below have different numbers of layers.
  """

  def split(path, stack):
    return {str(i): _layer(stack, i, axis) for i in range(_num_layers(path, stack, axis))}

  return _map_subtrees(split, tree, selector)


def restack(tree: Tree, selector: str | Sequence[str], axis: int = 0) -> Tree:
  """The inverse of `unstack`, bit for bit; works under `jit` and `grad`.

  The gradient of a scan over the restacked leaf computes the gradient of every layer, frozen or
  not. `scan_layers` does not.

  Raises:
    ValueError: the selected subtree is not a dict of layers, or its layers differ.
  """
  return _map_subtrees(lambda path, layers: _stack(path, layers, axis), tree, selector)


def scan_layers(
  body: Callable[[Any, Tree], Any], carry: Any, layers: Mapping[str, Tree], labels: Tree
) -> Any:
  """Runs `carry = body(carry, layer)` over unstacked layers, one `lax.scan` per run of one label.

  Neighbours with the same labels share a scan, so the program stays small, and the gradient of a
  frozen layer is never computed.

  Args:
    body: (carry, parameters of one layer) -> carry.
    carry: input of the first layer.
    layers: {"0": ..., "1": ...}, as from `unstack`, trained and frozen combined.
    labels: labels of the same structure.

  Returns:
    The output of the last layer.
  """
  parts.labels_by_path(layers, labels)
  names = sorted(layers, key=tree_lib.natural_key)
  for _, found in itertools.groupby(names, key=lambda name: jax.tree.leaves(labels[name])):
    run = list(found)
    if len(run) == 1:
      carry = body(carry, layers[run[0]])
    else:
      stack = _stack("layers", {str(i): layers[name] for i, name in enumerate(run)}, 0)
      carry, _ = jax.lax.scan(lambda c, layer: (body(c, layer), None), carry, stack)
  return carry


def _layer(stack: Tree, index: int, axis: int) -> Tree:
  def take(leaf):
    if isinstance(leaf, np.ndarray):
      return np.take(leaf, index, axis)
    return jax.lax.index_in_dim(leaf, index, axis, keepdims=False)

  return jax.tree.map(take, stack)


def _num_layers(name: str, stack: Tree, axis: int) -> int:
  sizes = {}
  for path, leaf in tree_lib.flatten(stack)[0]:
    shape = np.shape(leaf)
    if not -len(shape) <= axis < len(shape):
      raise ValueError(f"{name}/{path} of shape {shape} has no axis {axis} to unstack")
    sizes[f"{name}/{path}".rstrip("/")] = shape[axis]
  if len(set(sizes.values())) != 1:
    listed = tree_lib.shorten([f"{path}: {size}" for path, size in sizes.items()], 20)
    raise ValueError(
      f"leaves under {name!r} have different sizes on axis {axis}, the axis of the layers: {listed}"
    )
  return next(iter(sizes.values()))


def _stack(name: str, layers: Any, axis: int) -> Tree:
  if not isinstance(layers, Mapping) or set(layers) != {str(i) for i in range(len(layers))}:
    keys = tree_lib.shorten(list(map(str, layers))) if isinstance(layers, Mapping) else type(layers)
    raise ValueError(f"{name!r} is not a dict of layers '0', '1', ... as from unstack: {keys}")
  layers = [layers[str(i)] for i in range(len(layers))]
  if not layers:
    raise ValueError(f"{name!r} has no layers")

  def describe(layer):
    return {
      path: (np.shape(x), getattr(x, "dtype", type(x))) for path, x in tree_lib.flatten(layer)[0]
    }

  first = describe(layers[0])
  structure: Any = jax.tree.structure(layers[0])  # jax has no types for it
  for i, layer in enumerate(layers):
    other = describe(layer)
    if other != first or structure != jax.tree.structure(layer):
      wrong = sorted({path for path, _ in first.items() ^ other.items()}, key=tree_lib.natural_key)
      raise ValueError(
        f"{name}/{i} does not fit {name}/0 in structure, shape or dtype: "
        f"{tree_lib.shorten(wrong)}. Combine a partitioned tree before restacking it"
      )

  def join(*leaves):
    numpy = all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
    return (np if numpy else jnp).stack(leaves, axis)

  return jax.tree.map(join, *layers)


def _map_subtrees(function, tree: Tree, selector: str | Sequence[str]) -> Tree:
  """Replaces each subtree that a pattern names by `function(path, subtree)`."""
  patterns = [selector] if isinstance(selector, str) else list(selector)
  leaves = tree_lib.flatten(tree)[0]
  targets = set()
  for pattern in patterns:
    if not isinstance(pattern, str):
      raise ValueError(f"stacked subtrees are selected by pattern, not by {pattern!r}")
    selection.match(leaves, pattern)
    for path, _ in leaves:
      parts = path.split("/")
      end = selection.match_end(parts, selection.parse(pattern))
      if end is not None:
        targets.add("/".join(parts[:end]))

  def is_target(keys, _):
    return tree_lib.join_path(keys) in targets

  def replace(keys, node):
    path = tree_lib.join_path(keys)
    return function(path, node) if path in targets else node

  return jax.tree_util.tree_map_with_path(replace, tree, is_leaf=is_target, is_leaf_takes_path=True)
