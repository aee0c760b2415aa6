"""Choose which leaves of a parameter tree are trained, and keep the others out of the training.

A training method is a tree of labels: it has the structure of the parameters, and a string at each
leaf (`head`, `tuned`, `frozen`, or any other). Trees may be Linen params, an `nnx.State`, or any
nest of dicts, lists, tuples and dataclasses that jax knows. This file imports nothing of the
project, so that other Flax code can use it:

>>> params = {"stem": {"kernel": jnp.ones((3, 8))}, "block1": {"kernel": jnp.ones((8, 8))},
...           "head": {"kernel": jnp.ones((8, 2)), "bias": jnp.zeros(2)}}
>>> labels = masks.label(params, {masks.HEAD: "head", masks.TUNED: ["block1"]})
>>> trained, frozen = masks.partition(params, labels)
>>> loss = lambda trained, x: model(masks.combine(trained, frozen), x).mean()
>>> tx = masks.multi_transform({"head": optax.adamw(1e-2), "tuned": optax.adamw(1e-3)}, labels)
>>> updates, opt_state = tx.update(jax.grad(loss)(trained, x), tx.init(trained), trained)
>>> params = masks.combine(optax.apply_updates(trained, updates), frozen)
>>> masks.count_params(params, labels)
{'head': 18, 'tuned': 64, 'frozen': 24}
>>> print(masks.summary(params, labels))
label   parameters    share  what
head            18   17.0 %  head
tuned           64   60.4 %  block1
frozen          24   22.6 %  stem
82 of 106 parameters are trained (77.4 %)

A selector is one of

* a pattern of whole path components: "block1" selects `encoder/block1/conv/kernel` and not
  `block10`; "block*/kernel" uses shell wildcards inside a component; "/head" starts at the root;
* a predicate of the path, one string, and the leaf: `lambda path, leaf: leaf.ndim == 1`;
* a sequence of selectors, for their union.

A selector that matches nothing is an error that names the nearest names.
"""

from collections.abc import Callable, Mapping, Sequence
import difflib
import fnmatch
import itertools
import re
from typing import Any

import flax
from flax import nnx
from flax.core import meta
import jax
import jax.numpy as jnp
import numpy as np
import optax

FROZEN = "frozen"
TUNED = "tuned"
HEAD = "head"

Tree = Any
Selector = str | Callable[[str, Any], bool] | Sequence[Any]  # a sequence of selectors

_BOXES = (nnx.Variable, meta.AxisMetadata)  # containers of one leaf, not shown in paths


@flax.struct.dataclass
class OriginalNone:
  """Stands in both parts of a partition for a `None` of the tree. Has no leaves, as `None`."""


def paths(tree: Tree) -> list[str]:
  """Returns the path of each leaf, "a/b/0", in the order of `jax.tree.leaves`."""
  return [path for path, _ in _flatten(tree)[0]]


def natural_key(name: str) -> list[tuple[bool, int, str]]:
  """Returns a sort key that puts block2 before block10."""
  return [
    (part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)
  ]


def select(tree: Tree, selector: Selector) -> Tree:
  """Returns a tree of bools, shaped as `tree`: True where `selector` matches.

  Raises:
    ValueError: the selector, or a member of a sequence, matches no leaf.
  """
  leaves, treedef = _flatten(tree)
  return treedef.unflatten(_match(leaves, selector))


def label(tree: Tree, rules: Mapping[str, Selector], default: str = FROZEN) -> Tree:
  """Labels the leaves of `tree`: each by the rule that selects it, the others by `default`.

  Args:
    tree: parameters, or anything of their structure (shapes from `jax.eval_shape` do).
    rules: label -> selector.
    default: label of the leaves that no rule selects.

  Returns:
    A tree of strings, shaped as `tree`: what `optax.multi_transform` takes.

  Raises:
    ValueError: a selector matches nothing, or two rules claim the same leaf.
  """
  leaves, treedef = _flatten(tree)
  labels = [None] * len(leaves)
  clashes = []
  for name, selector in rules.items():
    if not isinstance(name, str):
      raise ValueError(f"a label must be a string, got {name!r}")
    for i, selected in enumerate(_match(leaves, selector)):
      if selected and labels[i] is not None:
        clashes.append(f"{leaves[i][0]} ({labels[i]!r} and {name!r})")
      elif selected:
        labels[i] = name
  if clashes:
    raise ValueError(
      f"claimed by two rules: {_shorten(clashes)}. Narrow one of the selectors: "
      "each leaf has one label"
    )
  return treedef.unflatten([default if name is None else name for name in labels])


