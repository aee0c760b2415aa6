"""The image tower of CLIP's ResNets (Radford et al. 2021, section 2.4) as a row of named blocks.

It differs from ResNet in the stem (three 3x3 convolutions and an average pool), in the stride (an
average pool before the convolution that would have it, on both paths) and in the last pool, which
is an attention layer.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from subtune_jax.models import backbone, batch_norm, layers, resnet

_STRIDE = 32  # of the whole network up to the attention pool


def _average_pool(x: jax.Array) -> jax.Array:
  """Means over 2x2 squares; an odd last row or column is not read."""
  h, w = (size // 2 * 2 for size in x.shape[1:3])
  squares = [resnet.strided(x, 2, (i, j), (h, w)) for j in (0, 1) for i in (0, 1)]
  return ((squares[0] + squares[1]) + (squares[2] + squares[3])) / 4


class Stem(nn.Module):
  """Three 3x3 convolutions with BatchNorm and ReLU, the first of stride 2; 2x2 average pool."""

  features: int
  layer: Callable[..., layers.ConvBN]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    half = self.features // 2
    for i, (features, stride) in enumerate(((half, 2), (half, 1), (self.features, 1)), 1):
      shape = {"kernel": 3, "stride": stride}
      x = self.layer("full", features, **shape, act="relu", name=f"conv{i}")(x)
    return _average_pool(x)


class Unit(nn.Module):
  """A bottleneck whose stride is an average pool before `conv3` and before `downsample`."""

  inner: int
  stride: int
  layer: Callable[..., layers.ConvBN]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    features = resnet.EXPANSION * self.inner
    y = self.layer("pointwise", self.inner, act="relu", name="conv1")(x)
    y = self.layer("full", self.inner, kernel=3, act="relu", name="conv2")(y)
    if self.stride > 1:
      x, y = _average_pool(x), _average_pool(y)
    y = self.layer("pointwise", features, name="conv3")(y)
    if self.stride > 1 or x.shape[-1] != features:
      x = self.layer("pointwise", features, name="downsample")(x)
    return batch_norm.activate(y + x, "relu")


class AttentionPool(nn.Module):
  """Multi-head attention of the mean token to itself and all positions: [n, h, w, c] to [n, f].

  Query, key and value are three layers, not a fused one: only the mean token has a query.

  Attributes:
    heads: of the attention; divides c.
    features: out.
    normalize: divide each row by its L2 norm.
    dtype: of the computation; the softmax is float32.
  """

  heads: int
  features: int
  normalize: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    n, c = x.shape[0], x.shape[-1]
    x = x.reshape(n, -1, c)
    mean = jnp.mean(x, axis=1, keepdims=True, dtype=jnp.float32).astype(x.dtype)
    x = jnp.concatenate([mean, x], axis=1)
    init = nn.initializers.normal(c**-0.5)
    positions = self.param("positional_embedding", init, x.shape[1:], jnp.float32)
    x = x + positions[None].astype(x.dtype)
    q = nn.Dense(c, dtype=self.dtype, name="q")(x[:, :1])
    k = nn.Dense(c, dtype=self.dtype, name="k")(x)
    v = nn.Dense(c, dtype=self.dtype, name="v")(x)
    q, k, v = (t.reshape(n, -1, self.heads, c // self.heads) for t in (q, k, v))
    y = jax.nn.dot_product_attention(q, k, v).reshape(n, c)
    y = nn.Dense(self.features, dtype=self.dtype, name="c")(y)
    return _unit_norm(y) if self.normalize else y


def _unit_norm(x: jax.Array) -> jax.Array:
  """Rows of [n, c] divided by their L2 norms, in float32."""
  values = x.astype(jnp.float32)
  squares = jnp.sum(jnp.square(values), axis=-1, keepdims=True)
  return (values * lax.rsqrt(jnp.maximum(squares, 1e-24))).astype(x.dtype)


class ClipResNet(backbone.Backbone, kw_only=True):
  """CLIP's modified ResNet: stem, bottlenecks, attention pool, and a linear head.

  The positional embedding has a row for each position of the last map and one for their mean, so
  images must be `image_size` square.

  Attributes:
    stage_sizes: units of each of the four stages.
    width: channels of the stem and inside the bottlenecks of the first stage.
    features: of the embedding that CLIP shares with text; the head reads them.
    heads: of the attention pool.
    normalize_features: the head reads embeddings of length 1. Then a head whose kernel holds the
      classes' text embeddings of length 1, times the exponential of CLIP's `logit_scale`, gives
      CLIP's own logits.
  """

  stage_sizes: tuple[int, ...]
  width: int = 64
  features: int = 1024
  heads: int = 32
  normalize_features: bool = False

  @property
  def block_names(self) -> tuple[str, ...]:
    """The stem, "block1/unit1" and on, the attention pool."""
    return ("stem", *resnet.unit_names(self.stage_sizes), "attention_pool")

  def check_images(self, x: jax.Array) -> None:
    """See `Backbone.check_images`; here the side of the images is fixed too."""
    super().check_images(x)
    if self.image_size < _STRIDE or self.image_size % _STRIDE:
      raise ValueError(
        f"image_size={self.image_size} must be a multiple of {_STRIDE} for this model, such as "
        f"create(..., image_size={max(self.image_size // _STRIDE, 1) * _STRIDE})"
      )
    if x.shape[1:3] != (self.image_size, self.image_size):
      raise ValueError(
        f"images have shape {x.shape}; this model's positional embedding is for "
        f"{self.image_size} by {self.image_size} pixels; resize them, or build the model with "
        f"create(..., image_size=...), a multiple of {_STRIDE}"
      )

  @nn.nowrap  # a stage calls it, and the block is the stage's
  def make_block(self, block: str, name: str, use_batch_statistics: bool) -> nn.Module:
    """See `Backbone.make_block`."""
    if block == "attention_pool":
      fields = (self.heads, self.features, self.normalize_features, self.dtype)
      return AttentionPool(*fields, name=name)
    layer = resnet.conv_bn(self, use_batch_statistics)
    if block == "stem":
      return Stem(self.width, layer, name=name)
    return Unit(**resnet.unit_fields(block, self.width), layer=layer, name=name)
