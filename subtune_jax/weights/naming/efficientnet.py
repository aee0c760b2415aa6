"""Names of efficientnet_pytorch and its Lite relative, and of timm's EfficientNet-Lite.

The former are `_conv_stem`, `_blocks.3._bn1`, `_fc`; the latter `conv_stem`, `blocks.2.0.bn2`,
`classifier`.
"""

from collections.abc import Iterable
import itertools
from typing import Any

from flax import linen as nn

from subtune_jax.data import preprocess
from subtune_jax.models import efficientnet
from subtune_jax.weights.naming import base

_BN_NUMBER = {"expand": 0, "depthwise": 1, "project": 2}
_BN_FIELD = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_OUTER = {"stem": ("_conv_stem", "_bn0"), "top": ("_conv_head", "_bn1")}


# Of timm's blocks: without an expansion, and with one.
_TIMM_SEPARABLE = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}
_TIMM_INVERTED = {"expand": ("conv_pw", "bn1"), "depthwise": ("conv_dw", "bn2"),
                  "project": ("conv_pwl", "bn3")}  # fmt: skip
_TIMM_OUTER = {"stem": ("conv_stem", "bn1"), "top": ("conv_head", "bn2")}


def _source(model: nn.Module, path: str, prefix: str) -> base.Source:
  del model
  _, block, *rest = path.split("/")
  if block == "head":
    return _linear(f"{prefix}_fc", rest[0])
  layer, field = rest[0], rest[-1]
  if block in _OUTER:
    conv, bn = _OUTER[block]
  else:
    inner = f"_blocks.{block.removeprefix('block')}."
    conv, bn = f"{inner}_{layer}_conv", f"{inner}_bn{_BN_NUMBER[layer]}"
  return _tensor(prefix, conv, bn, field)


def _timm_source(model: Any, path: str, prefix: str) -> base.Source:
  _, block, *rest = path.split("/")
  if block == "head":
    return _linear(f"{prefix}classifier", rest[0])
  layer, field = rest[0], rest[-1]
  if block in _TIMM_OUTER:
    return _tensor(prefix, *_TIMM_OUTER[block], field)
  number = int(block.removeprefix("block"))
  stage, unit = _stage_and_unit(model, number)
  separable = model.blocks[number].expand == 1
  conv, bn = (_TIMM_SEPARABLE if separable else _TIMM_INVERTED)[layer]
  return _tensor(f"{prefix}blocks.{stage}.{unit}.", conv, bn, field)


def _stage_and_unit(model: Any, number: int) -> tuple[int, int]:
  """Both from 0; a stage is the blocks of one number of channels."""
  channels = [block.features_out for block in model.blocks[: number + 1]]
  stages = [len(list(members)) for _, members in itertools.groupby(channels)]
  return len(stages) - 1, stages[-1] - 1


def _linear(name: str, field: str) -> base.Source:
  return base.ordered(f"{name}.weight", 1, 0) if field == "kernel" else base.ordered(f"{name}.bias")


def _tensor(prefix: str, conv: str, bn: str, field: str) -> base.Source:
  if field == "kernel":  # OIHW to HWIO; a depthwise kernel's I is 1 in both
    return base.ordered(f"{prefix}{conv}.weight", 2, 3, 1, 0)
  return base.ordered(f"{prefix}{bn}.{_BN_FIELD[field]}")


def _dropped(model: nn.Module, prefix: str, wanted: frozenset[str]) -> Iterable[base.Dropped]:
  del model, prefix
  return (base.counters(wanted),)


SCHEMES = (
  base.Scheme(
    "efficientnet_pytorch",
    efficientnet.EfficientNet,
    _source,
    dropped=_dropped,
    preprocessing=preprocess.PRESETS["efficientnet_lite"],
  ),
  base.Scheme(
    "timm EfficientNet-Lite", efficientnet.EfficientNet, _timm_source, dropped=_dropped
  ),  # timm's own weights were trained to see other mean and std
)
