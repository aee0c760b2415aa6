"""Names of BiT's tensors in Google's .npz files, whose axes are ours."""

from flax import linen as nn
import numpy as np

from subtune_jax.data import preprocess
from subtune_jax.models import bit_resnet
from subtune_jax.weights.naming import base

_PREFIX = "resnet/"
_CONV = "standardized_conv2d/kernel"
_NORM_FIELDS = {"scale": "gamma", "bias": "beta"}
_LETTERS = {"1": "a", "2": "b", "3": "c"}


def _source(model: nn.Module, path: str, prefix: str) -> base.Source:
  del model
  if path in base.HEAD:
    return base.Source((f"{prefix}head/conv2d/{path.rpartition('/')[2]}",), _matrix)
  _, *where, layer, field = path.split("/")
  if where == ["stem"]:
    return base.ordered(f"{prefix}root_block/{_CONV}")
  if where == ["top"]:
    return base.ordered(f"{prefix}group_norm/{_NORM_FIELDS[field]}")
  stage, unit = where
  inside = f"{prefix}{stage}/unit{int(unit.removeprefix('unit')):02d}/"
  if layer == "downsample":
    return base.ordered(f"{inside}a/proj/{_CONV}")
  inside += _LETTERS[layer[-1]]
  if layer.startswith("norm"):
    return base.ordered(f"{inside}/group_norm/{_NORM_FIELDS[field]}")
  return base.ordered(f"{inside}/{_CONV}")


def _matrix(tensor: np.ndarray) -> np.ndarray:
  """The head as [features, classes]; the files have a 1x1 convolution."""
  return tensor[0, 0] if tensor.ndim == 4 and tensor.shape[:2] == (1, 1) else tensor


SCHEMES: tuple[base.Scheme, ...] = (
  base.Scheme(
    "Google's BiT .npz",
    bit_resnet.BitResNet,
    _source,
    (_PREFIX, ""),
    preprocessing=preprocess.PRESETS["half"],
  ),
)
