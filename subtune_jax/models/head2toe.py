"""Head2Toe's network: a linear head on chosen outputs of all units (arXiv 2201.03529).

Every output is pooled to about `target_size` numbers; the kept ones of each unit are divided by
their length, image by image, and stand side by side for the head. The one block is "features"; the
backbone inside is frozen, and the leaf "index" says which features are kept.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.data import choices
from subtune_jax.models import backbone

UNITS = ("blocks", "layers")
LARGEST_TARGET = 10_000

# (name, its number of features) of every output, input to output.
Sources = tuple[tuple[str, int], ...]


class Head2Toe(backbone.Backbone, kw_only=True):
  """A frozen backbone, and a linear head on features of all its units.

  Attributes:
    base: the backbone; its number of classes is not used.
    target_size: about how many features an output is pooled to.
    units: "blocks": the outputs of the blocks; "layers": of the modules in a block as well.
    sources: what there is at `image_size` (`sources_of`).
    num_kept: features that the head reads, at most.
  """

  base: Any
  target_size: int
  units: str
  sources: Sources
  num_kept: int

  @property
  def block_names(self) -> tuple[str, ...]:
    return ("features",)

  @property
  def num_features(self) -> int:
    """Of all outputs."""
    return sum(size for _, size in self.sources)

  def make_block(self, block: str, name: str, use_batch_statistics: bool) -> nn.Module:
    """See `Backbone.make_block`; BatchNorm runs on its running statistics."""
    del block, use_batch_statistics
    return _Kept(self.base, self.target_size, self.units, self.sources, self.num_kept, name=name)


class _Kept(nn.Module):
  """[n, h, w, 3] to the kept features, [n, num_kept]; 0 where fewer are kept."""

  base: Any
  target_size: int
  units: str
  sources: Sources
  num_kept: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    base = self.base.clone(name="base", parent=self)
    depth = len(self.path) + 1
    found = outputs(base, functools.partial(base, x, stop="head"), self.units, depth)
    features, sources = pooled(found, self.target_size)
    if sources != self.sources:
      raise ValueError(
        f"images of {x.shape[1]} x {x.shape[2]} px give other features than those that were chosen "
        f"from ({_total(sources):,}, not {_total(self.sources):,}); use images of the same size"
      )
    total = _total(self.sources)
    index = self.param("index", lambda key: jnp.full((self.num_kept,), total, jnp.int32))
    return kept(features, index, sources)


def wrap(
  model: Any, variables: Mapping[str, Any], target_size: int, units: str, fraction: float
) -> tuple[Head2Toe, dict[str, Any]]:
  """(the network, its variables) of a backbone: nothing is kept yet, and the head is zero.

  Args:
    model: the backbone.
    variables: its variables.
    target_size: see `Head2Toe`.
    units: see `Head2Toe`.
    fraction: the largest share of all features that is kept.

  Raises:
    ValueError: a target size, units or a fraction that is not allowed.
  """
  choices.check("head2toe.units", units, UNITS)
  if not 1 <= target_size <= LARGEST_TARGET:
    raise ValueError(f"head2toe.target_size is {target_size}; allowed: 1 to {LARGEST_TARGET:,}")
  if not 0 < fraction <= 1:
    raise ValueError(f"head2toe.fractions holds {fraction}; each lies in (0, 1]")
  sources = sources_of(model, variables, target_size, units)
  num_kept = count(fraction, _total(sources))
  own = Head2Toe(
    base=model.clone(parent=None), target_size=target_size, units=units, sources=sources,
    num_kept=num_kept, num_classes=model.num_classes, image_size=model.image_size,
    dtype=model.dtype,
  )  # fmt: skip
  rest = {name: leaf for name, leaf in variables["params"].items() if name != "head"}
  head = {"kernel": jnp.zeros((num_kept, model.num_classes)), "bias": jnp.zeros(model.num_classes)}
  index = jnp.full((num_kept,), _total(sources), jnp.int32)
  params = {"features": {"base": rest, "index": index}, "head": head}
  stats = variables.get("batch_stats", {})
  return own, {"params": params, "batch_stats": {"features": {"base": stats}} if stats else {}}


def count(fraction: float, total: int) -> int:
  """How many features a fraction of them is; at least one."""
  return max(1, math.floor(fraction * total))


def base_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
  """The variables of the backbone inside, without a head."""
  stats = variables.get("batch_stats", {}).get("features", {}).get("base", {})
  return {"params": variables["params"]["features"]["base"], "batch_stats": stats}


def sources_of(
  model: Any, variables: Mapping[str, Any], target_size: int, units: str = "blocks"
) -> Sources:
  """What there is at the model's `image_size`: the names and sizes of the pooled outputs."""
  found: Sources = ()

  def look(variables, x):
    nonlocal found
    features, found = all_features(model, variables, x, target_size, units)
    return features

  images = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
  jax.eval_shape(look, {"batch_stats": {}, **variables}, images)
  return found


