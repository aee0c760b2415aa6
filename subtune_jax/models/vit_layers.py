"""The layers of a vision transformer: attention, MLP, block, attention pooling.

Matrix products run in `dtype`; LayerNorm and softmax are computed in float32.
"""

from collections.abc import Callable
import functools
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from subtune_jax.models import batch_norm

LayerNorm = functools.partial(nn.LayerNorm, use_fast_variance=False)
_LAYER_SCALE = 1e-5  # at initialisation
_mlp_init = nn.initializers.xavier_uniform()
Implementation = Literal["xla", "cudnn"]  # of attention


def _quick_gelu(x: jax.Array) -> jax.Array:
  return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "quick_gelu": _quick_gelu,
}


def attend(
  q: jax.Array, k: jax.Array, v: jax.Array, implementation: Implementation | None
) -> jax.Array:
  """Scaled dot-product attention: [n, queries, heads, size] to the same.

  JAX has no gradient of cuDNN's kernel for an odd number of queries or tokens, such as the 197 of
  ViT-B/16: those are filled up.

  Args:
    q: [n, queries, heads, size].
    k: [n, tokens, heads, size].
    v: like `k`.
    implementation: of `jax.nn.dot_product_attention`.
  """
  odd = q.shape[1] % 2 or k.shape[1] % 2
  if implementation == "cudnn" and odd:
    return attend_filled_up(q, k, v, implementation)
  return jax.nn.dot_product_attention(q, k, v, implementation=implementation)


def attend_filled_up(
  q: jax.Array, k: jax.Array, v: jax.Array, implementation: Implementation | None
) -> jax.Array:
  """`attend` with even numbers of rows: a further token is masked, a further query dropped."""
  n, tokens = k.shape[:2]
  even = [jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v)]
  lengths = jnp.full((n,), tokens, jnp.int32)
  y = jax.nn.dot_product_attention(
    *even, key_value_seq_lengths=lengths, implementation=implementation
  )
  return y[:, : q.shape[1]]


class Attention(nn.Module):
  """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2): [n, tokens, width] to the same.

  Queries, keys and values come from one kernel [width, 3 * width], in this order and each with its
  heads one after the other.

  Attributes:
    heads: number of them; those of the unpruned network, whose size is width / heads.
    qkv_bias: queries, keys and values have one.
    implementation: see `attend`.
    dtype: of the computation.
    kept: heads that are left in a pruned network; None: all.
  """

  heads: int
  qkv_bias: bool = True
  implementation: Implementation | None = None
  dtype: Any = jnp.float32
  kept: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    n, tokens, width = x.shape
    heads, size = self.kept or self.heads, width // self.heads
    qkv = nn.Dense(3 * heads * size, use_bias=self.qkv_bias, dtype=self.dtype, name="qkv")(x)
    qkv = qkv.reshape(n, tokens, 3, heads, size)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    y = attend(q, k, v, self.implementation)
    return nn.Dense(width, dtype=self.dtype, name="out")(y.reshape(n, tokens, heads * size))


class ProbeAttention(nn.Module):
  """Multi-head attention of a probe [n, 1, width] to tokens [n, tokens, width]: [n, 1, width].

  Attributes:
    heads: number of them.
    implementation: see `attend`.
    dtype: of the computation.
  """

  heads: int
  implementation: Implementation | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, probe: jax.Array, x: jax.Array) -> jax.Array:
    n, tokens, width = x.shape
    q = nn.Dense(width, dtype=self.dtype, name="q")(probe)
    kv = nn.Dense(2 * width, dtype=self.dtype, name="kv")(x)
    q = q.reshape(n, 1, self.heads, width // self.heads)
    kv = kv.reshape(n, tokens, 2, self.heads, width // self.heads)
    k, v = kv[:, :, 0], kv[:, :, 1]
    y = attend(q, k, v, self.implementation)
    return nn.Dense(width, dtype=self.dtype, name="out")(y.reshape(n, 1, width))


class Mlp(nn.Module):
  """Two linear layers with an activation between them, at every token.

  Attributes:
    width: of the hidden layer.
    activation: a key of `ACTIVATIONS`.
    dtype: of the computation.
  """

  width: int
  activation: str = "gelu"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_mlp_init)
    y = ACTIVATIONS[self.activation](dense(self.width, name="in")(x))
    return dense(x.shape[-1], name="out")(y)


class Block(nn.Module):
  """Attention and MLP, each behind a LayerNorm and beside a shortcut: [n, tokens, width] to same.

  With `layer_scale` each of the two is multiplied by a learnt vector [width] (Touvron et al. 2021,
  "Going deeper with Image Transformers"). With `drop_path` each of the two is left out of an
  example with that probability, and divided by the rest of it otherwise, where the module is given
  a random key "dropout" (stochastic depth, Huang et al. 2016).
  """

  attention: Callable[..., nn.Module]
  mlp: Callable[..., nn.Module]
  layer_scale: bool = False
  drop_path: float = 0.0
  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    norm = functools.partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
    y = self._scaled(self.attention(name="attention")(norm(name="norm1")(x)), "scale1")
    x = x + self._dropped(y)
    y = self._scaled(self.mlp(name="mlp")(norm(name="norm2")(x)), "scale2")
    return x + self._dropped(y)

  def _dropped(self, y: jax.Array) -> jax.Array:
    if not self.drop_path or not self.has_rng("dropout"):
      return y
    keep = 1 - self.drop_path
    shape = (y.shape[0], *(1,) * (y.ndim - 1))
    kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
    return jnp.where(kept, y / keep, 0).astype(y.dtype)

  def _scaled(self, y: jax.Array, name: str) -> jax.Array:
    if not self.layer_scale:
      return y
    init = nn.initializers.constant(_LAYER_SCALE)
    scale = self.param(name, init, (y.shape[-1],), jnp.float32)
    return y * batch_norm.per_channel(scale, y.ndim).astype(self.dtype)


class MapPool(nn.Module):
  """Pooling by a learnt query, then an MLP with a shortcut: [n, tokens, width] to [n, width].

  The multihead attention pooling of SigLIP (Zhai et al. 2023) and of big_vision.
  """

  attention: Callable[..., nn.Module]
  mlp: Callable[..., nn.Module]
  normalize: bool = False
  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (1, 1, x.shape[-1])
    probe = self.param("probe", nn.initializers.xavier_uniform(), shape, jnp.float32)
    probe = jnp.broadcast_to(probe.astype(self.dtype), (x.shape[0], 1, x.shape[-1]))
    x = self.attention(name="attention")(probe, x)
    x = x + self.mlp(name="mlp")(LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x))
    return unit_length(x[:, 0]) if self.normalize else x[:, 0]


def unit_length(x: jax.Array) -> jax.Array:
  """Vectors [n, features] divided by their Euclidean length, computed in float32."""
  values = x.astype(jnp.float32)
  squares = jnp.sum(jnp.square(values), axis=-1, keepdims=True)
  return (values * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))).astype(x.dtype)
