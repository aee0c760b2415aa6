"""Runs one call of a module through its adapters, for Linen and for NNX."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax

from subtune_jax.adapters import layer as layer_lib
from subtune_jax.adapters import rule as rule_lib
from subtune_jax.adapters import sites as sites_lib


def handles(target: rule_lib.Target, method: str) -> bool:
  """Whether adapters at a module act in this method of it."""
  return method in _methods(target)


def _methods(target: rule_lib.Target) -> tuple[str, ...]:
  kind, norm = layer_lib.kind_of(target.module), layer_lib.norm_of(target.module)
  if kind:
    return (kind.method,)
  return tuple(name for name, _ in norm.methods) if norm else ("__call__",)


def run(
  site: sites_lib.Site,
  leaves: Mapping[str, Any],
  method: str,
  module: Any,
  own: Callable[[str], Any],
  proceed: Callable[..., Any],
  args: tuple[Any, ...],
  kwargs: Mapping[str, Any],
  key: Callable[[], jax.Array] | None,
) -> Any:
  """The method's result with the adapters, the innermost first.

  Args:
    site: of the module.
    leaves: of its adapters, by name.
    method: that was called.
    module: it.
    own: name -> a parameter of the module, or None.
    proceed: the method.
    args: of the call.
    kwargs: of the call.
    key: see `rule.Call`.
  """

  norm = layer_lib.norm_of(site.target.module)
  if norm:
    (rule,) = site.rules
    call = rule_lib.Call(None, proceed)
    call.affine = functools.partial(
      dict(norm.methods)[method], functools.partial(proceed, **kwargs), args
    )
    return rule(site.target, leaves[rule.name], call)

  def through(x: Any) -> Any:
    return proceed(x, *args[1:], **kwargs)

  for rule in site.rules:
    call = _call(site.target, method, module, own, through, args, key)
    through = functools.partial(_step, site.target, rule, leaves.get(rule.name, {}), call)
  return through(args[0])


def _step(
  target: rule_lib.Target, rule: rule_lib.Rule, leaves: Any, call: rule_lib.Call, x: Any
) -> Any:
  return rule(target, leaves, dataclasses.replace(call, x=x))


def _call(
  target: rule_lib.Target, method: str, module: Any, own: Callable[[str], Any],
  through: Callable[[Any], Any], args: tuple[Any, ...], key: Any,
) -> rule_lib.Call:  # fmt: skip
  call = rule_lib.Call(args[0], through, key=key)
  kind = layer_lib.kind_of(target.module)
  if kind is None or method != kind.method:
    return call
  call.kernel = own(kind.kernel)
  rest = args[1:]
  if method == "__call__":
    call.bias = own(kind.bias) if target.bias else None
  else:
    call.gain = args[2] if len(args) > 2 else None
  call.run = lambda x, kernel: kind.run(module, x, kernel, rest)
  return call
