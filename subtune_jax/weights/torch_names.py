"""Which tensor of the torch EfficientNet-Lite each of our variables comes from.

The names are those of efficientnet_pytorch and its Lite relative: `_conv_stem`, `_blocks.3._bn1`.
"""

from typing import NamedTuple

import numpy as np

_BN_NUMBER = {"expand": 0, "depthwise": 1, "project": 2}
_BN_FIELD = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_OUTER = {"stem": ("_conv_stem", "_bn0"), "top": ("_conv_head", "_bn1")}


class Source(NamedTuple):
  """A torch tensor's name, and the order of its axes that makes it ours."""

  key: str
  axes: tuple[int, ...]

  def convert(self, tensor: np.ndarray) -> np.ndarray:
    """Returns the tensor in our order of axes; one with another number of axes is unchanged."""
    return tensor.transpose(self.axes) if tensor.ndim == len(self.axes) else tensor


def source(path: str) -> Source:
  """Returns where a variable comes from.

  Args:
    path: from the root of the variables, such as "params/block3/expand/bn/scale".
  """
  _, block, *rest = path.split("/")
  if block == "head":
    return Source("_fc.weight", (1, 0)) if rest == ["kernel"] else Source("_fc.bias", (0,))
  layer, field = rest[0], rest[-1]
  if block in _OUTER:
    conv, bn = _OUTER[block]
  else:
    prefix = f"_blocks.{block.removeprefix('block')}."
    conv, bn = f"{prefix}_{layer}_conv", f"{prefix}_bn{_BN_NUMBER[layer]}"
  if field == "kernel":  # OIHW to HWIO; a depthwise kernel's I is 1 in both
    return Source(f"{conv}.weight", (2, 3, 1, 0))
  return Source(f"{bn}.{_BN_FIELD[field]}", (0,))


def is_counter(key: str) -> bool:
  """Tells whether a tensor only counts batches, which running statistics here do not need."""
  return key.rpartition(".")[2] == "num_batches_tracked"
