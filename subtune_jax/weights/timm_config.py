"""What timm and torchvision have to be told to build one of our networks.

The other direction, what timm's file says of a network, is `timm_names`, whose tables these are.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import linen as nn

from subtune_jax.models import convnext, efficientnet, resnet, vit
from subtune_jax.weights import timm_names

# timm has these names; other patch sizes are an argument.
_VIT_PATCHES = {"tiny": (16,), "small": (16, 32), "base": (16, 32), "large": (16, 32)}
_POOLS = {"token": "token", "mean": "avg"}


class Peer(NamedTuple):
  """A network of another library that computes what ours does.

  Attributes:
    scheme: title of the naming scheme of its tensors.
    name: of the architecture ("resnet50").
    arguments: of its constructor, beside the number of classes.
    global_pool: timm's word for the pooling.
    ends: the names of its first convolution and of its classifier.
  """

  scheme: str
  name: str
  arguments: dict[str, Any]
  ends: tuple[str, str]
  global_pool: str = "avg"


def timm(model: nn.Module) -> Peer:
  """timm's network that computes what the model does.

  Raises:
    ValueError: it has none, with what stands in the way.
  """
  return _peer("timm", _TIMM, model)


def torchvision(model: nn.Module) -> Peer:
  """torchvision's network likewise; the name is a class or a function of `torchvision.models`.

  Raises:
    ValueError: it has none, with what stands in the way.
  """
  return _peer("torchvision", _TORCHVISION, model)


def _peer(library: str, known: Mapping[type, Any], model: nn.Module) -> Peer:
  make = known.get(type(model))
  _check(library, model, {
    f"a {type(model).__name__} has no counterpart there": make is None,
    "channels of it were pruned": bool(getattr(model, "pruned", ())),
  })  # fmt: skip
  assert make is not None
  return make(model)


def _refused(library: str, model: nn.Module, rows: Mapping[str, bool]) -> ValueError:
  said = "; ".join(row for row, holds in rows.items() if holds)
  return ValueError(f"{library} cannot build this network: {said}")


def _check(library: str, model: nn.Module, rows: Mapping[str, bool]) -> None:
  if any(rows.values()):
    raise _refused(library, model, rows)


def _other(wanted: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
  """The arguments whose value is not that of the named architecture."""
  return {name: value for name, value in wanted.items() if named.get(name) != value}


# ------------------------------------------------------------------ ResNet


def _check_resnet(library: str, model: resnet.ResNet) -> None:
  _check(library, model, {
    f"stem={model.stem!r}, it has 'imagenet'": model.stem != "imagenet",
    f"width={model.width}, it has 64": model.width != 64,
    f"{len(model.stage_sizes)} stages, it has 4": len(model.stage_sizes) != 4,
  })  # fmt: skip


_RESNET_SCHEME, _RESNET_ENDS = "torchvision, timm or DINO ResNet", ("conv1", "fc")


def _timm_resnet(model: resnet.ResNet) -> Peer:
  _check_resnet("timm", model)
  layers = list(model.stage_sizes)
  for number, known in timm_names.RESNETS.items():
    if known == (layers, model.bottleneck):
      return Peer(_RESNET_SCHEME, f"resnet{number}", {}, _RESNET_ENDS)
  name = "resnet50" if model.bottleneck else "resnet18"
  return Peer(_RESNET_SCHEME, name, {"layers": layers}, _RESNET_ENDS)


def _torchvision_resnet(model: resnet.ResNet) -> Peer:
  _check_resnet("torchvision", model)
  made = _timm_resnet(model)
  if made.arguments:
    raise _refused("torchvision", model, {f"it has no ResNet of {model.stage_sizes} units": True})
  return made


# ------------------------------------------------------------------ ViT


def _timm_vit(model: vit.ViT) -> Peer:
  _check("timm", model, {
    f"pool={model.pool!r}, it has 'token' and 'mean'": model.pool not in _POOLS,
    f"norm_epsilon={model.norm_epsilon}, it has 1e-6": model.norm_epsilon != 1e-6,
    f"activation={model.activation!r}, it has 'gelu'": model.activation != "gelu",
    "it has a projection": model.projection is not None,
    "its features are normalised": model.normalize_features,
    "a bias of the patches and pre_norm exclude each other": model.patch_bias == model.pre_norm,
  })  # fmt: skip
  name = _vit_size(model)
  width, depth, heads = timm_names.VIT_SIZES[name]
  patch = model.patch_size if model.patch_size in _VIT_PATCHES[name] else 16
  named = {"img_size": 224, "patch_size": patch, "embed_dim": width, "depth": depth,
           "num_heads": heads, "mlp_ratio": 4.0, "qkv_bias": True, "class_token": True,
           "reg_tokens": 0, "no_embed_class": False, "pre_norm": False, "init_values": None,
           "global_pool": "token", "fc_norm": None}  # fmt: skip
  mlp = 4 * model.width if model.mlp_width is None else model.mlp_width
  pool = _POOLS[model.pool]
  wanted = {"img_size": model.image_size, "patch_size": model.patch_size,
            "embed_dim": model.width, "depth": model.depth, "num_heads": model.heads,
            "mlp_ratio": mlp / model.width, "qkv_bias": model.qkv_bias,
            "class_token": model.class_token, "reg_tokens": model.registers,
            "no_embed_class": bool(model.registers), "pre_norm": model.pre_norm,
            "init_values": 1e-5 if model.layer_scale else None,
            "global_pool": pool, "fc_norm": None if pool == "token" else False}  # fmt: skip
  architecture = f"vit_{name}_patch{patch}_224"
  ends = ("patch_embed.proj", "head")
  return Peer("timm ViT", architecture, _other(wanted, named), ends, pool)


def _vit_size(model: vit.ViT) -> str:
  sizes = timm_names.VIT_SIZES.items()
  return next((size for size, (width, *_) in sizes if width == model.width), "base")


def _torchvision_vit(model: vit.ViT) -> Peer:
  _check("torchvision", model, {
    f"pool={model.pool!r}, it has 'token'": model.pool != "token",
    f"norm_epsilon={model.norm_epsilon}, it has 1e-6": model.norm_epsilon != 1e-6,
    f"activation={model.activation!r}, it has 'gelu'": model.activation != "gelu",
    "it has a projection": model.projection is not None,
    "its features are normalised": model.normalize_features,
    "it has registers": model.registers > 0,
    "it has layer_scale": model.layer_scale,
    "it has pre_norm": model.pre_norm,
    "it lacks biases": not (model.qkv_bias and model.patch_bias),
  })  # fmt: skip
  mlp = 4 * model.width if model.mlp_width is None else model.mlp_width
  arguments = {"image_size": model.image_size, "patch_size": model.patch_size,
               "num_layers": model.depth, "num_heads": model.heads, "hidden_dim": model.width,
               "mlp_dim": mlp}  # fmt: skip
  ends = ("conv_proj", "heads.head")
  return Peer("torchvision ViT", "VisionTransformer", arguments, ends, "token")


# ------------------------------------------------------------------ ConvNeXt


def _check_convnext(library: str, model: convnext.ConvNeXt) -> None:
  _check(library, model, {
    f"{len(model.depths)} stages, it has 4": len(model.depths) != 4,
    f"top_epsilon={model.top_epsilon}, it has 1e-6": model.top_epsilon != 1e-6,
  })  # fmt: skip


def _timm_convnext(model: convnext.ConvNeXt) -> Peer:
  _check_convnext("timm", model)
  name, ends = _convnext_name(model), ("stem.0", "head.fc")
  if name is not None:
    return Peer("timm ConvNeXt", f"convnext_{name}", {}, ends)
  sizes = {"depths": list(model.depths), "dims": list(model.widths)}
  return Peer("timm ConvNeXt", "convnext_tiny", sizes, ends)


def _convnext_name(model: convnext.ConvNeXt) -> str | None:
  for name, (depths, first) in timm_names.CONVNEXTS.items():
    widths = [first * 2**stage for stage in range(4)]
    if (depths, widths) == (list(model.depths), list(model.widths)):
      return name
  return None


def _torchvision_convnext(model: convnext.ConvNeXt) -> Peer:
  _check_convnext("torchvision", model)
  name = _convnext_name(model)
  sizes = f"it has no ConvNeXt of depths {model.depths} and widths {model.widths}"
  _check("torchvision", model, {sizes: name is None})
  return Peer("torchvision ConvNeXt", f"convnext_{name}", {}, ("features.0.0", "classifier.2"))


# ------------------------------------------------------------------ EfficientNet-Lite


def _timm_efficientnet(model: efficientnet.EfficientNet) -> Peer:
  for name, scales in timm_names.LITES.items():
    if model.blocks == efficientnet.lite_blocks(*scales):
      plain = (model.stem_features, model.features) == (32, 1280)
      if plain:
        ends = ("conv_stem", "classifier")
        return Peer("timm EfficientNet-Lite", f"tf_efficientnet_{name}", {}, ends)
  raise _refused("timm", model, {"it has EfficientNet-Lite0 to Lite4 alone": True})


_TIMM = {
  resnet.ResNet: _timm_resnet,
  vit.ViT: _timm_vit,
  convnext.ConvNeXt: _timm_convnext,
  efficientnet.EfficientNet: _timm_efficientnet,
}
_TORCHVISION = {
  resnet.ResNet: _torchvision_resnet,
  vit.ViT: _torchvision_vit,
  convnext.ConvNeXt: _torchvision_convnext,
}