def labels_by_path(tree: Tree, labels: Tree) -> dict[str, str]:
  """Returns path -> label for the leaves of `tree`, after checking that `labels` fits it.

  Raises:
    ValueError: a leaf of `labels` is not a string, or one of the two has paths that the other
      lacks.
  """
  found = dict(_flatten(labels)[0])
  strange = [f"{path}: {value!r}" for path, value in found.items() if not isinstance(value, str)]
  if strange:
    raise ValueError(f"labels must be strings, got {_shorten(strange)}. Make them by masks.label")
  _check_same_paths("the tree", paths(tree), "labels", list(found))
  return {path: found[path] for path in paths(tree)}


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
  leaves, treedef = _flatten(tree, keep_none=True)

  def part(is_wanted):
    return treedef.unflatten(
      OriginalNone() if leaf is None else leaf if is_wanted(label_of[path]) else None
      for path, leaf in leaves
    )

  return part(lambda name: name != FROZEN), part(lambda name: name == FROZEN)


def combine(a: Tree, b: Tree) -> Tree:
  """Puts the two parts of a partition together again.

  The containers are those of `a`.

  Raises:
    ValueError: a leaf is in both or in neither, or the structures differ.
  """
  leaves, treedef = _flatten(a, keep_none=True)
  others = dict(_flatten(b, keep_none=True)[0])
  _check_same_paths("the first tree", [path for path, _ in leaves], "the second", list(others))
  both, neither, combined = [], [], []
  for path, leaf in leaves:
    other = others[path]
    if isinstance(leaf, OriginalNone) and isinstance(other, OriginalNone):
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
      f"in both: {_shorten(both) or 'nothing'}; in neither: {_shorten(neither) or 'nothing'}"
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
  used, given = set(label_of.values()) - {FROZEN}, set(transforms)
  if used != given:
    raise ValueError(
      "labels and transforms disagree. Labels without a transform: "
      f"{sorted(used - given) or 'none'}; transforms without a label: "
      f"{sorted(given - used) or 'none'} (leaves labelled {FROZEN!r} take no transform)"
    )

  def labels_of(tree):
    leaves, treedef = _flatten(tree)
    extra = [path for path, _ in leaves if path not in label_of]
    if extra:
      raise ValueError(f"leaves of the optimised tree that have no label: {_shorten(extra)}")
    return treedef.unflatten([label_of[path] for path, _ in leaves])

  return optax.multi_transform({**transforms, FROZEN: optax.set_to_zero()}, labels_of)


def count_params(tree: Tree, labels: Tree | None = None) -> int | dict[str, int]:
  """Returns the number of parameters in `tree`; with `labels`, label -> number, frozen last."""
  sizes = {path: int(np.prod(np.shape(leaf), dtype=np.int64)) for path, leaf in _flatten(tree)[0]}
  if labels is None:
    return sum(sizes.values())
  label_of = labels_by_path(tree, labels)
  counts = dict.fromkeys(sorted(set(label_of.values()), key=lambda name: (name == FROZEN, name)), 0)
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
    what = _shorten(_covering(label_of, name), 8)
    rows.append(f"{name:<{width}}  {count:>{number},}  {share(count):>7}  {what}")
  trained = total - counts.get(FROZEN, 0)
  rows.append(f"{trained:,} of {total:,} parameters are trained ({share(trained)})")
  return "\n".join(rows)


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
  labels_by_path(layers, labels)
  names = sorted(layers, key=natural_key)
  for _, run in itertools.groupby(names, key=lambda name: jax.tree.leaves(labels[name])):
    run = list(run)
    if len(run) == 1:
      carry = body(carry, layers[run[0]])
    else:
      stack = _stack("layers", {str(i): layers[name] for i, name in enumerate(run)}, 0)
      carry, _ = jax.lax.scan(lambda c, layer: (body(c, layer), None), carry, stack)
  return carry


