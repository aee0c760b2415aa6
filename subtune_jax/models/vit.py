"""Vision transformers (Dosovitskiy et al. 2021) of several pretrainings as a row of named blocks.

AugReg and the original ViT, DeiT, DINO, MoCo v3, DINOv2 (Oquab et al. 2023) with and without
registers (Darcet et al. 2023), CLIP's image tower (Radford et al. 2021) and SigLIP's (Zhai et al.
2023) are one architecture with different fields. There is no dropout of activations; stochastic
depth is off unless it is asked for.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from subtune_jax.data import choices
from subtune_jax.models import backbone, channels, layers, vit_layers

POOLS = ("token", "mean", "map", "token_mean")
_POSITION_STD = 0.02  # of class token, registers and positions at initialisation


class Embedding(nn.Module):
  """Patches, class token, positions and registers: [n, h, w, 3] to [n, tokens, width].

  The tokens are the class token if there is one, the registers, then the patches row by row. The
  class token has a position of its own; registers have none.
  """

  width: int
  patch_size: int
  patch_bias: bool
  class_token: bool
  registers: int
  norm: bool
  epsilon: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = layers.PatchConv(self.width, self.patch_size, self.patch_bias, self.dtype, name="patch")(x)
    x = x.reshape(x.shape[0], -1, self.width)
    if self.class_token:
      x = jnp.concatenate([self._tokens("class_token", 1, x.shape[0]), x], axis=1)
    x = x + self._learnt("positions", x.shape[1])
    if self.registers:
      registers = self._tokens("registers", self.registers, x.shape[0])
      first = int(self.class_token)
      x = jnp.concatenate([x[:, :first], registers, x[:, first:]], axis=1)
    if self.norm:
      x = vit_layers.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
    return x

  def _learnt(self, name: str, count: int) -> jax.Array:
    init = nn.initializers.normal(_POSITION_STD)
    value = self.param(name, init, (1, count, self.width), jnp.float32)
    return value.astype(self.dtype)

  def _tokens(self, name: str, count: int, n: int) -> jax.Array:
    return jnp.broadcast_to(self._learnt(name, count), (n, count, self.width))


class EncoderNorm(nn.Module):
  """The last LayerNorm and the pooling: [n, tokens, width] to [n, features].

  Attributes:
    pool: of the normalised tokens; "map" leaves them, [n, tokens, width], to the next unit.
    skip: tokens before the patches.
    normalize: divide the pooled features by their length.
    epsilon: of the LayerNorm.
    dtype: of the result.
  """

  pool: str
  skip: int
  normalize: bool
  epsilon: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.pool == "token":
      x = x[:, :1]
    x = vit_layers.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
    if self.pool == "map":
      return x
    pooled = []
    if self.pool in ("token", "token_mean"):
      pooled.append(x[:, 0])
    if self.pool in ("mean", "token_mean"):
      patches = x[:, self.skip :]
      pooled.append(jnp.mean(patches, axis=1, dtype=jnp.float32).astype(x.dtype))
    x = jnp.concatenate(pooled, axis=-1)
    return vit_layers.unit_length(x) if self.normalize else x


class Projection(nn.Module):
  """A linear layer without bias: [n, features in] to [n, features].

  Attributes:
    features: channels out.
    normalize: divide the result by its length.
    dtype: of the computation.
  """

  features: int
  normalize: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
    x = self.linear_map(x.astype(self.dtype), kernel.astype(self.dtype))
    return vit_layers.unit_length(x) if self.normalize else x

  def linear_map(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The product, for adapters to join."""
    return jnp.dot(x, kernel)


