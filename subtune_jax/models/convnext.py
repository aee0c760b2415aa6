"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s") as a row of named blocks.

There is no stochastic depth: a step is a deterministic function of batch and parameters.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from subtune_jax.models import backbone, batch_norm, channels, convolution, layers

EPSILON = 1e-6  # of every LayerNorm but the top's, which is an option
_KERNEL = 7
_EXPAND = 4
_LAYER_SCALE = 1e-6  # at initialisation
_PATCH = 4  # of the stem
_REDUCTION = 2  # of the downsampling before every later stage

_init = nn.initializers.truncated_normal(0.02)
_LayerNorm = functools.partial(nn.LayerNorm, epsilon=EPSILON, use_fast_variance=False)


class Stem(nn.Module):
  """4x4 patches and LayerNorm: [n, h, w, 3] to [n, h // 4, w // 4, features]."""

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = layers.PatchConv(self.features, _PATCH, dtype=self.dtype, name="conv")(x)
    return _LayerNorm(dtype=self.dtype, name="norm")(x)


class Downsample(nn.Module):
  """LayerNorm and 2x2 patches: [n, h, w, c] to [n, h // 2, w // 2, features]."""

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = _LayerNorm(dtype=self.dtype, name="norm")(x)
    return layers.PatchConv(self.features, _REDUCTION, dtype=self.dtype, name="conv")(x)


class Depthwise(nn.Module):
  """A 7x7 convolution of every channel by itself, with a bias."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    features = x.shape[-1]
    kernel = self.param("kernel", _init, (_KERNEL, _KERNEL, 1, features), jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (features,), jnp.float32)
    y = self.convolve(x, kernel)
    return y + batch_norm.per_channel(bias, y.ndim).astype(self.dtype)

  @nn.nowrap
  def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution with a kernel."""
    return convolution.depthwise(x.astype(self.dtype), kernel.astype(self.dtype), 1)


class Unit(nn.Module):
  """Depthwise convolution, LayerNorm, two linear layers with GELU, layer scale, shortcut.

  Attributes:
    features: channels out.
    downsample: halve the map first, which also changes the number of channels.
    dtype: of the computation.
    pruned: channels of layers that were pruned.
  """

  features: int
  downsample: bool = False
  dtype: Any = jnp.float32
  pruned: channels.Widths = ()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_init)
    if self.downsample:
      x = Downsample(self.features, self.dtype, name="downsample")(x)
    y = Depthwise(self.dtype, name="depthwise")(x)
    y = _LayerNorm(dtype=self.dtype, name="norm")(y)
    hidden = channels.width(self.pruned, "expand", _EXPAND * self.features)
    y = nn.gelu(dense(hidden, name="expand")(y), approximate=False)
    y = dense(self.features, name="project")(y)
    init = nn.initializers.constant(_LAYER_SCALE)
    scale = self.param("layer_scale", init, (self.features,), jnp.float32)
    return x + y * batch_norm.per_channel(scale, y.ndim).astype(self.dtype)


class Top(nn.Module):
  """Mean over the map and LayerNorm, in float32: [n, h, w, c] to [n, c]."""

  epsilon: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    return _LayerNorm(epsilon=self.epsilon, dtype=jnp.float32, name="norm")(x).astype(self.dtype)


class ConvNeXt(backbone.Backbone, kw_only=True):
  """Stem, stages of units, top and a linear head. It has no BatchNorm.

  Attributes:
    depths: units of each stage.
    widths: channels of each stage.
    top_epsilon: of the last LayerNorm; 1e-12 in most files of Hugging Face transformers.
    pruned: channels of layers that were pruned (`subtune_jax.pruning`).
  """

  depths: tuple[int, ...]
  widths: tuple[int, ...]
  top_epsilon: float = EPSILON
  pruned: channels.Widths = ()

  def __post_init__(self):
    if not self.depths or len(self.depths) != len(self.widths) or min(self.depths) < 1:
      raise ValueError(
        f"depths={self.depths!r} and widths={self.widths!r} must be of one length, one number of "
        "at least 1 for each stage"
      )
    super().__post_init__()

  @property
  def block_names(self) -> tuple[str, ...]:
    """The stem, "block1/unit1" and on (stage and unit), the top."""
    units = (f"block{s}/unit{u}" for s, n in enumerate(self.depths, 1) for u in range(1, n + 1))
    return ("stem", *units, "top")

  @nn.nowrap  # a stage calls it, and the block is the stage's
  def make_block(self, block: str, name: str, use_batch_statistics: bool) -> nn.Module:
    """See `Backbone.make_block`."""
    del use_batch_statistics
    if block == "stem":
      return Stem(self.widths[0], self.dtype, name=name)
    if block == "top":
      return Top(self.top_epsilon, self.dtype, name=name)
    stage, unit = stage_and_unit(block)
    pruned = channels.of_block(self.pruned, block)
    return Unit(self.widths[stage - 1], stage > 1 and unit == 1, self.dtype, pruned, name=name)

  def check_images(self, x: jax.Array) -> None:
    """See `Backbone.check_images`; the last map must have a position."""
    super().check_images(x)
    side = _PATCH * _REDUCTION ** (len(self.depths) - 1)
    if min(x.shape[1:3]) < side:
      raise ValueError(f"images have shape {x.shape}; height and width must be at least {side}")


def stage_and_unit(block: str) -> tuple[int, int]:
  """Returns the numbers in "block2/unit3"."""
  stage, _, unit = block.partition("/")
  return int(stage.removeprefix("block")), int(unit.removeprefix("unit"))
