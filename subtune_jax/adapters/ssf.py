"""SSF: a trained scale and shift after linear layers and normalisations."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from subtune_jax.adapters import layer as layer_lib
from subtune_jax.adapters import rule as rule_lib


@dataclasses.dataclass(frozen=True)
class SSF(rule_lib.Rule):
  """y' = scale * y + shift at every channel (Lian et al. 2022, arXiv 2210.08823, equation 3).

  Scales start at 1 and shifts at 0; the authors' code draws them from N(1, 0.02) and N(0, 0.02),
  which changes the network before any step. A layer without bias gets no shift, so that both merge:
  into kernel and bias (equation 4), or a normalisation's own scale and bias. A convolution with
  BatchNorm behind it has that of BatchNorm.
  """

  name: str = "ssf"
  merges: ClassVar[bool] = True

  def takes(self, target: rule_lib.Target) -> bool:
    """Linear layers whose outputs are one axis, the last, and normalisations with a scale."""
    norm = layer_lib.norm_of(target.module)
    if norm:
      return target.has(norm.scale)
    return target.geometry is not None and _last(target.geometry) and not _folded(target)

  def can_merge(self, target: rule_lib.Target) -> bool:
    """Wherever it goes but into kernels that are not used as they are."""
    return target.geometry is None or target.geometry.mergeable

  def init(self, target: rule_lib.Target, key: jax.Array) -> dict[str, jax.Array]:
    """Ones and zeros."""
    del key
    norm = layer_lib.norm_of(target.module)
    if norm:
      shape, has_bias = dict(target.leaves)[norm.scale], target.has(norm.bias)
    else:
      shape, has_bias = target.layer.shape[-1:], target.bias is not None
    return {"scale": jnp.ones(shape)} | ({"shift": jnp.zeros(shape)} if has_bias else {})

  def __call__(self, target: rule_lib.Target, leaves: rule_lib.Leaves, call: rule_lib.Call) -> Any:
    """The result, scaled and shifted."""
    scale = leaves["scale"]
    shift = leaves.get("shift", jnp.zeros_like(scale))
    if call.affine is not None:
      return call.affine(scale, shift)
    y = call.proceed(call.x)
    return y * rule_lib.along(scale, y) + rule_lib.along(shift, y)

  def merge(self, target: rule_lib.Target, leaves: rule_lib.Leaves, own: rule_lib.Leaves) -> dict:
    """The scale into the kernel (or a normalisation's scale) and bias, the shift into the bias."""
    return self._into(target, own, leaves["scale"], leaves.get("shift", 0.0))

  def unmerge(self, target: rule_lib.Target, leaves: rule_lib.Leaves, own: rule_lib.Leaves) -> dict:
    """Divides again; a scale of 0 leaves nothing to find."""
    scale = leaves["scale"]
    return self._into(target, own, 1 / scale, -leaves.get("shift", 0.0) / scale)

  def _into(self, target: rule_lib.Target, own: rule_lib.Leaves, scale: Any, shift: Any) -> dict:
    norm = layer_lib.norm_of(target.module)
    weight = norm.scale if norm else target.kind.kernel
    bias = norm.bias if norm else target.kind.bias
    new = {weight: own[weight] * rule_lib.along(scale, own[weight])}
    return new | ({bias: own[bias] * scale + shift} if bias in own else {})


def _last(geometry: layer_lib.Geometry) -> bool:
  return geometry.outputs == (len(geometry.shape) - 1,) and not geometry.batch


def _folded(target: rule_lib.Target) -> bool:
  """Whether a normalisation of the layer's own follows."""
  return target.kind.method != "__call__" and target.bias is None
