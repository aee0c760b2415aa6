"""The names of the backbones, and how each is built."""

import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp

from subtune_jax.data import choices
from subtune_jax.models import (
  backbone,
  bit_resnet,
  clip_resnet,
  convnext,
  efficientnet,
  resnet,
  vit,
)

_NOT_OPTIONS = ("parent", "name", "num_classes", "dtype")


@dataclasses.dataclass(frozen=True)
class _Entry:
  """A family of backbones and the fields that make one of it."""

  family: type[backbone.Backbone]
  fields: dict[str, Any]

  def options(self) -> tuple[str, ...]:
    """Returns the fields that a caller may set."""
    names = (field.name for field in dataclasses.fields(self.family))
    return tuple(name for name in names if name not in _NOT_OPTIONS)


def _lite(width: float, depth: float, image_size: int) -> _Entry:
  blocks = efficientnet.lite_blocks(width, depth)
  return _Entry(efficientnet.EfficientNet, {"blocks": blocks, "image_size": image_size})


def _convnext(depths: tuple[int, ...], first_width: int) -> _Entry:
  widths = tuple(first_width * 2**stage for stage in range(len(depths)))
  return _Entry(convnext.ConvNeXt, {"depths": depths, "widths": widths})


def _resnet(stage_sizes: tuple[int, ...], bottleneck: bool, **fields: Any) -> _Entry:
  return _Entry(resnet.ResNet, {"stage_sizes": stage_sizes, "bottleneck": bottleneck, **fields})


_VIT_SIZES = {  # letter of the name -> width, depth, heads
  "ti": (192, 12, 3),
  "s": (384, 12, 6),
  "b": (768, 12, 12),
  "l": (1024, 24, 16),
}


def _vit(letter: str, patch_size: int, **fields: Any) -> _Entry:
  width, depth, heads = _VIT_SIZES[letter]
  shape = {"width": width, "depth": depth, "heads": heads, "patch_size": patch_size}
  return _Entry(vit.ViT, {**shape, **fields})


def _clip_vit(letter: str, patch_size: int, projection: int) -> _Entry:
  fields = {"projection": projection, "pre_norm": True, "patch_bias": False}
  return _vit(letter, patch_size, activation="quick_gelu", norm_epsilon=1e-5, **fields)


def _dinov2(letter: str, registers: int = 0) -> _Entry:
  return _vit(letter, 14, layer_scale=True, pool="token_mean", registers=registers)


_ENTRIES: dict[str, _Entry] = {
  "efficientnet_lite0": _lite(1.0, 1.0, 224),
  "efficientnet_lite1": _lite(1.0, 1.1, 240),
  "efficientnet_lite2": _lite(1.1, 1.2, 260),
  "convnext_tiny": _convnext((3, 3, 9, 3), 96),
  "convnext_small": _convnext((3, 3, 27, 3), 96),
  "convnext_base": _convnext((3, 3, 27, 3), 128),
  "resnet18": _resnet((2, 2, 2, 2), bottleneck=False),
  "resnet14": _resnet((2, 2, 2), bottleneck=False, stem="cifar", width=16, image_size=32),
  "resnet26": _resnet((4, 4, 4), bottleneck=False, stem="cifar", width=16, image_size=32),
  "resnet34": _resnet((3, 4, 6, 3), bottleneck=False),
  "resnet50": _resnet((3, 4, 6, 3), bottleneck=True),
  "resnet101": _resnet((3, 4, 23, 3), bottleneck=True),
  "clip_resnet50": _Entry(clip_resnet.ClipResNet, {"stage_sizes": (3, 4, 6, 3)}),
  "bit_resnet50": _Entry(bit_resnet.BitResNet, {"stage_sizes": (3, 4, 6, 3)}),
  **{f"vit_{letter}{patch}": _vit(letter, patch) for letter in _VIT_SIZES for patch in (16, 32)},
  "clip_vit_b16": _clip_vit("b", 16, 512),
  "clip_vit_b32": _clip_vit("b", 32, 512),
  "clip_vit_l14": _clip_vit("l", 14, 768),
  **{f"dinov2_vit_{letter}14": _dinov2(letter) for letter in ("s", "b", "l")},
  **{f"dinov2_reg_vit_{letter}14": _dinov2(letter, registers=4) for letter in ("s", "b", "l")},
  "siglip_vit_b16": _vit("b", 16, class_token=False, pool="map", activation="gelu_tanh"),
}


def names() -> tuple[str, ...]:
  """Returns the names that `create` takes, sorted."""
  return tuple(sorted(_ENTRIES))


def create(
  name: str, num_classes: int, dtype: jax.typing.DTypeLike = jnp.float32, **options: Any
) -> backbone.Backbone:
  """Builds a backbone with a linear head.

  Args:
    name: one of `names()`.
    num_classes: size of the head, at least 1.
    dtype: of the computation (`jnp.bfloat16` on accelerators). Parameters and BatchNorm statistics
      stay float32.
    **options: fields of the family's class that differ from the named model's, such as
      `image_size=160` or, for a ViT, `pool="mean"`; lists, as JSON has them, become tuples.

  Returns:
    A module with `block_names` and `apply(variables, x, start=, stop=, train_blocks=)`.

  Raises:
    ValueError: the name is not registered, `num_classes` is not a positive integer, or an option
      does not exist.
  """
  choices.check("model", name, names())
  is_integer = hasattr(num_classes, "__index__") and not isinstance(num_classes, bool)
  if not is_integer or operator.index(num_classes) < 1:
    raise ValueError(f"num_classes={num_classes!r} must be an integer of at least 1")
  num_classes = operator.index(num_classes)
  entry = _ENTRIES[name]
  for option in options:
    choices.check(f"option of {name}", option, entry.options())
  given = {name: _as_tuples(value) for name, value in options.items()}
  return entry.family(num_classes=num_classes, dtype=dtype, **{**entry.fields, **given})


def _as_tuples(value: Any) -> Any:
  """The value with tuples for lists, at any depth: the fields of a model are hashable."""
  return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value
