"""Names of efficientnet_pytorch and its Lite relative: `_conv_stem`, `_blocks.3._bn1`, `_fc`."""

from collections.abc import Iterable

from flax import linen as nn

from subtune_jax.data import preprocess
from subtune_jax.models import efficientnet
from subtune_jax.weights.naming import base

_BN_NUMBER = {"expand": 0, "depthwise": 1, "project": 2}
_BN_FIELD = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_OUTER = {"stem": ("_conv_stem", "_bn0"), "top": ("_conv_head", "_bn1")}


def _source(model: nn.Module, path: str, prefix: str) -> base.Source:
  del model
  _, block, *rest = path.split("/")
  if block == "head":
    kernel = rest == ["kernel"]
    return base.ordered(
      f"{prefix}_fc.{'weight' if kernel else 'bias'}", *((1, 0) if kernel else ())
    )
  layer, field = rest[0], rest[-1]
  if block in _OUTER:
    conv, bn = _OUTER[block]
  else:
    inner = f"_blocks.{block.removeprefix('block')}."
    conv, bn = f"{inner}_{layer}_conv", f"{inner}_bn{_BN_NUMBER[layer]}"
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
)
