"""BiT (Kolesnikov et al. 2020, "Big Transfer") as a row of named blocks.

ResNet-v2 (norm and ReLU before every convolution), with GroupNorm and weight standardisation in
place of BatchNorm; padding as in the authors' code: zeros on every side, before the max pool too.
"""

from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from subtune_jax.models import backbone, convolution, inference, resnet

_GROUPS = 32


class StdConv(nn.Module):
  """A convolution whose kernel has mean 0 and variance 1 over what makes one output channel.

  Qiao et al. 2019, "Weight Standardization"; epsilon 1e-10 on the variance, as in BiT.

  Attributes:
    features: channels out.
    kernel: side of the square kernel, odd.
    stride: of both axes.
    dtype: of the computation; the kernel is standardised in float32.
  """

  features: int
  kernel: int
  stride: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    w = self.param("kernel", init, shape, jnp.float32)
    with inference.constants():
      w = w - jnp.mean(w, axis=(0, 1, 2), keepdims=True)
      w = w * lax.rsqrt(jnp.mean(jnp.square(w), axis=(0, 1, 2), keepdims=True) + 1e-10)
    return self.convolve(x, w)

  @nn.nowrap
  def convolve(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """The convolution with a kernel as it is."""
    x, w = x.astype(self.dtype), w.astype(self.dtype)
    if self.kernel == 1:
      return convolution.pointwise(resnet.strided(x, self.stride), w)
    return convolution.full(x, w, self.stride, "SYMMETRIC")


def _norm_relu(x: jax.Array, name: str) -> jax.Array:
  """GroupNorm over 32 groups, with statistics in float32, and ReLU; a layer of the caller."""
  norm = nn.GroupNorm(_GROUPS, epsilon=1e-5, use_fast_variance=False, dtype=x.dtype, name=name)
  return nn.relu(norm(x))


class Stem(nn.Module):
  """7x7 convolution of stride 2, then a 3x3 max pool of stride 2 that sees zeros at the border."""

  features: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = StdConv(self.features, 7, 2, self.dtype, name="conv1")(x)
    return resnet.max_pool(resnet.pad_map(x, 0.0))


class Unit(nn.Module):
  """A bottleneck with norm and ReLU before each convolution; the first are for both paths.

  Attributes:
    inner: channels of all but the last convolution.
    stride: of the unit, on the 3x3 convolution.
    dtype: of the computation.
  """

  inner: int
  stride: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    features = resnet.EXPANSION * self.inner
    y = _norm_relu(x, "norm1")
    if self.stride > 1 or x.shape[-1] != features:
      x = StdConv(features, 1, self.stride, self.dtype, name="downsample")(y)
    y = StdConv(self.inner, 1, dtype=self.dtype, name="conv1")(y)
    y = _norm_relu(y, "norm2")
    y = StdConv(self.inner, 3, self.stride, self.dtype, name="conv2")(y)
    y = _norm_relu(y, "norm3")
    return x + StdConv(features, 1, dtype=self.dtype, name="conv3")(y)


class Top(nn.Module):
  """The last norm and ReLU, and the mean over the map: [n, h, w, c] to [n, c]."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return resnet.mean_over_map(_norm_relu(x, "norm"))


class BitResNet(backbone.Backbone, kw_only=True):
  """Stem, pre-activation bottlenecks, top and a linear head. It has no running statistics.

  Attributes:
    stage_sizes: units of each stage.
    width: channels of the stem and inside the bottlenecks of the first stage; a multiple of 32.
  """

  stage_sizes: tuple[int, ...]
  width: int = 64

  def __post_init__(self):
    if self.width < 1 or self.width % _GROUPS:
      raise ValueError(f"width={self.width} must be a multiple of {_GROUPS}, GroupNorm's groups")
    super().__post_init__()

  @property
  def block_names(self) -> tuple[str, ...]:
    """The stem, "block1/unit1" and on, the top."""
    return ("stem", *resnet.unit_names(self.stage_sizes), "top")

  @nn.nowrap  # a stage calls it, and the block is the stage's
  def make_block(self, block: str, name: str, use_batch_statistics: bool) -> nn.Module:
    """See `Backbone.make_block`; there is no BatchNorm."""
    del use_batch_statistics
    if block == "stem":
      return Stem(self.width, self.dtype, name=name)
    if block == "top":
      return Top(name=name)
    return Unit(**resnet.unit_fields(block, self.width), dtype=self.dtype, name=name)
