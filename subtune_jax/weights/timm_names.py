"""What timm's `config.json` says of a network: its architecture's name and what overrides it."""

from collections.abc import Mapping
import re
from typing import Any

from flax import linen as nn

from subtune_jax.models import convnext, efficientnet, resnet, vit
from subtune_jax.weights import errors

# timm/models/vision_transformer.py and deit.py: width, depth, heads; LayerNorm's epsilon is 1e-6.
VIT_SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12),
              "large": (1024, 24, 16)}  # fmt: skip
_VIT = re.compile(r"(?:vit|deit|deit3)_(tiny|small|base|large)_patch(\d+)_(.+)")
_CLIP, _QUICK, _DINOV2, _PLAIN = (
  r"clip_\d+",
  r"clip_quickgelu_\d+",
  r"(reg4_)?dinov2",
  r"\d+(_\w+)?",
)

# timm/models/resnet.py: names of the plain network; layers and whether it has bottlenecks.
_RESNET = re.compile(r"(?:tv_|gluon_)?resnet(18|34|50|101)(?:_v1b)?")
RESNETS = {"18": ([2, 2, 2, 2], False), "34": ([3, 4, 6, 3], False),
            "50": ([3, 4, 6, 3], True), "101": ([3, 4, 23, 3], True)}  # fmt: skip

# timm/models/convnext.py: depths, and channels of the first stage.
_CONVNEXT = re.compile(r"convnext_(tiny|small|base|large)(?:_in22k|_in22ft1k|_384_in22ft1k)?")
CONVNEXTS = {"tiny": ([3, 3, 9, 3], 96), "small": ([3, 3, 27, 3], 96),
              "base": ([3, 3, 27, 3], 128), "large": ([3, 3, 27, 3], 192)}  # fmt: skip

# timm/models/efficientnet.py: multiples of the width and of the depth.
_LITE = re.compile(r"tf_efficientnet_(lite[0-4])")
LITES = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2), "lite3": (1.2, 1.4),
         "lite4": (1.4, 1.8)}  # fmt: skip

# model_args -> our options; the rest could change the function in ways that are not known, but for
# those that change nothing or that the tensors or another field tell.
_ARGUMENTS = {"embed_dim": "width", "depth": "depth", "num_heads": "heads",
              "patch_size": "patch_size", "qkv_bias": "qkv_bias", "class_token": "class_token",
              "reg_tokens": "registers", "pre_norm": "pre_norm", "depths": "depths",
              "dims": "widths", "layers": "stage_sizes"}  # fmt: skip
_INERT_ARGUMENTS = {"num_classes", "img_size", "drop_rate", "drop_path_rate", "proj_drop_rate",
                    "attn_drop_rate", "pos_drop_rate", "dynamic_img_size", "mlp_ratio", "fc_norm",
                    "no_embed_class", "init_values", "global_pool"}  # fmt: skip
_INERT = {"architecture", "num_classes", "num_features", "global_pool", "model_args",
          "pretrained_cfg", "label_names", "label_descriptions"}  # fmt: skip
_POOLS = {"token": "token", "avg": "mean", "map": "map"}


