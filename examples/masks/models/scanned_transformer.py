"""A transformer whose layers are one `nn.scan`, written after Flax's documentation of `nn.scan`.

https://flax-linen.readthedocs.io/en/latest/developer_notes/lift.html
"""

from flax import linen as nn
import jax


class Layer(nn.Module):
  """Pre-norm self-attention and MLP; the second value is what `nn.scan` would stack."""

  heads: int

  @nn.compact
  def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
    y = nn.LayerNorm(name="norm1")(x)
    x = x + nn.MultiHeadDotProductAttention(self.heads, name="attention")(y)
    y = nn.Dense(4 * x.shape[-1], name="up")(nn.LayerNorm(name="norm2")(x))
    return x + nn.Dense(x.shape[-1], name="down")(nn.gelu(y)), None


class ScannedTransformer(nn.Module):
  """Tokens [n, length] to logits [n, num_classes]; every parameter of a layer is [num_layers, ...].

  Attributes:
    vocabulary: number of tokens.
    width: channels.
    heads: of the attention.
    num_layers: of the scan.
    num_classes: size of the head.
  """

  vocabulary: int
  width: int
  heads: int
  num_layers: int
  num_classes: int

  def setup(self):
    self.embedding = nn.Embed(self.vocabulary, self.width)
    scanned = nn.scan(
      Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.num_layers
    )
    self.layers = scanned(self.heads)
    self.norm = nn.LayerNorm()
    self.head = nn.Dense(self.num_classes)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    x, _ = self.layers(self.embed(tokens), None)
    return self.classify(x)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Tokens [n, length] to [n, length, width]."""
    return self.embedding(tokens)

  def classify(self, x: jax.Array) -> jax.Array:
    """The last layer's output [n, length, width] to logits."""
    return self.head(self.norm(x).mean(axis=1))