def all_features(
  model: Any, variables: Mapping[str, Any], x: jax.Array, target_size: int, units: str
) -> tuple[jax.Array, Sources]:
  """(all features [n, N] with every unit's at length 1, what they are) of normalised images."""
  run = functools.partial(model.apply, variables, x, stop="head")
  features, sources = pooled(outputs(model, run, units, 0), target_size)
  return kept(features, jnp.arange(features.shape[1]), sources), sources


def outputs(
  model: Any, run: Callable[[], Any], units: str, depth: int
) -> list[tuple[str, jax.Array]]:
  """(name, output) of every unit while `run` runs the model, in the order in which they are made.

  Args:
    model: the backbone.
    run: applies it.
    units: see `Head2Toe`.
    depth: of the backbone's path.
  """
  found: list[tuple[str, jax.Array]] = []
  names = {tuple(name.split("/")) for name in model.block_names}
  inside = names if units == "layers" else frozenset()

  def record(proceed, args, kwargs, context):
    y = proceed(*args, **kwargs)
    path = context.module.path[depth:]
    if context.method_name == "__call__" and (path in names or path[:-1] in inside):
      found.append(("/".join(path), y))
    return y

  with nn.intercept_methods(record):
    run()
  return found


def pooled(found: Sequence[tuple[str, jax.Array]], target_size: int) -> tuple[jax.Array, Sources]:
  """All outputs pooled and side by side [n, N] float32, and what they are."""
  parts = [(name, pool(y, target_size)) for name, y in found]
  sources = tuple((name, part.shape[1]) for name, part in parts)
  return jnp.concatenate([part for _, part in parts], axis=1), sources


def pool(y: jax.Array, target_size: int) -> jax.Array:
  """One output as about `target_size` features, [n, f] float32, as the released code pools.

  Maps are averaged over square windows, tokens over runs of them; what fills no window is not
  read. Unlike there, an output with fewer positions than are asked for is taken whole, not
  averaged.

  Args:
    y: [n, h, w, c], [n, tokens, c] or [n, c], which stays as it is.
    target_size: of f.
  """
  y = y.astype(jnp.float32)
  if y.ndim == 2:
    return y
  channels, axes = y.shape[-1], tuple(range(1, y.ndim - 1))
  if channels >= target_size:
    return y.mean(axis=axes)
  if y.ndim == 4:
    window = max(1, y.shape[2] // math.isqrt(target_size // channels))
  else:
    window = max(1, int(y.shape[1] / (target_size / channels)))
  for axis in axes:
    if y.shape[axis] >= window:
      groups = y.shape[axis] // window
      y = jax.lax.slice_in_dim(y, 0, groups * window, axis=axis)
      shape = (*y.shape[:axis], groups, window, *y.shape[axis + 1 :])
      y = y.reshape(shape).mean(axis=axis + 1)
    else:
      y = y.mean(axis=axis, keepdims=True)
  return y.reshape(len(y), -1)


def kept(features: jax.Array, index: jax.Array, sources: Sources) -> jax.Array:
  """The features at `index`, those of each unit divided by their length: [n, len(index)].

  Args:
    features: [n, N].
    index: [K] positions; N stands for none, and gives 0.
    sources: of the features.
  """
  own = jnp.take(features, index, axis=1, mode="fill", fill_value=0)
  return at_length_one(own, index, sources)


def at_length_one(own: jax.Array, index: jax.Array, sources: Sources) -> jax.Array:
  """Features [n, K] at `index`, those of each unit divided by their length; see `kept`."""
  ends = np.cumsum([size for _, size in sources])
  unit = jnp.searchsorted(jnp.asarray(ends), index, side="right")
  member = jax.nn.one_hot(unit, len(sources) + 1, dtype=own.dtype)
  squares = jnp.dot(own * own, member, precision=jax.lax.Precision.HIGHEST)
  inverse = jnp.where(squares > 0, jax.lax.rsqrt(jnp.where(squares > 0, squares, 1)), 0)
  return own * inverse[:, unit]


def _total(sources: Sources) -> int:
  return sum(size for _, size in sources)
