"""A tuned network beside its frozen self: the head reads the features of both.

SubTuning's appendix: where the frozen network runs anyway, for another task, its features cost a
new task nothing. Both run as one up to the first tuned block and as two behind it; the activations
there are both of them, side by side along the last axis. A tuned block keeps its name, and its
frozen copy stands beside it ("block14_frozen"), in no block, so that nothing trains it. A block
behind the fork that is not tuned has one set of weights and runs twice.
"""

from collections.abc import Collection, Mapping
import inspect
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp

from subtune_jax.data import choices
from subtune_jax.models import backbone

SUFFIX = "_frozen"


class BesideFrozen(backbone.Backbone, kw_only=True):
  """A backbone with some tuned blocks, and the frozen one.

  Attributes:
    base: the backbone; its number of classes is not used.
    tuned: names of the blocks of which there are two, input to output.
  """

  base: backbone.Backbone
  tuned: tuple[str, ...]

  @property
  def block_names(self) -> tuple[str, ...]:
    """Those of the backbone."""
    return self.base.block_names

  @property
  def is_random(self) -> bool:
    """Whether the backbone is; the frozen one draws nothing."""
    return self.base.is_random

  @property
  def fork(self) -> str:
    """See `Backbone.fork`: the first tuned block."""
    return self.tuned[0]

  def check_images(self, x: jax.Array) -> None:
    """See `Backbone.check_images`."""
    inspect.unwrap(type(self.base).check_images)(self.base, x)

  @nn.nowrap
  def make_block(self, block: str, name: str, use_batch_statistics: bool) -> Any:
    """See `Backbone.make_block`; from the fork on, a function that runs both."""
    names = self.block_names
    make = inspect.unwrap(type(self.base).make_block)
    own = make(self.base, block, name, use_batch_statistics)
    fork = self.fork
    if names.index(block) < names.index(fork):
      return own
    is_tuned = block in self.tuned
    frozen = make(self.base, block, f"{name}{SUFFIX}", False) if is_tuned else own

    def both(x: jax.Array) -> jax.Array:
      tuned, rest = (x, x) if block == fork else jnp.split(x, 2, axis=-1)
      # Without the stop a backward pass would run through the frozen blocks, to no parameter.
      parts = own(tuned), _in_eval(frozen, jax.lax.stop_gradient(rest))
      return jnp.concatenate(parts, axis=-1)

    return both


def _in_eval(module: nn.Module, x: jax.Array) -> Any:
  """A block without the random keys that its parent has, so that it drops nothing."""
  if module.is_initializing():
    return module(x)
  return module.clone(parent=None).apply(module.variables, x)


def wrap(
  model: backbone.Backbone, variables: Mapping[str, Any], blocks: Collection[str]
) -> tuple[BesideFrozen, dict[str, Any]]:
  """(the network, its variables) of a backbone.

  The head has twice as many inputs, and gives the logits that it gave: those of the frozen features
  weigh nothing yet.

  Args:
    model: the backbone.
    variables: its variables.
    blocks: that will be tuned.

  Raises:
    ValueError: no block, or one that the backbone has not.
  """
  if isinstance(blocks, str) or not blocks:
    raise ValueError(f"blocks is {blocks!r}; give a sequence of block names, e.g. ('block14',)")
  for block in blocks:
    choices.check("block", block, model.block_names)
  own = BesideFrozen(
    base=model.clone(parent=None), tuned=tuple(b for b in model.block_names if b in blocks),
    num_classes=model.num_classes, image_size=model.image_size,
    norm_momentum=model.norm_momentum, dtype=model.dtype,
  )  # fmt: skip
  params = _with_copies(variables["params"], own.tuned)
  kernel = params["head"]["kernel"]
  kernel = jnp.concatenate([kernel, jnp.zeros_like(kernel)])
  stats = _with_copies(variables.get("batch_stats", {}), own.tuned)
  return own, {"params": {**params, "head": {**params["head"], "kernel": kernel}},
               "batch_stats": stats}  # fmt: skip


def _with_copies(tree: Mapping[str, Any], blocks: tuple[str, ...]) -> dict[str, Any]:
  leaves = traverse_util.flatten_dict(dict(tree), sep="/")
  for path, leaf in list(leaves.items()):
    for block in blocks:
      if path.startswith(f"{block}/"):
        leaves[f"{block}{SUFFIX}{path.removeprefix(block)}"] = leaf
  return traverse_util.unflatten_dict(leaves, sep="/")


def original(path: str, blocks: Collection[str]) -> str:
  """The backbone's name of a leaf of the network: that of a frozen copy is the block's own.

  Args:
    path: '/'-path inside params or batch_stats.
    blocks: `BesideFrozen.tuned`.
  """
  for block in blocks:
    if path.startswith(f"{block}{SUFFIX}/"):
      return f"{block}{path.removeprefix(f'{block}{SUFFIX}')}"
  return path
