"""ResNet (He et al. 2016) as a row of named blocks: a stem, then the residual units.

As in torchvision: zeros on every side of a 3x3 or 7x7 convolution, BatchNorm epsilon 1e-5, the
stride of a bottleneck on its 3x3 convolution ("v1.5"), a projection (1x1 convolution and BatchNorm)
where the shape changes.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from subtune_jax.data import choices
from subtune_jax.models import backbone, batch_norm, channels, inference, layers

EXPANSION = 4  # channels out of a bottleneck for each inside
STEMS = ("cifar", "imagenet")


def unit_names(stage_sizes: Sequence[int]) -> tuple[str, ...]:
  """Returns "block1/unit1" and on; `stage_sizes` are the units of each stage."""
  sizes = enumerate(stage_sizes, 1)
  return tuple(f"block{stage}/unit{unit}" for stage, n in sizes for unit in range(1, n + 1))


def unit_fields(block: str, width: int) -> dict[str, Any]:
  """Returns `inner` and `stride` of a unit: channels double and the map halves from stage to stage.

  Args:
    block: one of `unit_names`.
    width: channels of the first stage, inside a bottleneck.
  """
  stage, _, unit = block.removeprefix("block").partition("/")
  stride = 2 if stage != "1" and unit == "unit1" else 1
  return {"inner": width * 2 ** (int(stage) - 1), "stride": stride}


def conv_bn(model: backbone.Backbone, use_batch_statistics: bool) -> Callable[..., layers.ConvBN]:
  """Returns `layers.ConvBN` with torch's padding and epsilon, and what the model says."""
  return functools.partial(
    layers.ConvBN,
    padding="SYMMETRIC",
    epsilon=1e-5,
    use_batch_statistics=use_batch_statistics,
    momentum=model.norm_momentum,
    dtype=model.dtype,
  )


def mean_over_map(x: jax.Array) -> jax.Array:
  """Returns the mean over height and width, taken in float32: [n, h, w, c] to [n, c]."""
  return jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(x.dtype)


