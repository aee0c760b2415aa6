"""Names of CLIP's ResNets in OpenAI's files: torchvision's inside "visual.", and `attnpool`."""

from collections.abc import Iterable

from flax import linen as nn

from subtune_jax.data import preprocess
from subtune_jax.models import clip_resnet
from subtune_jax.weights.naming import base, clip_text, resnet


def _source(model: nn.Module, path: str, prefix: str) -> base.Source | None:
  del model
  if path in base.HEAD:
    return None  # the classes are text
  _, block, *rest = path.split("/")
  if block != "attention_pool":
    return resnet.conv_bn(path, prefix)
  if rest == ["positional_embedding"]:
    return base.ordered(f"{prefix}attnpool.positional_embedding")
  layer, field = rest
  key = f"{prefix}attnpool.{layer}_proj."
  return base.ordered(f"{key}weight", 1, 0) if field == "kernel" else base.ordered(f"{key}bias")


def _dropped(model: nn.Module, prefix: str, wanted: frozenset[str]) -> Iterable[base.Dropped]:
  del model
  return (base.counters(wanted), *(clip_text.dropped(prefix) if prefix else ()))


SCHEMES: tuple[base.Scheme, ...] = (
  base.Scheme(
    "OpenAI CLIP ResNet",
    clip_resnet.ClipResNet,
    _source,
    ("visual.", ""),
    _dropped,
    preprocess.PRESETS["clip"],
  ),
)
