"""Names of ViT and DINOv2 in Hugging Face transformers: of its files and, since 5, in memory."""

from collections.abc import Iterable, Mapping

from flax import linen as nn

from subtune_jax.data import preprocess
from subtune_jax.models import vit
from subtune_jax.weights.naming import base, vit_layout

_OUTSIDE = {
  "embedding/patch": "embeddings.patch_embeddings.projection.",
  "embedding/class_token": "embeddings.cls_token",
  "embedding/positions": "embeddings.position_embeddings",
  "embedding/registers": "embeddings.register_tokens",
  "encoder_norm/norm": "layernorm.",
  "head": "/classifier.",
}
_ATTENTION_FILE: dict[str, vit_layout.Names] = {
  "attention/qkv": tuple(f"attention.attention.{part}." for part in ("query", "key", "value")),
  "attention/out": "attention.output.dense.",
}
_ATTENTION_MEMORY: dict[str, vit_layout.Names] = {
  "attention/qkv": tuple(f"attention.{part}_proj." for part in "qkv"),
  "attention/out": "attention.o_proj.",
}
_NORMS = {"norm1": "layernorm_before.", "norm2": "layernorm_after."}
_MLP = {"mlp/in": "mlp.fc1.", "mlp/out": "mlp.fc2."}
_DINOV2 = {
  **_MLP,
  "norm1": "norm1.",
  "norm2": "norm2.",
  "scale1": "layer_scale1.lambda1",
  "scale2": "layer_scale2.lambda1",
}
_VIT_FILE = {"mlp/in": "intermediate.dense.", "mlp/out": "output.dense."}


def _dropped(model: nn.Module, prefix: str, wanted: frozenset[str]) -> Iterable[base.Dropped]:
  del model, wanted
  yield vit_layout.group("pooler", prefix, *vit_layout.linear("pooler.dense"))
  yield vit_layout.group("mask token", prefix, "embeddings.mask_token")


def _vit(title: str, block: str, *tables: Mapping[str, vit_layout.Names]) -> base.Scheme:
  inside = {**_NORMS, **{key: names for table in tables for key, names in table.items()}}
  layout = vit_layout.Layout(_OUTSIDE, block, inside, ("vit.", ""))
  return vit_layout.scheme(title, vit.ViT, layout, dropped=_dropped)


def _dinov2(title: str, attention: dict[str, vit_layout.Names]) -> base.Scheme:
  prefixes = ("dinov2.", "dinov2_with_registers.", "")
  layout = vit_layout.Layout(_OUTSIDE, "encoder.layer.{}.", {**_DINOV2, **attention}, prefixes)
  seen = preprocess.PRESETS["imagenet_bicubic"]
  return vit_layout.scheme(title, vit.ViT, layout, dropped=_dropped, preprocessing=seen)


SCHEMES: tuple[base.Scheme, ...] = (
  _vit("transformers ViT", "encoder.layer.{}.", _ATTENTION_FILE, _VIT_FILE),
  _vit("transformers ViT's state_dict", "layers.{}.", _ATTENTION_MEMORY, _MLP),
  _dinov2("transformers DINOv2", _ATTENTION_FILE),
  _dinov2("transformers DINOv2's state_dict", _ATTENTION_MEMORY),
)
