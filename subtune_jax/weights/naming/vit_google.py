"""Names of ViTs in google-research's `.npz` files: AugReg's and the first ones.

Attention kernels lie there as [width, heads, head size], and as [heads, head size, width].

The first ViTs' ImageNet-21k weights have a hidden layer with tanh before the classifier
("pre_logits"), which their published fine-tuning drops with the classifier. So it does here: of
such a file no head is ever loaded, whatever the number of classes.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import numpy as np

from subtune_jax.data import preprocess
from subtune_jax.models import vit
from subtune_jax.weights.naming import base, positions

_OUTSIDE = {
  "embedding/patch": "embedding",
  "encoder_norm/norm": "Transformer/encoder_norm",
  "head": "head",
}
_ATTENTION = "MultiHeadDotProductAttention_1/"
_INSIDE = {
  "norm1": "LayerNorm_0",
  "attention/out": f"{_ATTENTION}out",
  "norm2": "LayerNorm_2",
  "mlp/in": "MlpBlock_3/Dense_0",
  "mlp/out": "MlpBlock_3/Dense_1",
}
_PRE_LOGITS = ("pre_logits/kernel", "pre_logits/bias")


def _source(model: nn.Module, path: str, prefix: str) -> base.Source | None:
  variable = path.removeprefix("params/")
  if variable == "embedding/class_token":
    return base.ordered(f"{prefix}cls")
  if variable == "embedding/positions":
    return _positions(model, f"{prefix}Transformer/posembed_input/pos_embedding")
  layer, _, field = variable.rpartition("/")
  unit, _, inner = layer.partition("/")
  if not unit.startswith("encoderblock_"):
    name = _OUTSIDE.get(layer)
    return base.ordered(f"{prefix}{name}/{field}") if name else None
  start = f"{prefix}Transformer/{unit}/"
  if inner == "attention/qkv":
    keys = (f"{start}{_ATTENTION}{part}/{field}" for part in ("query", "key", "value"))
    return base.Source(tuple(keys), _side_by_side(model.heads))
  name = _INSIDE.get(inner)
  if name is None:
    return None
  source = base.ordered(f"{start}{name}/{field}")
  return base.Source(source.keys, _merge_heads) if inner == "attention/out" else source


def _with_pre_logits(model: nn.Module, path: str, prefix: str) -> base.Source | None:
  """The same, but for the head: the hidden layer and the classifier together, with no class."""
  source = _source(model, path, prefix)
  if path not in base.HEAD or source is None:
    return source
  keys = (*source.keys, *(prefix + key for key in _PRE_LOGITS))
  return base.Source(keys, lambda classifier, *hidden: classifier[..., :0])


def _positions(model: Any, key: str) -> base.Source:
  grid, class_token = model.grid, model.class_token
  return base.Source((key,), lambda tensor: positions.fit(tensor, grid, class_token))


def _side_by_side(heads: int) -> Callable[..., np.ndarray]:
  """Queries, keys and values as one; those of another number of heads are stacked, to be told."""

  def convert(*tensors: np.ndarray) -> np.ndarray:
    first = tensors[0]
    if any(t.shape != first.shape for t in tensors) or first.ndim < 2 or first.shape[-2] != heads:
      return np.zeros((len(tensors), *first.shape), first.dtype)
    merged = [t.reshape(*t.shape[:-2], -1) for t in tensors]
    return np.concatenate(merged, axis=-1)

  return convert


def _merge_heads(tensor: np.ndarray) -> np.ndarray:
  return tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim == 3 else tensor


SCHEMES: tuple[base.Scheme, ...] = (
  base.Scheme("google-research ViT", vit.ViT, _source, preprocessing=preprocess.PRESETS["half"]),
  base.Scheme(
    "google-research ViT with pre_logits",
    vit.ViT,
    _with_pre_logits,
    preprocessing=preprocess.PRESETS["half"],
  ),
)
