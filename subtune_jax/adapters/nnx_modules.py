"""Adapters on NNX models: modules get a class that runs their calls through their adapters.

The leaves are variables of the class `Adapter` at "adapters" in their module; those of the base
keep their paths and types, so `nnx.Param` selects what it selected before.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from subtune_jax.adapters import calls
from subtune_jax.adapters import layer as layer_lib
from subtune_jax.adapters import rule as rule_lib
from subtune_jax.adapters import sites as sites_lib

SCOPE = "adapters"


class Adapter(nnx.Variable):
  """A leaf of an adapter."""


def _modules(model: nnx.Module) -> list[tuple[str, nnx.Module]]:
  found = []
  for path, node in nnx.iter_graph(model):
    if isinstance(node, nnx.Module) and path:
      found.append(("/".join(map(str, path)), node))
  return found


def targets(
  model: nnx.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[rule_lib.Target]:
  """The modules of a model; shapes of what they read and give where a call shows them."""
  shapes = _shapes(model, args, kwargs) if args else {}
  return [_target(path, module, *shapes.get(path, (None, None)))
          for path, module in _modules(model)]  # fmt: skip


def _target(path: str, module: nnx.Module, x: Any, y: Any) -> rule_lib.Target:
  leaves = {
    name: tuple(value.shape) for name, value in vars(module).items() if isinstance(value, nnx.Param)
  }
  kind, geometry, refused = layer_lib.kind_of(type(module)), None, ""
  stack: tuple[int, ...] = ()
  if kind and kind.kernel in leaves:
    whole = leaves[kind.kernel]
    stack = whole[: len(whole) - _num_axes(module, whole)]
    leaves = {name: shape[len(stack) :] for name, shape in leaves.items()}
    try:
      geometry = kind.describe(module, leaves[kind.kernel], ())
    except (ValueError, AttributeError) as e:
      refused = str(e)
  elif layer_lib.norm_of(type(module)):
    stack = next((shape[:-1] for shape in leaves.values()), ())
    leaves = {name: shape[len(stack) :] for name, shape in leaves.items()}
  return rule_lib.Target(
    path, type(module), geometry, refused, tuple(sorted(leaves.items())), stack, x, y
  )


def _num_axes(module: Any, whole: tuple[int, ...]) -> int:
  """Axes of a layer's kernel by its fields; what is more is stacked."""
  if hasattr(module, "kernel_shape"):
    return len(module.kernel_shape)
  if isinstance(module, nnx.LinearGeneral):
    return len(module.batch_axis) + len(module.in_features) + len(module.out_features)
  return 2 if isinstance(module, nnx.Linear) else len(whole)


def _shapes(model: nnx.Module, args: Any, kwargs: Any) -> dict[str, Any]:
  """Module path -> shapes of its first argument and of its result, by tracing a call."""
  graphdef, state = nnx.split(model)
  found: dict[str, Any] = {}

  def record(state: Any, *args: Any) -> Any:
    traced = nnx.merge(graphdef, state)
    for path, module in _modules(traced):
      if callable(module):
        module.__class__ = _recording(type(module), path, found)
    return traced(*args, **kwargs)

  jax.eval_shape(record, state, *args)
  return found


def _recording(base: type, path: str, found: dict[str, Any]) -> type:
  def call(self, *args, **kwargs):
    y = base.__call__(self, *args, **kwargs)
    if args and hasattr(args[0], "shape"):
      found.setdefault(
        path, (tuple(args[0].shape), tuple(jnp.shape(y)) if hasattr(y, "shape") else None)
      )
    return y

  return type(base.__name__, (base,), {"__call__": call})


@functools.cache
def _adapted_class(base: type, site: sites_lib.Site) -> type:
  """The class of a module with adapters."""

  def call(self, *args, **kwargs):
    leaves = jax.tree.map(
      lambda leaf: leaf[...], nnx.to_pure_dict(nnx.state(self.adapters)), is_leaf=_is_variable
    )

    def own(name):
      value = getattr(self, name)
      return None if value is None else value[...]

    proceed = functools.partial(base.__call__, self)
    return calls.run(site, leaves, "__call__", self, own, proceed, args, kwargs, None)

  return type(base.__name__, (base,), {"__call__": call, "adapted": base})


def _is_variable(x: Any) -> bool:
  return isinstance(x, nnx.Variable)


def definition(model: nnx.Module, sites: Sequence[sites_lib.Site]) -> Any:
  """The graph of a copy of the model with adapters."""
  model = nnx.clone(model)
  tree = jax.eval_shape(lambda: sites_lib.init(sites, jax.random.key(0)))
  modules = dict(_modules(model))
  for site in sites:
    if any(getattr(rule, "dropout", 0) for rule in site.rules):
      raise ValueError(f"{site.path}: there is no dropout of adapters on NNX models; set it to 0")
    module = modules[site.path]
    setattr(module, SCOPE, nnx.Dict({
      name: nnx.Dict({leaf: Adapter(jnp.zeros(value.shape, value.dtype))
                      for leaf, value in leaves.items()})
      for name, leaves in tree.get(site.path, {}).items()
    }))  # fmt: skip
    module.__class__ = _adapted_class(type(module), site)
  return nnx.graphdef(model)


def apply(
  graphdef: Any, sites: Sequence[sites_lib.Site], variables: Any, tree: Mapping[str, Any],
  args: tuple[Any, ...], kwargs: Mapping[str, Any],
) -> Any:  # fmt: skip
  """Calls a copy of the model made of the graph, the base's state and the adapters' leaves."""
  del sites
  variables = jax.tree.map(lambda leaf: leaf, variables)  # variables of the trace that is open
  replaced_base = replaced(variables, {p: own.get(sites_lib.LEAVES, {}) for p, own in tree.items()})
  flat = dict(nnx.to_flat_state(replaced_base))
  for path, own in tree.items():
    for name, leaves in own.items():
      if name != sites_lib.LEAVES:
        for leaf, value in leaves.items():
          flat[(*_keys(path), SCOPE, name, leaf)] = Adapter(value)
  return nnx.merge(graphdef, nnx.from_flat_state(flat))(*args, **kwargs)


def _keys(path: str) -> tuple[Any, ...]:
  return tuple(int(part) if part.isdigit() else part for part in path.split("/"))


def leaves_at(state: Any, path: str, names: Sequence[str]) -> dict[str, jax.Array]:
  """These parameters of a module, those that are there."""
  flat = dict(nnx.to_flat_state(state))
  keys = {name: (*_keys(path), name) for name in names}
  return {name: _value(flat[key]) for name, key in keys.items() if key in flat}


def _value(leaf: Any) -> jax.Array:
  return leaf[...] if isinstance(leaf, nnx.Variable) else leaf


def replaced(state: Any, leaves: Mapping[str, Mapping[str, jax.Array]]) -> Any:
  """A state with other leaves: module path -> name -> leaf."""
  flat = dict(nnx.to_flat_state(state))
  for path, own in leaves.items():
    for name, value in own.items():
      key = (*_keys(path), name)
      old = flat[key]
      flat[key] = old.replace(value) if isinstance(old, nnx.Variable) else value
  return nnx.from_flat_state(flat)
