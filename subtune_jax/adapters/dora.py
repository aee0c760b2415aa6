"""DoRA: LoRA for the direction of a kernel's columns, and a trained length of each."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from subtune_jax.adapters import layer as layer_lib
from subtune_jax.adapters import lora
from subtune_jax.adapters import rule as rule_lib
from subtune_jax.masks import tree as tree_lib


@dataclasses.dataclass(frozen=True)
class DoRA(lora.LoRA):
  """W' = m (W + scaling B A) / |W + scaling B A| (Liu et al. 2024, arXiv 2402.09353, equation 5).

  Lengths are those of the weights of each output; no gradient runs through the divisor (section
  4.3). The leaf `magnitude` is m - |W|, which starts at zero, so that a fresh adapter changes no
  bit whatever the compiler makes of the length.
  """

  name: str = "dora"

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.dropout:
      raise ValueError(f"dropout is {self.dropout}; DoRA has none here, use LoRA")

  def check(self, targets: list[rule_lib.Target]) -> None:
    """See `LoRA.check`; the length of the changed kernel must be defined."""
    super().check(targets)
    without = [target.path for target in targets if not self.can_merge(target)]
    if without:
      raise ValueError(
        f"{self.name} cannot go to {tree_lib.shorten(without)}, whose changed kernel is none of "
        "the layer's (standardised, or grouped='peft'); exclude them"
      )

  def init(self, target: rule_lib.Target, key: jax.Array) -> dict[str, jax.Array]:
    """A, B, the scaling, and what is added to the lengths."""
    geometry = target.layer
    shape = geometry.sizes((*geometry.batch, *geometry.outputs))
    return {**super().init(target, key), "magnitude": jnp.zeros(shape, jnp.float32)}

  def __call__(self, target: rule_lib.Target, leaves: rule_lib.Leaves, call: rule_lib.Call) -> Any:
    """The layer's result and that of the product, both by the lengths' ratio."""
    y = call.proceed(call.x)
    ratio = self._on_outputs(target, self._ratio(target, leaves, call.kernel)).astype(y.dtype)
    product = call.gained(self.product(target, leaves, call, y.dtype))
    linear = y if call.bias is None else y - rule_lib.along(call.bias, y)
    ratio = rule_lib.along(ratio, y)
    return y + (ratio - 1) * linear + ratio * product

  def merge(self, target: rule_lib.Target, leaves: rule_lib.Leaves, own: rule_lib.Leaves) -> dict:
    """m (W + scaling B A) / |W + scaling B A|."""
    name = target.kind.kernel
    kernel = own[name].astype(jnp.float32)
    ratio = self._ratio(target, leaves, kernel)
    return {name: (ratio * (kernel + self.delta(target, leaves))).astype(own[name].dtype)}

  def unmerge(self, target: rule_lib.Target, leaves: rule_lib.Leaves, own: rule_lib.Leaves) -> dict:
    """Not to be had: the merged kernel does not tell the length of W + scaling B A."""
    raise ValueError(f"{self.name} at {target.path} cannot be taken out; keep the base parameters")

  def _ratio(
    self, target: rule_lib.Target, leaves: rule_lib.Leaves, kernel: jax.Array
  ) -> jax.Array:
    """m / |W + scaling B A|, shaped as the kernel with 1 for its inputs.

    Both lengths are taken in one reduction: equal kernels give the same bits. It is 1 where
    W + scaling B A has no length: pretrained networks have outputs without a weight.
    """
    geometry = target.layer
    kernel = jax.lax.stop_gradient(kernel.astype(jnp.float32))
    changed = jax.lax.stop_gradient(kernel + self.delta(target, leaves))
    base, new = jax.vmap(geometry.norms)(jnp.stack([kernel, changed]))
    magnitude = leaves["magnitude"].astype(jnp.float32)
    added = magnitude.reshape(self._in_order(geometry, base.shape))
    some = new > 0
    return jnp.where(some, (base + _moved(geometry, added)) / jnp.where(some, new, 1.0), 1.0)

  def _in_order(self, geometry: layer_lib.Geometry, shape: tuple[int, ...]) -> tuple[int, ...]:
    order = (*geometry.batch, *geometry.outputs, *geometry.inputs)
    return tuple(shape[axis] for axis in order)

  def _on_outputs(self, target: rule_lib.Target, ratio: jax.Array) -> jax.Array:
    """The ratio so that it multiplies the layer's result."""
    geometry = target.layer
    if not geometry.equation:
      return ratio.reshape(-1)
    kernel = geometry.equation.split(",")[1].split("->")[0]
    result = geometry.equation.split("->")[1]
    kept = "".join(kernel[axis] for axis in range(len(kernel)) if axis not in geometry.inputs)
    ratio = jnp.squeeze(ratio, geometry.inputs)
    names = [letter for letter in result.replace("...", "") if letter in kept]
    ratio = jnp.transpose(ratio, [kept.index(letter) for letter in names])
    tail = result.split("...")[-1]
    sizes = iter(ratio.shape)
    return ratio.reshape([next(sizes) if letter in kept else 1 for letter in tail])


def _moved(geometry: layer_lib.Geometry, values: jax.Array) -> jax.Array:
  """Axes (*batch, *outputs, *inputs) where the kernel has them."""
  order = (*geometry.batch, *geometry.outputs, *geometry.inputs)
  return jnp.moveaxis(values, range(len(order)), order)
