"""Names of ViTs in torchvision's files; those of the first release number the MLP otherwise."""

from subtune_jax.models import vit
from subtune_jax.weights.naming import base, vit_layout

_OUTSIDE = {
  "embedding/patch": "conv_proj.",
  "embedding/class_token": "class_token",
  "embedding/positions": "encoder.pos_embedding",
  "encoder_norm/norm": "encoder.ln.",
  "head": "heads.head.",
}


def _layout(mlp_in: str, mlp_out: str) -> vit_layout.Layout:
  inside = {
    "norm1": "ln_1.",
    "attention/qkv": "self_attention.in_proj_",
    "attention/out": "self_attention.out_proj.",
    "norm2": "ln_2.",
    "mlp/in": mlp_in,
    "mlp/out": mlp_out,
  }
  return vit_layout.Layout(_OUTSIDE, "encoder.layers.encoder_layer_{}.", inside)


# The crop depends on the model and on the weights.
SCHEMES: tuple[base.Scheme, ...] = (
  vit_layout.scheme("torchvision ViT", vit.ViT, _layout("mlp.0.", "mlp.3.")),
  vit_layout.scheme("torchvision ViT of 0.12", vit.ViT, _layout("mlp.linear_1.", "mlp.linear_2.")),
)
