"""LoRA on grouped convolutions whose first factor reads all channels: the form of PEFT's files."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from subtune_jax.adapters import lora
from subtune_jax.adapters import rule as rule_lib


@dataclasses.dataclass(frozen=True)
class LoRAAcrossGroups(lora.LoRA):
  """A is [*window, all channels in, rank] and B [rank / groups, channels out], by groups.

  PEFT makes its A of a grouped convolution without groups (peft 0.21, `tuners/lora/layer.py`,
  `_ConvNd.update_layer`), so that outputs see the channels of other groups and the product is no
  kernel of the layer: it cannot be merged. Other layers get LoRA as it is.
  """

  grouped: str = "block"

  def init(self, target: rule_lib.Target, key: jax.Array) -> dict[str, jax.Array]:
    """A, B and the scaling."""
    geometry, rank = target.geometry, self.rank_of(target)
    made = super().init(target, key)
    *window, channels, _ = made["a"].shape
    shape = (*window, channels * geometry.groups, rank)
    fan_in = geometry.fan_in * geometry.groups
    return {**made, "a": rule_lib.uniform_fan_in(key, shape, fan_in)}

  def product(
    self, target: rule_lib.Target, leaves: rule_lib.Leaves, call: rule_lib.Call, dtype: Any
  ) -> jax.Array:
    """scaling B A x: each group of channels by its rows of A, summed, then B by groups."""
    groups = target.geometry.groups
    if groups == 1:
      return super().product(target, leaves, call, dtype)
    if self.dropout and call.key is not None:
      raise ValueError(f"{self.name} at {target.path}: no dropout across groups; set it to 0")
    a, b = leaves["a"].astype(dtype), leaves["b"].astype(dtype)
    rank = a.shape[-1]
    rows = a.reshape(*a.shape[:-2], groups, -1, rank)  # [*window, groups, channels, rank]
    rows = jnp.moveaxis(rows, -3, -2).reshape(*a.shape[:-2], -1, groups * rank)
    h = call.run(jnp.asarray(call.x).astype(dtype), rows)
    h = jnp.sum(h.reshape(*h.shape[:-1], groups, rank), axis=-2)
    h = h.reshape(*h.shape[:-1], groups, -1)
    y = jnp.einsum("...gr,rgo->...go", h, b.reshape(b.shape[0], groups, -1))
    scaling = jax.lax.stop_gradient(leaves["scaling"]).astype(dtype)
    return y.reshape(*y.shape[:-2], -1) * scaling

  def can_merge(self, target: rule_lib.Target) -> bool:
    """Layers without groups alone."""
    return super().can_merge(target) and target.geometry.groups == 1
