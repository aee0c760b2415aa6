"""A model with adapters: how it is called, labelled, merged."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp

from subtune_jax import masks
from subtune_jax.adapters import linen, nnx_modules
from subtune_jax.adapters import lora as lora_lib
from subtune_jax.adapters import rule as rule_lib
from subtune_jax.adapters import sites as sites_lib
from subtune_jax.masks import tree as tree_lib

ADAPTER = "adapter"  # label of the leaves that adapters add and train
BASE, TREE = "base", "adapters"  # the two halves of a joint tree
Tree = sites_lib.Tree


@dataclasses.dataclass(frozen=True)
class Adapted:
  """A model and where its adapters sit: static, hashable, without parameters.

  Attributes:
    model: a Linen module, or the `nnx.GraphDef` of an NNX one.
    sites: modules with adapters.
  """

  model: Any
  sites: tuple[sites_lib.Site, ...]

  def apply(self, variables: Any, tree: Tree, *args: Any, **kwargs: Any) -> Any:
    """Calls the model with its adapters.

    Args:
      variables: of the base: {"params": ..., ...} of Linen, the `nnx.State` of NNX.
      tree: leaves of the adapters; those of the module itself that are in it ("leaves", such as a
        task's own head) are put in the place of the base's.
      *args: of the model.
      **kwargs: of the model, for Linen those of `Module.apply` too.
    """
    sites_lib.check(self.sites, tree)
    backend = linen if isinstance(self.model, nn.Module) else nnx_modules
    return backend.apply(self.model, self.sites, variables, tree, args, kwargs)

  def apply_each(
    self, variables: Any, trees: Tree, index: jax.Array, x: jax.Array, **kwargs: Any
  ) -> Any:
    """Calls the model on a batch in which every example has its own adapters and head.

    Args:
      variables: of the base; no collection may be mutable.
      trees: of `stack`.
      index: [n] integers, which of them each example takes.
      x: [n, ...].
      **kwargs: as those of `apply`.
    """

    def one(own: jax.Array, example: jax.Array) -> Any:
      tree = jax.tree.map(lambda leaf: leaf[own], trees)
      y = self.apply(variables, tree, example[None], **kwargs)
      return jax.tree.map(lambda leaf: leaf[0], y)

    return jax.vmap(one)(index, x)

  def labels(
    self, params: Any, tree: Tree, rules: Mapping[str, masks.Selector] | None = None
  ) -> dict[str, Any]:
    """Labels of the joint tree {"base": params, "adapters": tree}, for `masks` and optax.

    Leaves of adapters are "adapter", constants "frozen", those of the base by `rules`, the rest
    "frozen": SubTuning of a set beside adapters is a rule for that set.

    Args:
      params: of the base: Linen's "params", an `nnx.State`.
      tree: leaves of the adapters.
      rules: label -> selector of leaves of the base, as of `masks.label`.

    Errors: see `masks.label`.
    """
    base = masks.label(params, rules or {})
    added = {
      path: {
        name: {leaf: self._label(path, name, leaf) for leaf in leaves}
        for name, leaves in own.items()
      }
      for path, own in tree.items()
    }
    return {BASE: base, TREE: added}

  def _label(self, path: str, name: str, leaf: str) -> str:
    constant = sites_lib.is_constant(self.sites, path, name, leaf)
    return masks.FROZEN if constant else ADAPTER

  def merge(self, params: Any, tree: Tree) -> Any:
    """The base's parameters with the adapters in them: the model alone then gives their results.

    Raises:
      ValueError: adapters that merge into no parameter, all of them.
    """
    self.check_merges()
    return self._changed(params, tree, back=False)

  def unmerge(self, params: Any, tree: Tree) -> Any:
    """The inverse of `merge`, to rounding.

    Raises:
      ValueError: adapters that cannot be taken out again.
    """
    self.check_merges()
    return self._changed(params, tree, back=True)

  def check_merges(self) -> None:
    """Raises ValueError, naming them, if adapters merge into no parameter."""
    found = []
    for site in self.sites:
      found += [
        f"{rule.name} at {site.path}" for rule in site.rules if not rule.can_merge(site.target)
      ]
    if found:
      raise ValueError(
        f"merging is not exact: {tree_lib.shorten(found)}; run them beside the parameters"
      )

  def _changed(self, params: Any, tree: Tree, back: bool) -> Any:
    sites_lib.check(self.sites, tree)
    backend = linen if isinstance(self.model, nn.Module) else nnx_modules
    if not back:
      params = backend.replaced(
        params, {p: own.get(sites_lib.LEAVES, {}) for p, own in tree.items()}
      )
    new = {}
    for site in self.sites:
      own = backend.leaves_at(params, site.path, [name for name, _ in site.target.leaves])
      new[site.path] = sites_lib.changed(site, tree.get(site.path, {}), own, back)
    return backend.replaced(params, new)


def add(
  model: nn.Module | nnx.Module,
  variables: Any,
  rules: rule_lib.Rule | Sequence[rule_lib.Rule],
  key: jax.Array,
  *args: Any,
  **kwargs: Any,
) -> tuple[Adapted, Tree]:
  """Puts fresh adapters on a model; its parameters stay a tree of their own, unchanged.

  Args:
    model: a Linen or an NNX module. An NNX module is copied; `Adapted.model` is a graph
      definition, and its variables are `nnx.state(model)`.
    variables: {"params": ..., ...} of a Linen model; `nnx.state(model)` or None of an NNX one.
    rules: which adapters go where; where several meet, the first is the innermost.
    key: of their initialisation.
    *args: of a call of the model, or their shapes: it is traced, not run.
    **kwargs: of that call.

  Returns:
    The model with adapters, and the tree of their leaves: path -> name -> leaves.

  Raises:
    ValueError: a selector that matches nothing, with the nearest names; adapters for modules that
      take none; fields that do not fit.
  """
  rules = (rules,) if isinstance(rules, rule_lib.Rule) else tuple(rules)
  if not rules:
    raise ValueError("rules is empty; give at least one, such as adapters.LoRA(rank=8)")
  if isinstance(model, nnx.Module):
    sites = sites_lib.place(nnx_modules.targets(model, args, kwargs), rules)
    made: Any = nnx_modules.definition(model, sites)
  else:
    sites = sites_lib.place(linen.targets(model, variables, args, kwargs), rules)
    made = model
  return Adapted(made, sites), sites_lib.init(sites, key)


def stack(trees: Sequence[Tree]) -> Tree:
  """Adapters of several tasks along a new first axis, for `Adapted.apply_each`.

  Raises:
    ValueError: trees of other structure or shapes.
  """
  shapes = [jax.tree.map(jnp.shape, tree) for tree in trees]
  for i, own in enumerate(shapes):
    if own != shapes[0]:
      raise ValueError(
        f"tree {i} has other leaves or shapes than tree 0; stack adapters of one kind"
      )
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def with_leaves(tree: Tree, leaves: Mapping[str, Mapping[str, jax.Array]]) -> Tree:
  """A tree that also holds leaves of modules themselves, such as the head of a task.

  Args:
    tree: of adapters.
    leaves: module path -> name -> leaf.
  """
  new = {path: dict(own) for path, own in tree.items()}
  for path, own in leaves.items():
    new.setdefault(path, {})[sites_lib.LEAVES] = dict(own)
  return new


def combine(adapted: Adapted, trees: Sequence[Tree], weights: Sequence[float]) -> Tree:
  """LoRA adapters that add the weighted sum of what those of the trees add, by their summed rank.

  Raises:
    ValueError: adapters that are no LoRA, or a number of weights other than that of the trees.
  """
  if len(trees) != len(weights) or not trees:
    raise ValueError(f"{len(trees)} trees and {len(weights)} weights; give one weight for each")
  for tree in trees:
    sites_lib.check(adapted.sites, tree)
  combined: Tree = {}
  for site in adapted.sites:
    combined[site.path] = {}
    for rule in site.rules:
      if type(rule) is not lora_lib.LoRA:
        raise ValueError(f"{rule.name} at {site.path}: sums are exact for LoRA alone")
      geometry = site.target.layer
      num_batch = len(site.target.stack) + len(geometry.batch)
      groups = geometry.groups if rule.by_block(geometry) else 1
      own = [tree[site.path][rule.name] for tree in trees]
      combined[site.path][rule.name] = lora_lib.combine(own, list(weights), num_batch, groups)
  return combined
