"""EfficientNet-Lite (Tan & Le 2019; Lite: no squeeze-excitation, ReLU6) as a row of named blocks.

Inference semantics are the TensorFlow originals': "SAME" padding, BatchNorm epsilon 1e-3. There is
no dropout and no drop-connect: a step is a deterministic function of batch and parameters.
"""

from collections.abc import Callable, Collection
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from subtune_jax.models import layers


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """One inverted-residual block: kernel size, stride, expansion, channels in and out."""

  kernel: int
  stride: int
  expand: int
  features_in: int
  features_out: int


def _repeat(count: int, kernel: int, stride: int, expand: int, fin: int, fout: int):
  first = BlockSpec(kernel, stride, expand, fin, fout)
  return (first,) + (BlockSpec(kernel, 1, expand, fout, fout),) * (count - 1)


LITE0_BLOCKS = (
  *_repeat(1, 3, 1, 1, 32, 16),
  *_repeat(2, 3, 2, 6, 16, 24),
  *_repeat(2, 5, 2, 6, 24, 40),
  *_repeat(3, 3, 2, 6, 40, 80),
  *_repeat(3, 5, 1, 6, 80, 112),
  *_repeat(4, 5, 2, 6, 112, 192),
  *_repeat(1, 3, 1, 6, 192, 320),
)


class Stem(nn.Module):
  """3x3 convolution of stride 2, BatchNorm, ReLU6: [n, h, w, 3] to [n, ceil(h/2), ceil(w/2), f]."""

  features: int
  layer: Callable[..., layers.ConvBN]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return self.layer("full", self.features, kernel=3, stride=2, act=True, name="conv")(x)


class MBConv(nn.Module):
  """Inverted residual: 1x1 expansion, depthwise convolution, linear 1x1 projection, shortcut."""

  spec: BlockSpec
  layer: Callable[..., layers.ConvBN]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    s = self.spec
    wide = s.features_in * s.expand
    y = x
    if s.expand != 1:
      y = self.layer("pointwise", wide, act=True, name="expand")(y)
    depthwise = {"kernel": s.kernel, "stride": s.stride, "act": True, "name": "depthwise"}
    y = self.layer("depthwise", wide, **depthwise)(y)
    y = self.layer("pointwise", s.features_out, name="project")(y)
    return y + x if s.stride == 1 and s.features_in == s.features_out else y


class Top(nn.Module):
  """1x1 convolution, BatchNorm, ReLU6, mean over the map: [n, h, w, c] to [n, features]."""

  features: int
  layer: Callable[..., layers.ConvBN]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.layer("pointwise", self.features, act=True, name="conv")(x)
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(x.dtype)


class EfficientNet(nn.Module):
  """Stem, inverted-residual blocks, top and a linear head.

  Attributes:
    num_classes: size of the head.
    blocks: the inverted-residual blocks, input to output.
    stem_features: channels after the stem.
    features: channels of the pooled features that the head reads.
    norm_momentum: of BatchNorm's running statistics. The original's pretraining used 0.99; an
      adaptation of a hundred steps would end far from its own statistics with that.
    dtype: of the computation; parameters and BatchNorm statistics are float32.
  """

  num_classes: int
  blocks: tuple[BlockSpec, ...]
  stem_features: int = 32
  features: int = 1280
  norm_momentum: float = layers.MOMENTUM
  dtype: Any = jnp.float32

  @property
  def block_names(self) -> tuple[str, ...]:
    """Names of the blocks, input to output; the head is not one of them."""
    return ("stem", *(f"block{i}" for i in range(len(self.blocks))), "top")

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    start: str | None = None,
    stop: str | None = None,
    train_blocks: Collection[str] = frozenset(),
  ) -> jax.Array:
    """Runs the units from `start` up to, not including, `stop`.

    Args:
      x: what `start` reads: normalised images [n, h, w, 3] for the stem, else the activations that
        `stop=start` returned.
      start: first unit that runs; None is the stem. "head" is allowed.
      stop: first unit that does not run; None runs the head too. "head" gives the pooled features
        [n, features].
      train_blocks: blocks whose BatchNorm normalises by the batch's statistics and updates the
        running ones, which needs `mutable=["batch_stats"]`. The others use running statistics and
        write nothing.

    Returns:
      Logits [n, num_classes] in float32 when the head runs, else activations in `dtype`.

    Raises:
      ValueError: an unknown unit, or a `stop` that is not after `start`.
    """
    units = layers.unit_range(self.block_names, start, stop)
    layers.check_train_blocks(train_blocks, self.block_names)
    x = x.astype(self.dtype)
    for name in units:
      x = self._head(x) if name == "head" else self._unit(name, name in train_blocks)(x)
    return x

  def _unit(self, name: str, use_batch_statistics: bool) -> nn.Module:
    layer = functools.partial(
      layers.ConvBN,
      use_batch_statistics=use_batch_statistics,
      momentum=self.norm_momentum,
      dtype=self.dtype,
    )
    if name == "stem":
      return Stem(self.stem_features, layer, name=name)
    if name == "top":
      return Top(self.features, layer, name=name)
    return MBConv(self.blocks[int(name.removeprefix("block"))], layer, name=name)

  def _head(self, x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


def efficientnet_lite0(
  num_classes: int, dtype: jax.typing.DTypeLike = jnp.float32
) -> EfficientNet:
  """EfficientNet-Lite0: 4,652,008 parameters with 1000 classes, trained at 224 pixels."""
  return EfficientNet(num_classes=num_classes, blocks=LITE0_BLOCKS, dtype=dtype)