def compare(
  config: Mapping[str, Any], model: nn.Module, head_is_loaded: bool
) -> tuple[list[str], list[str]]:
  """Compares what the file says with the model.

  Args:
    config: of the file.
    model: that the weights were read for.
    head_is_loaded: the model's head is the file's; then its pooling must be the file's too.

  Returns:
    A row for every difference, with both sides; and what could not be checked.
  """
  name = config["architecture"]
  stated = _options(name.partition(".")[0]) if isinstance(name, str) else None
  if stated is None or not isinstance(model, stated.pop("family")):
    return [f"architecture: {errors.shown(name)} in the file, a {type(model).__name__} here"], []
  arguments = config.get("model_args") or {}
  if not isinstance(arguments, dict):
    return [f"model_args: {errors.shown(arguments)} in the file, an object is expected"], []
  notes = [
    f"model_args.{key}: {errors.shown(arguments[key])} is a field that is not known"
    for key in sorted(set(arguments) - set(_ARGUMENTS) - _INERT_ARGUMENTS)
  ] + [f"{k}: a field that is not known" for k in sorted(set(config) - _INERT)]
  stated |= {_ARGUMENTS[key]: arguments[key] for key in arguments if key in _ARGUMENTS}
  if "init_values" in arguments and "layer_scale" in stated:
    stated["layer_scale"] = arguments["init_values"] is not None
  rows = []
  for option, theirs in stated.items():
    ours = getattr(model, option, None)
    ours = list(ours) if isinstance(ours, tuple) else ours
    if type(theirs) is not type(ours) or theirs != ours:
      rows.append(
        f"{option}: {errors.shown(theirs)} by {errors.shown(name)} and model_args, {ours!r} here"
      )
  features = config.get("num_features")
  if features is not None and features != _features(model):
    rows.append(
      f"num_features: {errors.shown(features)} in the file, {_features(model)} in the model"
    )
  pool = config.get("global_pool")
  if head_is_loaded and pool is not None:
    ours = getattr(model, "pool", "mean")
    if not isinstance(pool, str) or _POOLS.get(pool) != ours:
      rows.append(f"global_pool: {errors.shown(pool)} in the file, {ours!r} in the model")
  elif head_is_loaded and isinstance(model, vit.ViT):
    notes.append(f"global_pool: the file does not state it; {model.pool!r} in the model")
  return rows, notes


def _options(name: str) -> dict[str, Any] | None:
  """The family and our options of an architecture; None for one that is not known."""
  if found := _VIT.fullmatch(name):
    return _vit(found[1], int(found[2]), found[3])
  if found := _RESNET.fullmatch(name):
    sizes, bottleneck = RESNETS[found[1]]
    fields = {"stage_sizes": sizes, "bottleneck": bottleneck, "stem": "imagenet", "width": 64}
    return {"family": resnet.ResNet, **fields}
  if found := _CONVNEXT.fullmatch(name):
    depths, first = CONVNEXTS[found[1]]
    widths = [first * 2**stage for stage in range(len(depths))]
    fields = {"depths": depths, "widths": widths, "top_epsilon": 1e-6}
    return {"family": convnext.ConvNeXt, **fields}
  if found := _LITE.fullmatch(name):
    blocks = list(efficientnet.lite_blocks(*LITES[found[1]]))
    return {"family": efficientnet.EfficientNet, "blocks": blocks}
  return None


def _vit(size: str, patch_size: int, variant: str) -> dict[str, Any] | None:
  width, depth, heads = VIT_SIZES[size]
  fields: dict[str, Any] = {"width": width, "depth": depth, "heads": heads}
  fields |= {"patch_size": patch_size, "activation": "gelu", "norm_epsilon": 1e-6}
  fields |= {"pre_norm": False, "layer_scale": False}
  if re.fullmatch(rf"{_CLIP}|{_QUICK}", variant):
    quick = re.fullmatch(_QUICK, variant)
    fields |= {"pre_norm": True, "norm_epsilon": 1e-5}
    fields["activation"] = "quick_gelu" if quick else "gelu"
  elif dino := re.fullmatch(_DINOV2, variant):
    fields |= {"layer_scale": True, "registers": 4 if dino[1] else 0}
  elif not re.fullmatch(_PLAIN, variant):
    return None
  return {"family": vit.ViT, **fields}


def _features(model: nn.Module) -> int:
  """Channels of the features before pooling."""
  if isinstance(model, vit.ViT):
    return model.width
  if isinstance(model, convnext.ConvNeXt):
    return model.widths[-1]
  if isinstance(model, efficientnet.EfficientNet):
    return model.features
  expansion = resnet.EXPANSION if model.bottleneck else 1
  return model.width * 2 ** (len(model.stage_sizes) - 1) * expansion
