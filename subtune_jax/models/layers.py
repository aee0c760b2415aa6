"""Convolution + BatchNorm + ReLU6 as one layer, and the checks that every backbone shares."""

from collections.abc import Collection
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

EPSILON = 1e-3
MOMENTUM = 0.99


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

  Attributes:
    kind: "full", "depthwise" or "pointwise".
    features: channels out.
    kernel: side of the square kernel; "pointwise" ignores it.
    stride: of both axes, with TensorFlow's "SAME" padding.
    act: whether ReLU6 follows.
    use_batch_statistics: normalise by the batch and update the running statistics.
    dtype: of the computation.
  """

  kind: str
  features: int
  kernel: int = 1
  stride: int = 1
  act: bool = False
  use_batch_statistics: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    fan = 1 if self.kind == "depthwise" else x.shape[-1]
    init = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
    w = self.param("kernel", init, (self.kernel, self.kernel, fan, self.features), jnp.float32)
    groups = self.features if self.kind == "depthwise" else 1
    y = lax.conv_general_dilated(
      x, w.astype(self.dtype), (self.stride, self.stride), "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )
    y = BatchNorm(self.use_batch_statistics, name="bn")(y)
    return jnp.clip(y, 0, 6) if self.act else y


class BatchNorm(nn.Module):
  """BatchNorm over all axes but the last, statistics in float32."""

  use_batch_statistics: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (c,), jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (c,), jnp.float32)
    mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
    var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)
    if self.use_batch_statistics and not self.is_initializing():
      axes = tuple(range(x.ndim - 1))
      xf = x.astype(jnp.float32)
      m = jnp.mean(xf, axes)
      v = jnp.mean(jnp.square(xf), axes) - jnp.square(m)
      n = x.size // c
      mean.value = MOMENTUM * mean.value + (1 - MOMENTUM) * m
      var.value = MOMENTUM * var.value + (1 - MOMENTUM) * v * (n / max(n - 1, 1))
    else:
      m, v = mean.value, var.value
    gain = scale * lax.rsqrt(v + EPSILON)
    shape = (1,) * (x.ndim - 1) + (c,)
    y = x * gain.reshape(shape) + (bias - m * gain).reshape(shape)
    return y.astype(x.dtype)
