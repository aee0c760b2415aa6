"""Names of the text tower in CLIP's files, which an image backbone leaves unread."""

from subtune_jax.weights.naming import base

_LAYERS = 12  # of the text transformer, in all of OpenAI's models
_LAYER = (
  *("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"),
  *("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"),
  *("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
)
_OUTSIDE = (
  *("token_embedding.weight", "positional_embedding", "ln_final.weight", "ln_final.bias"),
  *("text_projection", "logit_scale"),
)
_SIZES = ("input_resolution", "context_length", "vocab_size")


def text_tower(prefix: str = "") -> frozenset[str]:
  """Returns the names of the text tower's tensors, `logit_scale` among them.

  Args:
    prefix: that every name in the file begins with.
  """
  inside = (f"transformer.resblocks.{i}.{name}" for i in range(_LAYERS) for name in _LAYER)
  return frozenset(prefix + name for name in (*inside, *_OUTSIDE))


def dropped(prefix: str) -> tuple[base.Dropped, ...]:
  """Returns what an image backbone leaves unread of a file of both towers.

  Args:
    prefix: of the image tower: "visual.", or another one that ends so.
  """
  outer = prefix.removesuffix("visual.")
  sizes = frozenset(outer + name for name in _SIZES)  # of OpenAI's TorchScript archives
  return (base.Dropped("text tower", text_tower(outer)), base.Dropped("sizes", sizes))
