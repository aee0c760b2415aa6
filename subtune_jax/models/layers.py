"""Convolution + BatchNorm + ReLU6 as one layer, and the checks that every backbone shares."""

from collections.abc import Collection
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from subtune_jax.models import batch_norm, convolution

MOMENTUM = 0.9  # of the running statistics; see EfficientNet.norm_momentum


def unit_range(
  block_names: tuple[str, ...], start: str | None, stop: str | None
) -> tuple[str, ...]:
  """Returns the units from `start` up to, not including, `stop`; "head" follows the last block.

  Raises:
    ValueError: an unknown unit, or an empty range.
  """
  units = (*block_names, "head")
  for key, value in (("start", start), ("stop", stop)):
    if value is not None and value not in units:
      raise ValueError(f"{key}={value!r} is not a unit of this model; units: {', '.join(units)}")
  first = 0 if start is None else units.index(start)
  last = len(units) if stop is None else units.index(stop)
  if first >= last:
    raise ValueError(f"start={start!r} up to stop={stop!r} runs nothing; stop must be a later unit")
  return units[first:last]


def check_train_blocks(train_blocks: Collection[str], block_names: tuple[str, ...]) -> None:
  """Raises ValueError when `train_blocks` is a string or names a block that does not exist."""
  if isinstance(train_blocks, str):
    raise ValueError(f"train_blocks={train_blocks!r} is a string; give a set of block names")
  unknown = sorted(set(train_blocks) - set(block_names))
  if unknown:
    raise ValueError(f"train_blocks has unknown {unknown}; blocks: {', '.join(block_names)}")


class ConvBN(nn.Module):
  """A convolution without bias, BatchNorm, and ReLU6 where `act`.

  With running statistics BatchNorm is folded into the kernel, so that neither pass computes it.

  Attributes:
    kind: "full", "depthwise" or "pointwise".
    features: channels out.
    kernel: side of the square kernel; 1 for "pointwise".
    stride: of both axes, with TensorFlow's "SAME" padding.
    act: whether ReLU6 follows.
    use_batch_statistics: normalise by the batch and update the running statistics.
    momentum: of the running statistics.
    dtype: of the computation.
  """

  kind: str
  features: int
  kernel: int = 1
  stride: int = 1
  act: bool = False
  use_batch_statistics: bool = False
  momentum: float = MOMENTUM
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    fan_in = 1 if self.kind == "depthwise" else x.shape[-1]
    init = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
    if self.kind == "depthwise":  # one input and one output channel to each
      init = nn.initializers.truncated_normal((2.0 / self.kernel**2) ** 0.5)
    shape = (self.kernel, self.kernel, fan_in, self.features)
    w = self.param("kernel", init, shape, jnp.float32)
    bn = BatchNorm(self.features, self.momentum, name="bn")
    if self.use_batch_statistics:
      return bn.normalize(self._convolve(x, w), self.act)
    gain, shift = bn.fold()
    y = self._convolve(x, w * batch_norm.per_channel(gain, 4))
    y = y + batch_norm.per_channel(shift, x.ndim).astype(self.dtype)
    return batch_norm.relu6(y) if self.act else y

  def _convolve(self, x: jax.Array, w: jax.Array) -> jax.Array:
    x, w = x.astype(self.dtype), w.astype(self.dtype)
    if self.kind == "pointwise":
      return convolution.pointwise(x, w)
    if self.kind == "depthwise":
      return convolution.depthwise(x, w, self.stride)
    return convolution.full(x, w, self.stride)


class BatchNorm(nn.Module):
  """Parameters and running statistics [features] in float32, and the two ways to use them.

  The running statistics follow torch: `running = momentum * running + (1 - momentum) * batch`, with
  the unbiased variance (Flax's own layer keeps the biased one); normalising uses the biased one in
  both.
  """

  features: int
  momentum: float = MOMENTUM

  def setup(self):
    shape = (self.features,)
    self.scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
    self.bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
    self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
    self.var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)

  def fold(self) -> tuple[jax.Array, jax.Array]:
    """Returns gain and shift [features] of the running statistics."""
    return batch_norm.fold(self.scale, self.bias, self.mean.value, self.var.value)

  def normalize(self, x: jax.Array, act: bool) -> jax.Array:
    """Normalises [..., features] by the batch's statistics and updates the running ones."""
    y, mean, var = batch_norm.batch_mode(x, self.scale, self.bias, act)
    if not self.is_initializing():
      n = x.size // self.features
      unbiased = var * (n / max(n - 1, 1))
      for running, batch in ((self.mean, mean), (self.var, unbiased)):
        batch = lax.stop_gradient(batch)
        running.value = self.momentum * running.value + (1 - self.momentum) * batch
    return y