def verify(
  step: Callable[..., Any],
  state: Any,
  batch: Any,
  labels: Tree,
  *,
  params: Callable[[Any], Tree] | None = None,
  loss: Callable[[Any], jax.Array] | None = None,
) -> Any:
  """Proves on a train step that frozen leaves stay bit-equal, own no state and cost no gradient.

  See `subtune_jax.verify.verify`, which this calls.
  """
  from subtune_jax import verify as verification  # not at import: this file stands alone

  return verification.verify(step, state, batch, labels, params=params, loss=loss)


def _flatten(tree: Tree, keep_none: bool = False) -> tuple[list[tuple[str, Any]], Any]:
  """Returns [(path, leaf)] and the treedef, in the order of `jax.tree.leaves`."""

  def is_none(x):
    return keep_none and (x is None or isinstance(x, OriginalNone))

  def flatten(node, is_leaf):
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=is_leaf)[0]

  leaves = []
  for keys, node in flatten(tree, lambda x: isinstance(x, _BOXES) or is_none(x)):
    if isinstance(node, _BOXES):
      # The first key below a box is its own field (`value`).
      leaves += [(join_path((*keys, *inner[1:])), leaf) for inner, leaf in flatten(node, is_none)]
    else:
      leaves.append((join_path(keys), node))
  if len({path for path, _ in leaves}) < len(leaves):
    raise ValueError("two leaves have the same path: a key contains '/' or is both 1 and '1'")
  return leaves, jax.tree.structure(tree, is_leaf=is_none)


def join_path(keys: Sequence[Any]) -> str:
  """Returns jax's path of keys as "a/b/0"."""
  return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def _match(leaves: list[tuple[str, Any]], selector: Selector) -> list[bool]:
  """Returns whether `selector` matches, leaf by leaf. Raises if it matches none."""
  if isinstance(selector, str):
    parts = _parse(selector)
    matches = [_match_end(path.split("/"), parts) is not None for path, _ in leaves]
    if not any(matches):
      raise ValueError(_no_match(selector, [path for path, _ in leaves]))
    return matches
  if callable(selector):
    matches = [bool(selector(path, leaf)) for path, leaf in leaves]
    if not any(matches):
      name = getattr(selector, "__name__", repr(selector))
      raise ValueError(
        f"the predicate {name!r} is true for no leaf; paths are "
        f"{_shorten([path for path, _ in leaves]) or 'none: the tree is empty'}"
      )
    return matches
  if isinstance(selector, Sequence | set | frozenset):
    if not selector:
      raise ValueError("an empty sequence selects nothing: leave the rule out")
    return [any(column) for column in zip(*[_match(leaves, s) for s in selector], strict=True)]
  raise ValueError(
    f"{selector!r} is no selector: use a pattern, a predicate (path, leaf) -> bool, or a sequence"
  )


def _parse(pattern: str) -> list[str]:
  """Returns the components of a pattern; the first is "" where it starts at the root."""
  parts = pattern.rstrip("/").split("/")
  if not any(parts) or "" in parts[1:] or "**" in parts:
    raise ValueError(
      f"bad pattern {pattern!r}: use component names separated by '/', such as 'block1/conv' or "
      "'block*/kernel'; it may start anywhere in a path, and '**' is not known"
    )
  return parts


def _match_end(path: Sequence[str], parts: Sequence[str]) -> int | None:
  """Returns how many components of `path` the first match of a pattern takes, or None."""
  anchored = parts[0] == ""
  parts = parts[1:] if anchored else parts
  last = 0 if anchored else len(path) - len(parts)
  for start in range(last + 1):
    run = path[start : start + len(parts)]
    if len(run) == len(parts) and all(map(fnmatch.fnmatchcase, run, parts)):
      return start + len(parts)
  return None


def _no_match(pattern: str, found: list[str]) -> str:
  """Returns the message for a pattern that matches nothing, with the nearest names."""
  size = len(pattern.strip("/").split("/"))
  names = set()
  for path in found:
    parts = path.split("/")
    names.update("/".join(parts[i : i + size]) for i in range(len(parts) - size + 1))
    names.update(parts)
  near = difflib.get_close_matches(pattern.strip("/"), sorted(names), n=5, cutoff=0.5)
  roots = sorted({path.split("/")[0] for path in found}, key=natural_key)
  nearest = f"the nearest names are {_shorten(near)}; " if near else ""
  return (
    f"selector {pattern!r} matches no leaf; {nearest}"
    f"at the root there are {_shorten(roots, 20) or 'none'}"
  )


