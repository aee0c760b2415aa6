"""Names of ConvNeXt's tensors in the files of four libraries.

In all of them a linear layer is [out, in] and a convolution [out, in, h, w].
"""

from collections.abc import Callable

from flax import linen as nn
import numpy as np

from subtune_jax.data import preprocess
from subtune_jax.models import convnext
from subtune_jax.weights.naming import base

_FIELDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}

# (stage, unit, layer) -> the layer's name in the file; stage and unit count from 1. The layers are
# those of a unit, or "conv" and "norm" of the stem (stage 0) or of the downsampling (unit 0).
_Layers = Callable[[int, int, str], str]
_SourceOf = Callable[[nn.Module, str, str], base.Source | None]


def _torchvision(stage: int, unit: int, layer: str) -> str:
  if stage == 0:
    return {"conv": "features.0.0", "norm": "features.0.1"}[layer]
  if unit == 0:
    return f"features.{2 * stage - 2}.{['norm', 'conv'].index(layer)}"
  numbers = {"depthwise": 0, "norm": 2, "expand": 3, "project": 5}
  inner = "layer_scale" if layer == "layer_scale" else f"block.{numbers[layer]}"
  return f"features.{2 * stage - 1}.{unit - 1}.{inner}"


def _timm(stage: int, unit: int, layer: str) -> str:
  if stage == 0:
    return {"conv": "stem.0", "norm": "stem.1"}[layer]
  if unit == 0:
    return f"stages.{stage - 1}.downsample.{['norm', 'conv'].index(layer)}"
  names = {"depthwise": "conv_dw", "norm": "norm", "expand": "mlp.fc1", "project": "mlp.fc2",
           "layer_scale": "gamma"}  # fmt: skip
  return f"stages.{stage - 1}.blocks.{unit - 1}.{names[layer]}"


def _transformers(stage: int, unit: int, layer: str) -> str:
  if stage == 0:
    return {"conv": "embeddings.patch_embeddings", "norm": "embeddings.layernorm"}[layer]
  where = f"encoder.stages.{stage - 1}"
  if unit == 0:
    return f"{where}.downsampling_layer.{['norm', 'conv'].index(layer)}"
  names = {"depthwise": "dwconv", "norm": "layernorm", "expand": "pwconv1", "project": "pwconv2",
           "layer_scale": "layer_scale_parameter"}  # fmt: skip
  return f"{where}.layers.{unit - 1}.{names[layer]}"


def _facebook(stage: int, unit: int, layer: str) -> str:
  if stage == 0:
    return {"conv": "downsample_layers.0.0", "norm": "downsample_layers.0.1"}[layer]
  if unit == 0:
    return f"downsample_layers.{stage - 1}.{['norm', 'conv'].index(layer)}"
  names = {"depthwise": "dwconv", "norm": "norm", "expand": "pwconv1", "project": "pwconv2",
           "layer_scale": "gamma"}  # fmt: skip
  return f"stages.{stage - 1}.{unit - 1}.{names[layer]}"


def _source(layers: _Layers, norm: str, head: str, own_prefix: str = "") -> _SourceOf:
  """Returns a scheme's `source`.

  Args:
    layers: names of all layers but two.
    norm: name of the one in the top.
    head: name of the classifier.
    own_prefix: a prefix that the classifier's name never has.
  """

  def source(model: nn.Module, path: str, prefix: str) -> base.Source | None:
    del model
    collection, block, *rest = path.split("/")
    if collection != "params":
      return None
    if block == "head":
      key = f"{prefix.removesuffix(own_prefix)}{head}.{_FIELDS[rest[-1]]}"
      return base.ordered(key, 1, 0) if rest == ["kernel"] else base.ordered(key)
    if block == "top":
      return base.ordered(f"{prefix}{norm}.{_FIELDS[rest[-1]]}")
    if block == "stem":
      return _tensor(prefix + layers(0, 0, rest[0]), rest[0], rest[-1])
    stage, unit = convnext.stage_and_unit(f"{block}/{rest[0]}")
    if rest[1] == "downsample":
      return _tensor(prefix + layers(stage, 0, rest[2]), rest[2], rest[-1])
    return _tensor(prefix + layers(stage, unit, rest[1]), rest[1], rest[-1])

  return source


def _tensor(name: str, layer: str, field: str) -> base.Source:
  """Returns the source of one field of a layer."""
  if layer == "layer_scale":
    return base.Source((name,), _squeeze)
  key = f"{name}.{_FIELDS[field]}"
  if field != "kernel":
    return base.ordered(key)
  return (
    base.ordered(key, 1, 0) if layer in ("expand", "project") else base.ordered(key, 2, 3, 1, 0)
  )


def _squeeze(tensor: np.ndarray) -> np.ndarray:
  """Layer scale as [c]; torchvision's is [c, 1, 1]."""
  return tensor[:, 0, 0] if tensor.ndim == 3 and tensor.shape[1:] == (1, 1) else tensor


def _scheme(
  title: str, source: _SourceOf, prefixes: tuple[str, ...] = ("",), preset: str | None = None
) -> base.Scheme:
  preprocessing = preprocess.PRESETS[preset] if preset else None
  return base.Scheme(title, convnext.ConvNeXt, source, prefixes, preprocessing=preprocessing)


# torchvision's crop depends on the size of the model, timm's statistics on the pretraining.
SCHEMES: tuple[base.Scheme, ...] = (
  _scheme("torchvision ConvNeXt", _source(_torchvision, "classifier.0", "classifier.2")),
  _scheme("timm ConvNeXt", _source(_timm, "head.norm", "head.fc")),
  _scheme(
    "transformers ConvNeXt",
    _source(_transformers, "layernorm", "classifier", "convnext."),
    ("", "convnext."),
    "imagenet_bicubic",
  ),
  _scheme(
    "Facebook's original ConvNeXt", _source(_facebook, "norm", "head"), preset="imagenet_bicubic"
  ),
)