class ViT(backbone.Backbone, kw_only=True):
  """A vision transformer with a linear head.

  Attributes:
    width: channels of a token.
    depth: number of encoder blocks.
    heads: of the attention; `width` is divisible by it. MoCo v3's ViT-S has 12 heads of 32 where
      others have 6 of 64, which no tensor's shape tells.
    patch_size: side of a patch in pixels; `image_size` is divisible by it.
    mlp_width: hidden channels of the MLPs; None is 4 * width.
    pool: what the head reads of the tokens after the last LayerNorm: "token" the class token,
      "mean" the mean of the patches, "token_mean" both side by side (2 * width features, as
      DINOv2's classifiers read), "map" a learnt query's attention to all tokens (SigLIP).
    class_token: there is one.
    registers: further tokens that nothing reads.
    pre_norm: a LayerNorm before the first block (CLIP).
    activation: of the MLPs: "gelu" (exact), "gelu_tanh" or "quick_gelu" (CLIP).
    qkv_bias: queries, keys and values have one (MIIL's ViT-B/16 has none).
    patch_bias: the patch embedding has one.
    layer_scale: blocks scale what they add by a learnt vector (DINOv2).
    norm_epsilon: of every LayerNorm.
    projection: features of a linear layer without bias behind the pooling (CLIP); None has none.
    normalize_features: divide the last unit's features by their length. With a head whose kernel is
      CLIP's logit scale times its text embeddings the logits are CLIP's own.
    drop_path: stochastic depth while blocks are trained: the probability with which the last block
      leaves out its attention, and its MLP, of an example; that of the others rises from 0 in even
      steps, as timm's does. Evaluation leaves out nothing.
    attention: implementation of `jax.nn.dot_product_attention`. None is JAX's choice. "cudnn" asks
      for cuDNN's fused kernel, on an NVIDIA GPU of compute capability 8.0 or later, with dtype
      bfloat16 or float16 and a head size (width / heads) that is a multiple of 8 and at most 128;
      JAX raises elsewhere. See `vit_layers.attend` for odd numbers of tokens.
    pruned: hidden channels of MLPs and heads that are left (`subtune_jax.pruning`).
  """

  width: int
  depth: int
  heads: int
  patch_size: int
  mlp_width: int | None = None
  pool: str = "token"
  class_token: bool = True
  registers: int = 0
  pre_norm: bool = False
  activation: str = "gelu"
  qkv_bias: bool = True
  patch_bias: bool = True
  layer_scale: bool = False
  norm_epsilon: float = 1e-6
  projection: int | None = None
  normalize_features: bool = False
  drop_path: float = 0.0
  attention: vit_layers.Implementation | None = None
  pruned: channels.Widths = ()

  def __post_init__(self):
    if not 0 <= self.drop_path < 1:
      raise ValueError(f"drop_path is {self.drop_path}; it must lie in [0, 1)")
    choices.check("pool", self.pool, POOLS)
    choices.check("activation", self.activation, vit_layers.ACTIVATIONS)
    if self.attention is not None:
      choices.check("attention", self.attention, ("xla", "cudnn"))
    for key, value, by in (
      ("image_size", self.image_size, "patch_size"),
      ("width", self.width, "heads"),
    ):
      if value < 1 or value % getattr(self, by):
        raise ValueError(f"{key}={value} must be a multiple of {by}={getattr(self, by)}")
    if not self.class_token and self.pool.startswith("token"):
      raise ValueError(f"pool={self.pool!r} needs class_token=True; without, 'mean' or 'map'")
    super().__post_init__()

  @property
  def grid(self) -> int:
    """Patches along one side of an image."""
    return self.image_size // self.patch_size

  @property
  def is_random(self) -> bool:
    """See `Backbone.is_random`."""
    return self.drop_path > 0

  @property
  def block_names(self) -> tuple[str, ...]:
    """The embedding, "encoderblock_0" and on, the last norm; pooling and projection if any."""
    blocks = (f"encoderblock_{i}" for i in range(self.depth))
    return ("embedding", *blocks, "encoder_norm", *self._after_norm)

  @property
  def _after_norm(self) -> tuple[str, ...]:
    pooling = ("map_pool",) if self.pool == "map" else ()
    return pooling if self.projection is None else (*pooling, "projection")

  def check_images(self, x: jax.Array) -> None:
    """See `Backbone.check_images`; positions fix the size."""
    super().check_images(x)
    if x.shape[1:3] != (self.image_size, self.image_size):
      height, width = x.shape[1:3]
      raise ValueError(
        f"images are {height}x{width}, this ViT has positions for {self.image_size}x"
        f"{self.image_size}; build it with create(..., image_size={height}) for square images of "
        f"that size (a multiple of patch_size={self.patch_size})"
      )

  def make_block(self, block: str, name: str, use_batch_statistics: bool) -> nn.Module:
    """See `Backbone.make_block`; there is no BatchNorm."""
    del use_batch_statistics
    shared = {"epsilon": self.norm_epsilon, "dtype": self.dtype, "name": name}
    normalize = self.normalize_features and block == self.block_names[-1]
    if block == "embedding":
      return Embedding(
        width=self.width,
        patch_size=self.patch_size,
        patch_bias=self.patch_bias,
        class_token=self.class_token,
        registers=self.registers,
        norm=self.pre_norm,
        **shared,
      )
    if block == "encoder_norm":
      skip = int(self.class_token) + self.registers
      return EncoderNorm(pool=self.pool, skip=skip, normalize=normalize, **shared)
    if block == "projection":
      assert self.projection is not None  # else there is no such block
      return Projection(self.projection, normalize, self.dtype, name=name)
    mlp_width = 4 * self.width if self.mlp_width is None else self.mlp_width
    pruned = functools.partial(channels.width, channels.of_block(self.pruned, block))
    hidden = pruned("mlp/in", mlp_width)
    mlp = functools.partial(vit_layers.Mlp, hidden, self.activation, self.dtype)
    implementation = {"implementation": self.attention, "dtype": self.dtype}
    if block == "map_pool":
      probe = functools.partial(vit_layers.ProbeAttention, self.heads, **implementation)
      return vit_layers.MapPool(probe, mlp, normalize, **shared)
    kept = pruned("attention/qkv", self.heads)
    attention = functools.partial(
      vit_layers.Attention, self.heads, self.qkv_bias, **implementation, kept=kept
    )
    drop = self.drop_path * int(block.rpartition("_")[2]) / max(self.depth - 1, 1)
    return vit_layers.Block(attention, mlp, self.layer_scale, drop, **shared)