def _check_same_paths(name_a: str, a: list[str], name_b: str, b: list[str]) -> None:
  missing = sorted(set(a) - set(b), key=natural_key)
  extra = sorted(set(b) - set(a), key=natural_key)
  if missing or extra:
    raise ValueError(
      f"{name_a} and {name_b} differ in structure: only in {name_a}: "
      f"{_shorten(missing) or 'nothing'}; only in {name_b}: {_shorten(extra) or 'nothing'}"
    )


def _shorten(names: Sequence[str], limit: int = 10) -> str:
  """Joins the first names, and says how many more there are."""
  more = len(names) - limit
  return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


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
  return sorted(found, key=natural_key)


def _layer(stack: Tree, index: int, axis: int) -> Tree:
  def take(leaf):
    if isinstance(leaf, np.ndarray):
      return np.take(leaf, index, axis)
    return jax.lax.index_in_dim(leaf, index, axis, keepdims=False)

  return jax.tree.map(take, stack)


def _num_layers(name: str, stack: Tree, axis: int) -> int:
  sizes = {}
  for path, leaf in _flatten(stack)[0]:
    shape = np.shape(leaf)
    if not -len(shape) <= axis < len(shape):
      raise ValueError(f"{name}/{path} of shape {shape} has no axis {axis} to unstack")
    sizes[f"{name}/{path}".rstrip("/")] = shape[axis]
  if len(set(sizes.values())) != 1:
    listed = _shorten([f"{path}: {size}" for path, size in sizes.items()], 20)
    raise ValueError(
      f"leaves under {name!r} have different sizes on axis {axis}, the axis of the layers: {listed}"
    )
  return next(iter(sizes.values()))


def _stack(name: str, layers: Any, axis: int) -> Tree:
  if not isinstance(layers, Mapping) or set(layers) != {str(i) for i in range(len(layers))}:
    keys = _shorten(list(map(str, layers))) if isinstance(layers, Mapping) else type(layers)
    raise ValueError(f"{name!r} is not a dict of layers '0', '1', ... as from unstack: {keys}")
  layers = [layers[str(i)] for i in range(len(layers))]
  if not layers:
    raise ValueError(f"{name!r} has no layers")

  def describe(layer):
    return {path: (np.shape(x), getattr(x, "dtype", type(x))) for path, x in _flatten(layer)[0]}

  first = describe(layers[0])
  for i, layer in enumerate(layers):
    other = describe(layer)
    if other != first or jax.tree.structure(layer) != jax.tree.structure(layers[0]):
      wrong = sorted({path for path, _ in first.items() ^ other.items()}, key=natural_key)
      raise ValueError(
        f"{name}/{i} does not fit {name}/0 in structure, shape or dtype: {_shorten(wrong)}. "
        "Combine a partitioned tree before restacking it"
      )

  def join(*leaves):
    numpy = all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
    return (np if numpy else jnp).stack(leaves, axis)

  return jax.tree.map(join, *layers)


def _map_subtrees(function, tree: Tree, selector: str | Sequence[str]) -> Tree:
  """Replaces each subtree that a pattern names by `function(path, subtree)`."""
  patterns = [selector] if isinstance(selector, str) else list(selector)
  leaves = _flatten(tree)[0]
  targets = set()
  for pattern in patterns:
    if not isinstance(pattern, str):
      raise ValueError(f"stacked subtrees are selected by pattern, not by {pattern!r}")
    _match(leaves, pattern)
    for path, _ in leaves:
      parts = path.split("/")
      end = _match_end(parts, _parse(pattern))
      if end is not None:
        targets.add("/".join(parts[:end]))

  def is_target(keys, _):
    return join_path(keys) in targets

  def replace(keys, node):
    path = join_path(keys)
    return function(path, node) if path in targets else node

  return jax.tree_util.tree_map_with_path(replace, tree, is_leaf=is_target, is_leaf_takes_path=True)
