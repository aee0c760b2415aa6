"""Channels that have to go together: what writes them and what reads them, family by family.

A shortcut adds maps, so all that writes into it loses the same channels; a depthwise convolution
has the channels of what it reads. Where a LayerNorm reads the shortcut (ConvNeXt, ViT) its channels
all stay: the mean and the variance over them would be others. There the hidden channels of MLPs
go, and whole heads.
"""

from collections.abc import Callable
import dataclasses
import itertools
from typing import Any

import numpy as np

from subtune_jax.models import convnext, efficientnet, resnet, vit

HEAD = "head"


@dataclasses.dataclass
class Group:
  """Channels, or heads, that are kept or pruned as one.

  Attributes:
    name: of the first layer that writes them.
    writers: layers (convolution with BatchNorm, or linear) whose outputs they are.
    readers: layers that they are inputs of, or "head".
    size: channels of each, side by side: 1, or those of a head.
    parts: how often a writer has them: 1, or 3 for queries, keys and values.
  """

  name: str
  writers: list[str]
  readers: list[str] = dataclasses.field(default_factory=list)
  size: int = 1
  parts: int = 1

  def written(self, kept: np.ndarray, channels: int) -> np.ndarray:
    """Positions of what stays among the channels out of a writer."""
    return np.arange(channels).reshape(self.parts, -1, self.size)[:, kept].reshape(-1)

  def read(self, kept: np.ndarray, channels: int) -> np.ndarray:
    """Positions of what stays among the channels into a reader."""
    return np.arange(channels).reshape(-1, self.size)[kept].reshape(-1)


def of(model: Any) -> list[Group]:
  """The groups of a network, input to output.

  Raises:
    ValueError: a family that cannot be pruned.
  """
  known = _FAMILIES.get(type(model))
  if known is None:
    names = ", ".join(family.__name__ for family in _FAMILIES)
    raise ValueError(f"a {type(model).__name__} cannot be pruned; allowed: {names}")
  return known(model)


def _resnet(model: resnet.ResNet) -> list[Group]:
  stream = Group("stem/conv1", ["stem/conv1"])
  groups = [stream]
  for block in model.block_names[1:]:
    layers = [f"{block}/conv{i}" for i in (1, 2, 3)[: 3 if model.bottleneck else 2]]
    before = stream
    before.readers.append(layers[0])
    for writer, reader in itertools.pairwise(layers):
      groups.append(Group(writer, [writer], [reader]))
    if model.projects(block):
      before.readers.append(f"{block}/downsample")
      stream = Group(layers[-1], [f"{block}/downsample"])
      groups.append(stream)
    stream.writers.append(layers[-1])
  stream.readers.append(HEAD)
  return groups


def _efficientnet(model: efficientnet.EfficientNet) -> list[Group]:
  stream = Group("stem/conv", ["stem/conv"])
  groups = [stream]
  for number, spec in enumerate(model.blocks):
    expand, depthwise, project = (
      f"block{number}/{layer}" for layer in ("expand", "depthwise", "project")
    )
    if spec.expand == 1:
      stream.writers.append(depthwise)
      stream.readers.append(project)
    else:
      stream.readers.append(expand)
      groups.append(Group(expand, [expand, depthwise], [project]))
    if spec.stride == 1 and spec.features_in == spec.features_out:  # a shortcut
      stream.writers.append(project)
    else:
      stream = Group(project, [project])
      groups.append(stream)
  stream.readers.append("top/conv")
  groups.append(Group("top/conv", ["top/conv"], [HEAD]))
  return groups


def _convnext(model: convnext.ConvNeXt) -> list[Group]:
  units = model.block_names[1:-1]
  return [Group(f"{unit}/expand", [f"{unit}/expand"], [f"{unit}/project"]) for unit in units]


def _vit(model: vit.ViT) -> list[Group]:
  groups = []
  for block in model.block_names:
    if block.startswith("encoderblock_"):
      heads, size = f"{block}/attention/qkv", model.width // model.heads
      groups.append(Group(heads, [heads], [f"{block}/attention/out"], size, parts=3))
    if block.startswith(("encoderblock_", "map_pool")):
      groups.append(Group(f"{block}/mlp/in", [f"{block}/mlp/in"], [f"{block}/mlp/out"]))
  return groups


_FAMILIES: dict[type, Callable[[Any], list[Group]]] = {
  resnet.ResNet: _resnet,
  efficientnet.EfficientNet: _efficientnet,
  convnext.ConvNeXt: _convnext,
  vit.ViT: _vit,
}
