"""Side-tuning: a frozen network and a trained copy of it, whose features are added.

arXiv 1912.13503 learns the weight of the sum; the LP-FT code adds the features as they are, and so
does this. The one block is "side"; `methods.side_tuning` trains "side/tuned" and the head.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax

from subtune_jax.models import backbone

NAMES = ("base", "tuned")


class SideTuned(backbone.Backbone):
  """Two copies of a backbone side by side, and one head on the sum of their features.

  Attributes:
    base: the backbone that is copied; its number of classes is not used.
  """

  base: backbone.Backbone

  @property
  def block_names(self) -> tuple[str, ...]:
    return ("side",)

  def make_block(self, block: str, name: str, use_batch_statistics: bool) -> nn.Module:
    return _Side(self.base, use_batch_statistics, name=name)


class _Side(nn.Module):
  """Features of the frozen copy, whose BatchNorm never moves, plus those of the trained one."""

  base: backbone.Backbone
  use_batch_statistics: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    frozen, tuned = (self.base.clone(name=name, parent=self) for name in NAMES)
    train_blocks = frozenset(self.base.block_names) if self.use_batch_statistics else frozenset()
    return frozen(x, stop="head") + tuned(x, stop="head", train_blocks=train_blocks)


def wrap(
  model: backbone.Backbone, variables: Mapping[str, Any]
) -> tuple[SideTuned, dict[str, Any]]:
  """(side-tuned model, its variables) from a backbone and its pretrained variables.

  Both copies start from the same weights, so that the features are twice the pretrained ones; the
  head's leaves are taken over.
  """
  side = SideTuned(
    base=model.clone(parent=None), num_classes=model.num_classes, image_size=model.image_size,
    dtype=model.dtype,
  )  # fmt: skip

  def twice(tree: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: leaf for name, leaf in tree.items() if name != "head"}
    return {"side": dict.fromkeys(NAMES, rest)}

  params = {**twice(variables["params"]), "head": variables["params"]["head"]}
  return side, {"params": params, "batch_stats": twice(variables.get("batch_stats", {}))}
