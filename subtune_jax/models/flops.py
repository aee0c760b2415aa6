"""Multiply-adds of a forward pass, counted in the traced program: nothing is compiled or computed.

Convolutions and matrix products count; what is elementwise, normalises or pools does not. Zeros of
the padding count, as they do in the literature's figures. One multiply-add is two FLOPs.
"""

from collections.abc import Callable, Iterator
import math
from typing import Any, NamedTuple

import jax

from subtune_jax.models import backbone


class Unit(NamedTuple):
  """A block of a backbone, or its head.

  Attributes:
    name: of the block, or "head".
    macs: multiply-adds of its forward pass for one image.
    parameters: their number.
  """

  name: str
  macs: int
  parameters: int


def count_macs(model: backbone.Backbone) -> dict[str, int]:
  """Returns the multiply-adds of each unit's forward pass for one image.

  Args:
    model: from `models.create`; images are squares of side `model.image_size`.

  Returns:
    Block name to multiply-adds, input to output, then "head".
  """
  return {unit.name: unit.macs for unit in units(model)}


def units(model: backbone.Backbone) -> Iterator[Unit]:
  """Yields each unit as it is counted, input to output; equal blocks are traced once.

  Args:
    model: see `count_macs`.
  """
  names = (*model.block_names, "head")
  x = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), model.dtype)
  seen: dict[Any, tuple[Any, Any]] = {}
  for name, stop in zip(names, (*names[1:], None), strict=True):
    module = name if name == "head" else backbone.block_module(model, name, False)
    key = repr(module), x.shape
    if key not in seen:  # the module is kept, so that no other has the addresses in its repr
      seen[key] = module, _trace(model, x, name, stop)
    x, macs, parameters = seen[key][1]
    yield Unit(name, macs, parameters)


def _trace(
  model: backbone.Backbone, x: jax.ShapeDtypeStruct, start: str, stop: str | None
) -> tuple[jax.ShapeDtypeStruct, int, int]:
  """Returns the unit's output as a shape, its multiply-adds and its number of parameters."""

  def run(key, x):
    return model.init_with_output(key, x, start=start, stop=stop)

  key = jax.eval_shape(lambda: jax.random.key(0))
  program, (y, variables) = jax.make_jaxpr(run, return_shape=True)(key, x)
  leaves = jax.tree.leaves(variables.get("params", {}))
  return y, _macs(program.jaxpr), sum(math.prod(leaf.shape) for leaf in leaves)


def count(function: Callable[..., Any], *arguments: Any) -> int:
  """Returns the multiply-adds of a function of arrays, or of their shapes."""
  return _macs(jax.make_jaxpr(function)(*arguments).jaxpr)


def _macs(jaxpr: Any) -> int:
  return sum(_macs_of_equation(equation) for equation in jaxpr.eqns)


def _macs_of_equation(equation: Any) -> int:
  """Counts one equation, and the programs inside of it.

  Raises:
    ValueError: a `while` loop that computes products: how often it runs is not known.
  """
  name, params = equation.primitive.name, equation.params
  if name == "conv_general_dilated":
    kernel = equation.invars[1].aval
    features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
    return equation.outvars[0].aval.size * kernel.size // features
  if name == "dot_general":
    (axes, _), _ = params["dimension_numbers"]
    sizes = equation.invars[0].aval.shape
    return equation.outvars[0].aval.size * math.prod(sizes[axis] for axis in axes)
  if name == "cond":
    platforms = params.get("branches_platforms")
    counts = [_macs(branch.jaxpr) for branch in params["branches"]]
    return counts[platforms.index(None)] if platforms else max(counts)
  total = sum(map(_macs, _programs(params)))
  if name == "while" and total:
    raise ValueError("a while loop with matrix products inside cannot be counted; use lax.scan")
  return total * params["length"] if name == "scan" else total


def _programs(params: dict[str, Any]) -> Iterator[Any]:
  """Yields the jaxprs among an equation's parameters."""
  for value in jax.tree.leaves(list(params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
    jaxpr = getattr(value, "jaxpr", value)
    if hasattr(jaxpr, "eqns"):
      yield jaxpr
