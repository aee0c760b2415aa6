"""Names of ViTs in timm's files, which DeiT, DINO, DINOv2 and MoCo v3 share."""

from collections.abc import Iterable

from flax import linen as nn

from subtune_jax.data import preprocess
from subtune_jax.models import vit
from subtune_jax.weights.naming import base, vit_layout

_OUTSIDE = {
  "embedding/patch": "patch_embed.proj.",
  "embedding/class_token": "cls_token",
  "embedding/positions": "pos_embed",
  "embedding/norm": "norm_pre.",
  "encoder_norm/norm": "norm.",
}
_INSIDE = {
  "norm1": "norm1.",
  "attention/qkv": "attn.qkv.",
  "attention/out": "attn.proj.",
  "scale1": "ls1.gamma",
  "norm2": "norm2.",
  "mlp/in": "mlp.fc1.",
  "mlp/out": "mlp.fc2.",
  "scale2": "ls2.gamma",
}
_CLASSIFIER = {"head": "head."}
_BACKBONE = "backbone."
_BASE, _MOMENTUM = "base_encoder.", "momentum_encoder."


def _layout(registers: str) -> vit_layout.Layout:
  outside = {**_OUTSIDE, **_CLASSIFIER, "embedding/registers": registers}
  return vit_layout.Layout(outside, "blocks.{}.", _INSIDE)


def _dropped(model: nn.Module, prefix: str, wanted: frozenset[str]) -> Iterable[base.Dropped]:
  """The mask token; in a DINO checkpoint, where the backbone has a prefix, the projection head."""
  del model, wanted
  yield vit_layout.group("mask token", prefix, "mask_token")
  if prefix.endswith(_BACKBONE):
    mlp = vit_layout.linear("mlp.0", "mlp.2", "mlp.4")
    last = ("last_layer.weight_g", "last_layer.weight_v")
    start = prefix.removesuffix(_BACKBONE) + "head."
    yield vit_layout.group("DINO's projection head", start, *mlp, *last)


def _moco_mlp(layers: int) -> tuple[str, ...]:
  """MoCo's MLPs: linear without bias and BatchNorm (the last without scale and bias), ReLU."""
  statistics = ("running_mean", "running_var", "num_batches_tracked")
  names = []
  for i in range(layers):
    fields = statistics if i == layers - 1 else ("weight", "bias", *statistics)
    names += [f"{3 * i}.weight", *(f"{3 * i + 1}.{field}" for field in fields)]
  return tuple(names)


def _moco_dropped(model: nn.Module, prefix: str, wanted: frozenset[str]) -> Iterable[base.Dropped]:
  del model
  start = prefix.removesuffix(_BASE)
  head = tuple(f"head.{name}" for name in _moco_mlp(3))
  encoder = (key.removeprefix(prefix) for key in wanted)
  yield vit_layout.group("projection head", prefix, *head)
  yield vit_layout.group("momentum encoder", start + _MOMENTUM, *encoder, *head)
  yield vit_layout.group("predictor", f"{start}predictor.", *_moco_mlp(2))


_MOCO = vit_layout.Layout(_OUTSIDE, "blocks.{}.", _INSIDE, (_BASE,))

SCHEMES: tuple[base.Scheme, ...] = (
  vit_layout.scheme("timm ViT", vit.ViT, _layout("reg_token"), dropped=_dropped),
  vit_layout.scheme("DINOv2's original", vit.ViT, _layout("register_tokens"), dropped=_dropped),
  vit_layout.scheme(
    "MoCo v3 ViT",
    vit.ViT,
    _MOCO,
    dropped=_moco_dropped,
    preprocessing=preprocess.PRESETS["imagenet"],
  ),
)
