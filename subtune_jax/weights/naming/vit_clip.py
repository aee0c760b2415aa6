"""Names of CLIP's and SigLIP's image towers, in OpenAI's files and Hugging Face transformers'."""

from collections.abc import Iterable

from flax import linen as nn

from subtune_jax.data import preprocess
from subtune_jax.models import vit
from subtune_jax.weights.naming import base, clip_text, vit_layout

_OPENAI_PREFIXES = ("visual.", "")
_OPENAI = vit_layout.Layout(
  {
    "embedding/patch": "conv1.",
    "embedding/class_token": "class_embedding",
    "embedding/positions": "positional_embedding",
    "embedding/norm": "ln_pre.",
    "encoder_norm/norm": "ln_post.",
    "projection/kernel": "proj",
  },
  "transformer.resblocks.{}.",
  {
    "norm1": "ln_1.",
    "attention/qkv": "attn.in_proj_",
    "attention/out": "attn.out_proj.",
    "norm2": "ln_2.",
    "mlp/in": "mlp.c_fc.",
    "mlp/out": "mlp.c_proj.",
  },
  _OPENAI_PREFIXES,
)

_PREFIXES = ("vision_model.", "")
_BLOCK = "encoder.layers.{}."
_INSIDE: dict[str, vit_layout.Names] = {
  "norm1": "layer_norm1.",
  "attention/qkv": tuple(f"self_attn.{part}_proj." for part in "qkv"),
  "attention/out": "self_attn.out_proj.",
  "norm2": "layer_norm2.",
  "mlp/in": "mlp.fc1.",
  "mlp/out": "mlp.fc2.",
}
_SHARED = {
  "embedding/patch": "embeddings.patch_embedding.",
  "embedding/positions": "embeddings.position_embedding.weight",
  "encoder_norm/norm": "post_layernorm.",
  "head": "/classifier.",
}
_CLIP = {
  **_SHARED,
  "embedding/class_token": "embeddings.class_embedding",
  "embedding/norm": "pre_layrnorm.",  # so misspelt in the files
  "projection": "/visual_projection.",
}
_SIGLIP = {
  **_SHARED,
  "map_pool/probe": "head.probe",
  "map_pool/attention/q": "head.attention.in_proj_",
  "map_pool/attention/kv": "head.attention.in_proj_",
  "map_pool/attention/out": "head.attention.out_proj.",
  "map_pool/norm": "head.layernorm.",
  "map_pool/mlp/in": "head.mlp.fc1.",
  "map_pool/mlp/out": "head.mlp.fc2.",
}
_TEXT_LAYERS = 12  # of CLIP's text towers with a ViT-B or ViT-L, and of SigLIP's base size


def _clip_dropped(model: nn.Module, prefix: str, wanted: frozenset[str]) -> Iterable[base.Dropped]:
  del model, wanted
  start = vit_layout.outer(prefix, _PREFIXES)
  yield vit_layout.group("text tower", start, *_text_tower(), "text_projection.weight")
  for tower, what in ((prefix, "image"), (f"{start}text_model.", "text")):
    yield vit_layout.group(f"position numbers ({what})", tower, "embeddings.position_ids")


def _siglip_dropped(
  model: nn.Module, prefix: str, wanted: frozenset[str]
) -> Iterable[base.Dropped]:
  """The text tower, and for a model that pools otherwise the pooling by attention."""
  del wanted
  start = vit_layout.outer(prefix, _PREFIXES)
  head = vit_layout.linear("text_model.head")
  yield vit_layout.group("text tower", start, *_text_tower(), *head, "logit_bias")
  if model.pool != "map":
    linear = vit_layout.linear("attention.out_proj", "layernorm", "mlp.fc1", "mlp.fc2")
    names = ("probe", "attention.in_proj_weight", "attention.in_proj_bias", *linear)
    yield vit_layout.group("pooling by attention", f"{prefix}head.", *names)


def _text_tower() -> tuple[str, ...]:
  """What CLIP's and SigLIP's text towers share, and the logit scale."""
  parts = (f"self_attn.{part}_proj" for part in ("q", "k", "v", "out"))
  block = (*parts, "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
  layers = (f"encoder.layers.{i}.{layer}" for i in range(_TEXT_LAYERS) for layer in block)
  embeddings = ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight")
  names = (*embeddings, *vit_layout.linear(*layers, "final_layer_norm"))
  return ("logit_scale", *(f"text_model.{name}" for name in names))


def _openai_dropped(
  model: nn.Module, prefix: str, wanted: frozenset[str]
) -> Iterable[base.Dropped]:
  del model, wanted
  return clip_text.dropped(prefix) if prefix.endswith("visual.") else ()


SCHEMES: tuple[base.Scheme, ...] = (
  vit_layout.scheme(
    "OpenAI CLIP ViT",
    vit.ViT,
    _OPENAI,
    dropped=_openai_dropped,
    preprocessing=preprocess.PRESETS["clip"],
  ),
  vit_layout.scheme(
    "transformers CLIP",
    vit.ViT,
    vit_layout.Layout(_CLIP, _BLOCK, _INSIDE, _PREFIXES),
    dropped=_clip_dropped,
    preprocessing=preprocess.PRESETS["clip"],
  ),
  vit_layout.scheme(
    "transformers SigLIP",
    vit.ViT,
    vit_layout.Layout(_SIGLIP, _BLOCK, _INSIDE, _PREFIXES),
    dropped=_siglip_dropped,
    preprocessing=preprocess.PRESETS["half_bicubic"],
  ),
)