def _taps(x: jax.Array) -> list[jax.Array]:
  """What each of the 9 taps of a 3x3 window of stride 2 reads: [n, h', w', c]."""
  h, w = ((size - 3) // 2 * 2 + 1 for size in x.shape[1:3])  # from the first to the last window
  return [strided(x, 2, (i, j), (i + h, j + w)) for i in range(3) for j in range(3)]


def strided(
  x: jax.Array, stride: int, start: tuple[int, int] = (0, 0), stop: tuple[int, int] | None = None
) -> jax.Array:
  """Every `stride`-th row and column of maps [n, h, w, c], from `start` to before `stop`."""
  (h, w), (n, c) = stop or x.shape[1:3], (x.shape[0], x.shape[3])
  return lax.slice(x, (0, *start, 0), (n, h, w, c), (1, stride, stride, 1))


def max_pool(x: jax.Array) -> jax.Array:
  """3x3 max pool of stride 2 without padding: [n, h, w, c] to [n, (h - 1) // 2, (w - 1) // 2, c].

  As maxima of slices: on CPU several times faster than XLA's window, backwards above all. The
  gradient goes to the first of equal maxima, as in torch.
  """
  return (_max_pool if inference.is_active() else _trainable_max_pool)(x)


def _max_pool(x):
  return functools.reduce(jnp.maximum, _taps(x))


def _max_pool_forward(x):
  y = _max_pool(x)
  return y, (x, y)


def _max_pool_backward(residuals, gradient):
  x, y = residuals
  zero = jnp.zeros([], x.dtype)
  free = jnp.ones(y.shape, bool)
  total: Any = 0
  for k, tap in enumerate(_taps(x)):
    hit = free & (tap == y)
    free &= ~hit
    low = (k // 3, k % 3)
    spread = [(i, x.shape[a] - i - 2 * y.shape[a] + 1, 1) for a, i in enumerate(low, 1)]
    part = jnp.where(hit, gradient, zero)
    total = total + lax.pad(part, zero, [(0, 0, 0), *spread, (0, 0, 0)])
  return (total,)


_trainable_max_pool = jax.custom_vjp(_max_pool)
_trainable_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def pad_map(x: jax.Array, value: float) -> jax.Array:
  """Returns the map with one more row or column on every side."""
  return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value)


class Stem(nn.Module):
  """A convolution, BatchNorm, ReLU, and for "imagenet" a 3x3 max pool of stride 2.

  Attributes:
    kind: "imagenet" (7x7, stride 2; the map is a quarter of the image) or "cifar" (3x3, stride 1).
    features: channels out.
    layer: `conv_bn` of the model.
  """

  kind: str
  features: int
  layer: Callable[..., layers.ConvBN]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel, stride = (7, 2) if self.kind == "imagenet" else (3, 1)
    shape = {"kernel": kernel, "stride": stride}
    x = self.layer("full", self.features, **shape, act="relu", name="conv1")(x)
    if self.kind == "imagenet":
      x = max_pool(pad_map(x, -jnp.inf))
    return x


class Unit(nn.Module):
  """A residual unit: two 3x3 convolutions, or 1x1, 3x3 and 1x1; the shortcut; ReLU.

  Attributes:
    inner: channels of all but the last convolution of a bottleneck.
    stride: of the unit.
    bottleneck: three convolutions rather than two.
    pool: the mean over the map follows.
    layer: `conv_bn` of the model.
    project: whether the shortcut is a projection; None: where the shape changes.
    pruned: channels of layers that were pruned.
  """

  inner: int
  stride: int
  bottleneck: bool
  pool: bool
  layer: Callable[..., layers.ConvBN]
  project: bool | None = None
  pruned: channels.Widths = ()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    three = {"kernel": 3, "stride": self.stride, "act": "relu"}
    out = functools.partial(channels.width, self.pruned)
    if self.bottleneck:
      features = out("conv3", EXPANSION * self.inner)
      y = self.layer("pointwise", out("conv1", self.inner), act="relu", name="conv1")(x)
      y = self.layer("full", out("conv2", self.inner), **three, name="conv2")(y)
      y = self.layer("pointwise", features, name="conv3")(y)
    else:
      features = out("conv2", self.inner)
      y = self.layer("full", out("conv1", self.inner), **three, name="conv1")(x)
      y = self.layer("full", features, kernel=3, name="conv2")(y)
    project = self.project
    if project is None:
      project = self.stride > 1 or x.shape[-1] != features
    if project:
      x = self.layer("pointwise", features, name="downsample")(strided(x, self.stride))
    y = batch_norm.activate(y + x, "relu")
    return mean_over_map(y) if self.pool else y


class ResNet(backbone.Backbone, kw_only=True):
  """A stem, residual units, and a linear head on the mean over the last map.

  Channels double and the map halves from stage to stage. ResNet-26 is the form for CIFAR of He et
  al., section 4.2: three stages of 4 basic units with 16, 32 and 64 channels, so that the head
  reads 64 features; where the shape changes the shortcut is a projection, where they pad with
  zeros. ResNet-14 has 2 units a stage.

  Attributes:
    stage_sizes: units of each stage.
    bottleneck: units of three convolutions (ResNet-50 and deeper) rather than two.
    stem: "imagenet" or "cifar"; see `Stem`.
    width: channels of the stem and of the first stage, inside a bottleneck.
    pruned: channels of layers that were pruned (`subtune_jax.pruning`).
  """

  stage_sizes: tuple[int, ...]
  bottleneck: bool
  stem: str = "imagenet"
  width: int = 64
  pruned: channels.Widths = ()

  def __post_init__(self):
    choices.check("stem", self.stem, STEMS)
    super().__post_init__()

  @property
  def block_names(self) -> tuple[str, ...]:
    """The stem, then "block1/unit1" and on."""
    return ("stem", *unit_names(self.stage_sizes))

  @nn.nowrap  # a stage calls it, and the block is the stage's
  def make_block(self, block: str, name: str, use_batch_statistics: bool) -> nn.Module:
    """See `Backbone.make_block`."""
    layer = conv_bn(self, use_batch_statistics)
    if block == "stem":
      features = channels.width(self.pruned, "stem/conv1", self.width)
      return Stem(self.stem, features, layer, name=name)
    fields = unit_fields(block, self.width)
    fields["pruned"] = channels.of_block(self.pruned, block)
    if self.pruned:  # by what the unpruned network has
      fields["project"] = self.projects(block)
    pool = block == self.block_names[-1]
    return Unit(**fields, bottleneck=self.bottleneck, pool=pool, layer=layer, name=name)

  @nn.nowrap
  def projects(self, block: str) -> bool:
    """Whether the shortcut of a unit is a projection."""
    return block.endswith("/unit1") and (self.bottleneck or not block.startswith("block1/"))
