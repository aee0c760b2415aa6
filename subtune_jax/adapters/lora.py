"""LoRA: a trained product of two small matrices beside a frozen kernel."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from subtune_jax.adapters import layer as layer_lib
from subtune_jax.adapters import rule as rule_lib

GROUPED = ("shared", "peft")
CONSTANTS = frozenset({"scaling"})  # leaves of adapters that never train


@dataclasses.dataclass(frozen=True)
class LoRA(rule_lib.Rule):
  """y = W x + scaling B A x (Hu et al. 2021, arXiv 2106.09685, section 4.1, equation 3).

  A starts as torch's linear layers do, U(-1/sqrt(inputs), 1/sqrt(inputs)), B at zero, as in the
  authors' and in PEFT's code; `scaling` is alpha / rank, or alpha / sqrt(rank) with `rslora`
  (Kalajdzievski 2023, arXiv 2312.03732). It is a leaf that is never trained, so that adapters of
  other strength use the same program.

  A is [*inputs, rank] and B [rank, *outputs] by the axes of the layer's kernel, whatever its shape;
  of a convolution A is a kernel [*window, channels in, rank] with the layer's stride and padding, B
  [rank, channels out].

  Attributes:
    rank: of the product.
    alpha: see above.
    rslora: see above.
    dropout: share of the inputs of A that are dropped when a key "dropout" is there.
    rank_pattern: selector of modules -> rank; the first that matches counts.
    alpha_pattern: selector of modules -> alpha.
    grouped: of convolutions in groups, depthwise ones included. "shared": the kernel [*window,
      channels in / groups, channels out] gets a product of that rank, A is one for all groups.
      "peft": PEFT's form: A reads all channels, and each group of outputs has a part of B and
      rank / groups numbers to itself. The rank must be a multiple of the groups, and it merges into
      no kernel.
  """

  name: str = "lora"
  rank: int = 8
  alpha: float = 8.0
  rslora: bool = False
  dropout: float = 0.0
  rank_pattern: Any = ()
  alpha_pattern: Any = ()
  grouped: str = "shared"

  constants: ClassVar[frozenset[str]] = CONSTANTS
  merges: ClassVar[bool] = True

  def __post_init__(self) -> None:
    super().__post_init__()
    for field in ("rank_pattern", "alpha_pattern"):
      object.__setattr__(self, field, rule_lib.as_pairs(getattr(self, field)))
    for rank in (self.rank, *(rank for _, rank in self.rank_pattern)):
      if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank is {rank!r}; it must be an integer of at least 1")
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout is {self.dropout}; it must lie in [0, 1)")
    if self.grouped not in GROUPED:
      raise ValueError(f"grouped is {self.grouped!r}; allowed: {', '.join(map(repr, GROUPED))}")

  def takes(self, target: rule_lib.Target) -> bool:
    """Linear layers."""
    return target.geometry is not None or bool(target.refused)

  def check(self, targets: list[rule_lib.Target]) -> None:
    """Every pattern must match one of the modules, and ranks must fit the groups."""
    for patterns in (self.rank_pattern, self.alpha_pattern):
      for pattern, _ in patterns:
        rule_lib.matched(targets, pattern)
    for target in targets:
      groups, rank = target.layer.groups, self.rank_of(target)
      if self.grouped == "peft" and rank % groups:
        raise ValueError(
          f"{self.name} at {target.path}: rank {rank} is no multiple of the {groups} groups of the "
          "convolution; give another rank (rank_pattern), or grouped='shared'"
        )

  def rank_of(self, target: rule_lib.Target) -> int:
    """The rank at a module."""
    return rule_lib.pattern_value(target.path, self.rank_pattern, self.rank)

  def scaling_of(self, target: rule_lib.Target) -> float:
    """The scaling at a module."""
    alpha = rule_lib.pattern_value(target.path, self.alpha_pattern, self.alpha)
    rank = self.rank_of(target)
    return alpha / rank**0.5 if self.rslora else alpha / rank

  def init(self, target: rule_lib.Target, key: jax.Array) -> dict[str, jax.Array]:
    """A, B and the scaling."""
    geometry, rank = target.layer, self.rank_of(target)
    batch, inputs = geometry.sizes(geometry.batch), geometry.sizes(geometry.inputs)
    outputs, fan_in, inner = geometry.sizes(geometry.outputs), geometry.fan_in, rank
    if self.by_block(geometry):
      inputs = (*inputs[:-1], inputs[-1] * geometry.groups)
      fan_in, inner = fan_in * geometry.groups, rank // geometry.groups
    return {
      "a": rule_lib.uniform_fan_in(key, (*batch, *inputs, rank), fan_in),
      "b": jnp.zeros((*batch, inner, *outputs), jnp.float32),
      "scaling": jnp.float32(self.scaling_of(target)),
    }

  def __call__(self, target: rule_lib.Target, leaves: rule_lib.Leaves, call: rule_lib.Call) -> Any:
    """The layer's result plus that of the product."""
    y = call.proceed(call.x)
    return y + call.gained(self.product(target, leaves, call, y.dtype))

  def product(
    self, target: rule_lib.Target, leaves: rule_lib.Leaves, call: rule_lib.Call, dtype: Any
  ) -> jax.Array:
    """scaling B A x, through the `rank` numbers in between where the layer allows it."""
    geometry = target.layer
    x = jnp.asarray(call.x).astype(dtype)
    if self.dropout and call.key is not None:
      kept = jax.random.bernoulli(call.key(), 1 - self.dropout, x.shape)
      x = jnp.where(kept, x / (1 - self.dropout), 0)
    a, b = leaves["a"].astype(dtype), leaves["b"].astype(dtype)
    if geometry.equation:
      first, second = layer_lib.low_rank_equations(geometry.equation, geometry)
      y = jnp.einsum(second, jnp.einsum(first, x, a), b)
    elif geometry.groups == 1 or self.by_block(geometry):
      y = _by_group(call.run(x, a), b, geometry.groups)
    else:
      y = call.run(x, self._kernel(geometry, a, b))
    return y * jax.lax.stop_gradient(leaves["scaling"]).astype(dtype)

  def delta(self, target: rule_lib.Target, leaves: rule_lib.Leaves) -> jax.Array:
    """What is added to the kernel: scaling B A, in float32."""
    a, b = leaves["a"].astype(jnp.float32), leaves["b"].astype(jnp.float32)
    return leaves["scaling"] * self._kernel(target.layer, a, b)

  def merge(self, target: rule_lib.Target, leaves: rule_lib.Leaves, own: rule_lib.Leaves) -> dict:
    """W + scaling B A."""
    return self._added(target, self.delta(target, leaves), own)

  def unmerge(self, target: rule_lib.Target, leaves: rule_lib.Leaves, own: rule_lib.Leaves) -> dict:
    """W - scaling B A."""
    return self._added(target, -self.delta(target, leaves), own)

  def _added(self, target: rule_lib.Target, delta: jax.Array, own: rule_lib.Leaves) -> dict:
    name = target.kind.kernel
    return {name: (own[name].astype(jnp.float32) + delta).astype(own[name].dtype)}

  def by_block(self, geometry: layer_lib.Geometry) -> bool:
    """Whether B has parts for groups of outputs."""
    return geometry.groups > 1 and self.grouped == "peft"

  def can_merge(self, target: rule_lib.Target) -> bool:
    """See `Rule.can_merge`; not in PEFT's form of groups."""
    return super().can_merge(target) and not self.by_block(target.layer)

  def _kernel(self, geometry: layer_lib.Geometry, a: jax.Array, b: jax.Array) -> jax.Array:
    """B A in the shape of the kernel."""
    num = len(geometry.batch)
    batch, inputs = a.shape[:num], a.shape[num:-1]
    a, flat = a.reshape(*batch, -1, a.shape[-1]), b.reshape(*batch, b.shape[num], -1)
    product = (a @ flat).reshape(*batch, *inputs, *b.shape[num + 1 :])
    order = (*geometry.batch, *geometry.inputs, *geometry.outputs)
    return jnp.moveaxis(product, range(len(order)), order)


