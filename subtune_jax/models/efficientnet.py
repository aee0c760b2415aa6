"""EfficientNet-Lite (Tan & Le 2019; Lite: no squeeze-excitation, ReLU6) as a row of named blocks.

Inference semantics are the TensorFlow originals': "SAME" padding, BatchNorm epsilon 1e-3. There is
no dropout and no drop-connect: a step is a deterministic function of batch and parameters.
"""

from collections.abc import Callable
import dataclasses
import functools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from subtune_jax.models import backbone, channels, layers


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """One inverted-residual block: kernel size, stride, expansion, channels in and out."""

  kernel: int
  stride: int
  expand: int
  features_in: int
  features_out: int


# Of EfficientNet-B0: blocks, kernel size, stride, expansion, channels out.
_STAGES = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)


def _rounded(features: float) -> int:
  """The nearest multiple of 8, but never less than nine tenths of `features`."""
  nearest = max(8, int(features + 4) // 8 * 8)
  return nearest if nearest >= 0.9 * features else nearest + 8


def lite_blocks(width: float, depth: float, stem_features: int = 32) -> tuple[BlockSpec, ...]:
  """Returns the blocks of an EfficientNet-Lite.

  Args:
    width: multiplies the channels of every stage; Lite scales neither the stem's nor the top's.
    depth: multiplies the repeats; Lite does not repeat the first and the last stage more often.
    stem_features: channels that the first block reads.
  """
  blocks, features = [], stem_features
  for stage, (count, kernel, stride, expand, outputs) in enumerate(_STAGES):
    fixed = stage in (0, len(_STAGES) - 1)
    for i in range(count if fixed else math.ceil(depth * count)):
      features_out = _rounded(width * outputs)
      blocks.append(BlockSpec(kernel, 1 if i else stride, expand, features, features_out))
      features = features_out
  return tuple(blocks)


class Stem(nn.Module):
  """3x3 convolution of stride 2, BatchNorm, ReLU6: [n, h, w, 3] to [n, ceil(h/2), ceil(w/2), f]."""

  features: int
  layer: Callable[..., layers.ConvBN]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return self.layer("full", self.features, kernel=3, stride=2, act="relu6", name="conv")(x)


class MBConv(nn.Module):
  """Inverted residual: 1x1 expansion, depthwise convolution, linear 1x1 projection, shortcut."""

  spec: BlockSpec  # of the unpruned network, which says whether there is a shortcut
  layer: Callable[..., layers.ConvBN]
  pruned: channels.Widths = ()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    s = self.spec
    out = functools.partial(channels.width, self.pruned)
    wide = s.features_in * s.expand
    y = x
    if s.expand != 1:
      y = self.layer("pointwise", out("expand", wide), act="relu6", name="expand")(y)
    depthwise = {"kernel": s.kernel, "stride": s.stride, "act": "relu6", "name": "depthwise"}
    y = self.layer("depthwise", out("depthwise", wide), **depthwise)(y)
    y = self.layer("pointwise", out("project", s.features_out), name="project")(y)
    return y + x if s.stride == 1 and s.features_in == s.features_out else y


class Top(nn.Module):
  """1x1 convolution, BatchNorm, ReLU6, mean over the map: [n, h, w, c] to [n, features]."""

  features: int
  layer: Callable[..., layers.ConvBN]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.layer("pointwise", self.features, act="relu6", name="conv")(x)
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(x.dtype)


class EfficientNet(backbone.Backbone, kw_only=True):
  """Stem, inverted-residual blocks, top and a linear head.

  Attributes:
    blocks: the inverted-residual blocks, input to output.
    stem_features: channels after the stem.
    features: channels of the pooled features that the head reads.
    pruned: channels of layers that were pruned (`subtune_jax.pruning`).
  """

  blocks: tuple[BlockSpec, ...]
  stem_features: int = 32
  features: int = 1280
  pruned: channels.Widths = ()

  @property
  def block_names(self) -> tuple[str, ...]:
    """The stem, "block0" and on, the top."""
    return ("stem", *(f"block{i}" for i in range(len(self.blocks))), "top")

  def make_block(self, block: str, name: str, use_batch_statistics: bool) -> nn.Module:
    """See `Backbone.make_block`."""
    layer = functools.partial(
      layers.ConvBN,
      use_batch_statistics=use_batch_statistics,
      momentum=self.norm_momentum,
      dtype=self.dtype,
    )
    if block == "stem":
      return Stem(channels.width(self.pruned, "stem/conv", self.stem_features), layer, name=name)
    if block == "top":
      return Top(channels.width(self.pruned, "top/conv", self.features), layer, name=name)
    spec = self.blocks[int(block.removeprefix("block"))]
    return MBConv(spec, layer, channels.of_block(self.pruned, block), name=name)
