"""What every backbone is: named blocks in a row, any contiguous range of which can run."""

from collections.abc import Callable, Collection, Sequence
import functools
import inspect
import itertools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from subtune_jax.models import layers


class Backbone(nn.Module, kw_only=True):
  """A row of named blocks and a linear head on pooled features.

  A family says its `block_names` and builds one block in `make_block`. Names are '/'-paths into
  params and batch_stats; "block2/unit1" is unit1 inside the stage "block2".

  Attributes:
    num_classes: size of the head.
    image_size: side of the images, in pixels. It fixes the number of positions of a transformer;
      convolutional networks run at any size.
    norm_momentum: of BatchNorm's running statistics. Pretraining often used 0.99; an adaptation of
      a hundred steps would end far from its own statistics with that.
    dtype: of the computation; parameters and BatchNorm statistics are float32.
  """

  num_classes: int
  image_size: int = 224
  norm_momentum: float = layers.MOMENTUM
  dtype: Any = jnp.float32

  @property
  def block_names(self) -> tuple[str, ...]:
    """Names of the blocks, input to output; the head is not one of them."""
    raise NotImplementedError

  @property
  def is_random(self) -> bool:
    """Whether its blocks draw while they are trained, from the random keys called "dropout"."""
    return False

  @property
  def fork(self) -> str | None:
    """The block from which on two networks run side by side (`models.beside`); None: one runs.

    From there on no block runs outside the model.
    """
    return None

  def make_block(self, block: str, name: str, use_batch_statistics: bool) -> nn.Module:
    """Builds one block.

    A family with names of two components decorates its own with `nn.nowrap`: the block then belongs
    to the stage that calls this and not to the backbone.

    Args:
      block: one of `block_names`.
      name: of the module: the last component of `block`.
      use_batch_statistics: BatchNorm normalises by the batch and updates the running statistics.
    """
    raise NotImplementedError

  @nn.nowrap
  def alone(self, block: str, module: nn.Module) -> nn.Module:
    """A block as it is run outside the model: `module`, from `make_block`, or around it."""
    del block
    return module

  def check_images(self, x: jax.Array) -> None:
    """Raises ValueError when images [n, h, w, 3] are not what the first block reads."""
    if x.ndim != 4 or x.shape[-1] != 3:
      raise ValueError(f"images have shape {x.shape}; expected [n, height, width, 3]")

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    start: str | None = None,
    stop: str | None = None,
    train_blocks: Collection[str] = frozenset(),
  ) -> jax.Array:
    """Runs the units from `start` up to, not including, `stop`.

    Args:
      x: what `start` reads: normalised images [n, h, w, 3] for the first block, else the
        activations that `stop=start` returned.
      start: first unit that runs; None is the first block. "head" is allowed.
      stop: first unit that does not run; None runs the head too. "head" gives the pooled features
        [n, features].
      train_blocks: blocks whose BatchNorm normalises by the batch's statistics and updates the
        running ones, which needs `mutable=["batch_stats"]`. The others use running statistics and
        write nothing.

    Returns:
      Logits [n, num_classes] in float32 when the head runs, else activations in `dtype`.

    Raises:
      ValueError: an unknown unit, a `stop` that is not after `start`, or images of another shape
        than the first block reads.
    """
    units = unit_range(self.block_names, start, stop)
    check_train_blocks(train_blocks, self.block_names)
    if units[0] == self.block_names[0]:
      self.check_images(x)
    x = x.astype(self.dtype)
    for stage, members in itertools.groupby(units, lambda unit: unit.partition("/")[0]):
      blocks = tuple(members)
      if stage == "head":
        x = nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x.astype(jnp.float32))
      elif blocks == (stage,):
        x = self.make_block(stage, stage, stage in train_blocks)(x)
      else:
        x = _Stage(self.make_block, name=stage)(x, blocks, train_blocks)
    return x


class _Stage(nn.Module):
  """The blocks whose names begin with one component."""

  make_block: Callable[[str, str, bool], nn.Module]

  @nn.compact
  def __call__(
    self, x: jax.Array, blocks: Sequence[str], train_blocks: Collection[str]
  ) -> jax.Array:
    for block in blocks:
      x = self.make_block(block, block.rpartition("/")[2], block in train_blocks)(x)
    return x


def fork_of(model: Any) -> str | None:
  """`Backbone.fork`; None also of a network that is no backbone of ours."""
  return getattr(model, "fork", None)


def block_module(model: Backbone, name: str, use_batch_statistics: bool) -> nn.Module:
  """One block on its own, outside the model, with the name "block"; equal blocks have equal reprs.

  Args:
    model: the backbone.
    name: one of its `block_names`.
    use_batch_statistics: see `Backbone.make_block`.
  """
  make_block = inspect.unwrap(type(model).make_block)  # Flax's wrapper would make it a child
  return model.alone(name, make_block(model, name, "block", use_batch_statistics))


def unit_range(
  block_names: tuple[str, ...], start: str | None, stop: str | None
) -> tuple[str, ...]:
  """Returns the units from `start` up to, not including, `stop`; "head" follows the last block.

  Raises:
    ValueError: an unknown unit, or an empty range.
  """
  units = (*block_names, "head")
  for key, value in (("start", start), ("stop", stop)):
    if value is not None and value not in units:
      raise ValueError(f"{key}={value!r} is not a unit of this model; units: {', '.join(units)}")
  first = 0 if start is None else units.index(start)
  last = len(units) if stop is None else units.index(stop)
  if first >= last:
    raise ValueError(f"start={start!r} up to stop={stop!r} runs nothing; stop must be a later unit")
  return units[first:last]


def check_train_blocks(train_blocks: Collection[str], block_names: tuple[str, ...]) -> None:
  """Raises ValueError when `train_blocks` is a string or names a block that does not exist."""
  if isinstance(train_blocks, str):
    raise ValueError(f"train_blocks={train_blocks!r} is a string; give a set of block names")
  unknown = sorted(set(train_blocks) - set(block_names))
  if unknown:
    raise ValueError(f"train_blocks has unknown {unknown}; blocks: {', '.join(block_names)}")


@functools.partial(jax.jit, static_argnames="model")
def initialise(model: nn.Module, key: jax.Array, images: jax.Array) -> Any:
  """`model.init`, compiled once for all models that are equal."""
  return model.init(key, images)