def _by_group(h: jax.Array, b: jax.Array, groups: int) -> jax.Array:
  """[..., groups * r] by [r, channels out], each group of channels by its own part."""
  if groups == 1:
    return h @ b
  h = h.reshape(*h.shape[:-1], groups, -1)
  b = b.reshape(b.shape[0], groups, -1)
  return jnp.einsum("...gr,rgo->...go", h, b).reshape(*h.shape[:-2], -1)


def combine(
  loras: Sequence[Mapping[str, jax.Array]],
  weights: Sequence[float],
  num_batch: int = 0,
  groups: int = 1,
) -> dict[str, jax.Array]:
  """One adapter that adds the weighted sum of what these add, by one product of the summed rank.

  Args:
    loras: leaves at one module.
    weights: one for each.
    num_batch: leading axes of A and B that are no inputs and outputs.
    groups: products that lie side by side in A.
  """
  parts = [own["a"].reshape(*own["a"].shape[:-1], groups, -1) for own in loras]
  a = jnp.concatenate(parts, axis=-1)
  scaled = [own["b"] * _like(own["scaling"] * weight, own["b"])
            for own, weight in zip(loras, weights, strict=True)]  # fmt: skip
  return {
    "a": a.reshape(*a.shape[:-2], -1),
    "b": jnp.concatenate(scaled, axis=num_batch),
    "scaling": jnp.ones_like(loras[0]["scaling"]),
  }


def _like(scaling: jax.Array, b: jax.Array) -> jax.Array:
  return scaling.reshape(scaling.shape + (1,) * (b.ndim - scaling.ndim))
