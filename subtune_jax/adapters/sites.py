"""Which adapters sit at which module, and the tree of their leaves."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from subtune_jax.adapters import rule as rule_lib
from subtune_jax.masks import tree as tree_lib

# Module path -> name of the adapter -> leaves. A pytree of plain dicts.
Tree = dict[str, dict[str, dict[str, jax.Array]]]
LEAVES = "leaves"  # in place of an adapter's name: leaves of the module itself, put in their place


@dataclasses.dataclass(frozen=True)
class Site:
  """A module with its adapters, the innermost first."""

  target: rule_lib.Target
  rules: tuple[rule_lib.Rule, ...]

  @property
  def path(self) -> str:
    """Of the module."""
    return self.target.path


def place(targets: Sequence[rule_lib.Target], rules: Sequence[rule_lib.Rule]) -> tuple[Site, ...]:
  """The sites of the rules.

  Raises:
    ValueError: a rule selects nothing, or two of one name meet at a module.
  """
  found: dict[str, list[rule_lib.Rule]] = {}
  by_path = {target.path: target for target in targets}
  for given in rules:
    for target, rule in given.place(rule_lib.chosen(given, targets)):
      own = found.setdefault(target.path, [])
      if rule.name in [other.name for other in own]:
        raise ValueError(
          f"two adapters of the name {rule.name!r} at {target.path}; give one of them another name="
        )
      if own and target.geometry is None and not rule.whole:
        raise ValueError(f"two adapters, {own[0].name!r} and {rule.name!r}, at {target.path}")
      own.append(rule)
  paths = sorted(found, key=tree_lib.natural_key)
  return tuple(Site(by_path[path], tuple(found[path])) for path in paths)


def init(sites: Sequence[Site], key: jax.Array) -> Tree:
  """Fresh leaves; stacked layers have their own along the leading axes."""
  tree: Tree = {}
  for i, site in enumerate(sites):
    for j, rule in enumerate(site.rules):
      if rule.leafless:
        continue
      own = jax.random.fold_in(jax.random.fold_in(key, i), j)
      tree.setdefault(site.path, {})[rule.name] = _stacked(rule, site.target, own)
  return tree


def _stacked(rule: rule_lib.Rule, target: rule_lib.Target, key: jax.Array) -> dict[str, jax.Array]:
  if not target.stack:
    return rule.init(target, key)
  number = 1
  for size in target.stack:
    number *= size
  leaves = jax.vmap(lambda k: rule.init(target, k))(jax.random.split(key, number))
  return jax.tree.map(lambda leaf: leaf.reshape(target.stack + leaf.shape[1:]), leaves)


def over_stack(target: rule_lib.Target, function: Any) -> Any:
  """A function of the leaves of one layer as one of those of all stacked layers."""
  for _ in target.stack:
    function = jax.vmap(function)
  return function


def check(sites: Sequence[Site], tree: Mapping[str, Any]) -> None:
  """Raises ValueError unless a tree has the leaves of these sites, and no others."""
  wanted = {f"{site.path}/{rule.name}" for site in sites for rule in site.rules
            if not rule.leafless}  # fmt: skip
  given = {f"{path}/{name}" for path, own in tree.items() for name in own if name != LEAVES}
  tree_lib.check_same_paths("this model's adapters", sorted(wanted), "the tree", sorted(given))


def is_constant(sites: Sequence[Site], path: str, name: str, leaf: str) -> bool:
  """Whether an adapter's leaf is never trained."""
  for site in sites:
    if site.path == path:
      return any(rule.name == name and leaf in rule.constants for rule in site.rules)
  return False


def changed(
  site: Site, leaves: Mapping[str, Any], own: Mapping[str, jax.Array], back: bool = False
) -> dict[str, jax.Array]:
  """A module's parameters with its adapters merged in, or with `back` taken out again."""
  params = dict(own)
  for rule in reversed(site.rules) if back else site.rules:
    step = rule.unmerge if back else rule.merge
    function = over_stack(site.target, lambda a, b, step=step: step(site.target, a, b))
    params |= function(dict(leaves[rule.name]), params)
  return {name: jnp.asarray(leaf) for name, leaf in params.items()}
