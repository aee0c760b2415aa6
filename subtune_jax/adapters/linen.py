"""Adapters on Linen models: their leaves lie in the modules' own scopes, calls are intercepted.

A leaf that lies in the scope of its module follows it through `nn.scan`, `nn.remat` and `nn.vmap`
like the module's own parameters; no source of the model is changed.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

from flax import linen as nn
from flax.core import meta
import jax
import jax.numpy as jnp

from subtune_jax.adapters import calls
from subtune_jax.adapters import layer as layer_lib
from subtune_jax.adapters import rule as rule_lib
from subtune_jax.adapters import sites as sites_lib

SCOPE = "adapters"  # name of the adapters' leaves in a module's scope


def join(params: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
  """Parameters with adapters' leaves in them, at "adapters" beside those of each module.

  Raises:
    ValueError: a module that is not there, or that has a parameter of that name.
  """
  joined = _copy(params)
  for path, own in tree.items():
    node = joined
    for part in path.split("/") if path else ():
      node = node.setdefault(part, {})
    adapters = {name: leaves for name, leaves in own.items() if name != sites_lib.LEAVES}
    if adapters and SCOPE in node:
      raise ValueError(f"{path} has a parameter {SCOPE!r} of its own; rename it")
    if adapters:
      node[SCOPE] = adapters
    node.update(own.get(sites_lib.LEAVES, {}))
  return joined


def split(joined: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """The inverse of `join`: (parameters, adapters' leaves)."""
  tree: dict[str, Any] = {}

  def walk(node: Any, path: tuple[str, ...]) -> Any:
    if not isinstance(node, Mapping):
      return node
    if SCOPE in node:
      tree["/".join(path)] = node[SCOPE]
    return {name: walk(own, (*path, name)) for name, own in node.items() if name != SCOPE}

  return walk(joined, ()), tree


def _copy(node: Any) -> Any:
  return {k: _copy(v) for k, v in node.items()} if isinstance(node, Mapping) else node


def targets(
  model: nn.Module, variables: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[rule_lib.Target]:
  """Every module that a call of the model runs, in the order of their first calls."""
  found: dict[str, rule_lib.Target] = {}
  stored = meta.unbox(variables["params"])

  def record(proceed, args, kwargs, context):
    y = proceed(*args, **kwargs)
    module, path = context.module, "/".join(context.module.path)
    own = _seen(module, context.method_name, args, y, _node(stored, module.path))
    found[path] = _joined(found[path], own) if path in found else own
    return y

  with nn.intercept_methods(record):
    jax.eval_shape(functools.partial(model.apply, **kwargs), variables, *args)
  return [target for path, target in found.items() if path]


def _node(tree: Any, path: Sequence[str]) -> Mapping[str, Any]:
  for part in path:
    tree = tree.get(part, {}) if isinstance(tree, Mapping) else {}
  return tree if isinstance(tree, Mapping) else {}


def _seen(
  module: nn.Module, method: str, args: tuple[Any, ...], y: Any, stored: Mapping[str, Any]
) -> rule_lib.Target:
  """What one call shows of a module."""
  here = meta.unbox(module.variables.get("params", {}))
  leaves = {k: tuple(jnp.shape(v)) for k, v in here.items() if not isinstance(v, Mapping)}
  stack: tuple[int, ...] = ()
  refused = ""
  for name, shape in leaves.items():
    whole = tuple(jnp.shape(stored[name])) if name in stored else shape
    stack = whole[: len(whole) - len(shape)]
    if stack + shape != whole:
      refused = f"{name} is stacked along another axis than the first: {whole} of {shape}"
  kind, geometry = layer_lib.kind_of(type(module)), None
  if kind and method == kind.method and kind.kernel in leaves and not refused:
    try:
      geometry = kind.describe(module, leaves[kind.kernel], args[1:])
    except ValueError as e:
      refused = str(e)
  is_call = method == "__call__"
  return rule_lib.Target(
    "/".join(module.path), type(module), geometry, refused, tuple(sorted(leaves.items())), stack,
    _shape(args[0]) if is_call and args else None, _shape(y) if is_call else None,
  )  # fmt: skip


def _shape(x: Any) -> tuple[int, ...] | None:
  return tuple(x.shape) if hasattr(x, "shape") else None


def _joined(a: rule_lib.Target, b: rule_lib.Target) -> rule_lib.Target:
  """What two calls of one module show: the first that shows something counts."""
  return rule_lib.Target(
    a.path, a.module, a.geometry or b.geometry, a.refused or b.refused, a.leaves or b.leaves,
    a.stack or b.stack, a.x or b.x, a.y or b.y,
  )  # fmt: skip


def interceptor(
  sites: Sequence[sites_lib.Site], prefix: tuple[str, ...] = (), depth: int = 0
) -> Callable[..., Any]:
  """For `nn.intercept_methods`: calls run through the adapters whose leaves lie in their scopes.

  Args:
    sites: of the model.
    prefix: path, in the model, of the module that is run, when a part is run on its own.
    depth: leading components of paths to leave out before `prefix`.
  """
  by_path = {site.path: site for site in sites}

  def intercept(proceed, args, kwargs, context):
    module = context.module
    path = (*prefix, *module.path[depth:])
    site = by_path.get("/".join(path))
    if site is None or not calls.handles(site.target, context.method_name):
      return proceed(*args, **kwargs)
    leaves = module.get_variable("params", SCOPE, {})
    if not all(rule.leafless or rule.name in leaves for rule in site.rules):
      return proceed(*args, **kwargs)
    key = (lambda: module.make_rng("dropout")) if module.has_rng("dropout") else None
    own = functools.partial(module.get_variable, "params")
    return calls.run(
      site, meta.unbox(leaves), context.method_name, module, own, proceed, args, kwargs, key
    )

  return intercept


def apply(
  model: nn.Module, sites: Sequence[sites_lib.Site], variables: Mapping[str, Any],
  tree: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any],
) -> Any:  # fmt: skip
  """`model.apply` with the adapters."""
  joined = {**variables, "params": join(variables["params"], tree)}
  with nn.intercept_methods(interceptor(sites)):
    return model.apply(joined, *args, **kwargs)


def leaves_at(params: Mapping[str, Any], path: str, names: Sequence[str]) -> dict[str, jax.Array]:
  """These parameters of a module, those that are there."""
  node = _node(params, path.split("/"))
  return {name: meta.unbox(node[name]) for name in names if name in node}


def replaced(
  params: Mapping[str, Any], leaves: Mapping[str, Mapping[str, jax.Array]]
) -> dict[str, Any]:
  """Parameters with other leaves: module path -> name -> leaf."""
  new = _copy(params)
  for path, own in leaves.items():
    node = new
    for part in path.split("/"):
      node = node.setdefault(part, {})
    for name, leaf in own.items():
      old = node.get(name)
      node[name] = old.replace_boxed(leaf) if isinstance(old, meta.AxisMetadata) else leaf
  return new
