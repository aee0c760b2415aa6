"""A backbone with adapters in its blocks, and what adapters need to know of the library's layers.

The leaves of the adapters lie in `params` beside those of their modules (`adapters.join`), so that
they belong to the block of their module: stages, prefix cache, exports treat them as any leaf.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import inspect
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from subtune_jax import adapters
from subtune_jax.adapters import layer as layer_lib
from subtune_jax.adapters import linen
from subtune_jax.models import backbone, batch_norm, bit_resnet, convnext, layers, vit


class Adapted(backbone.Backbone, kw_only=True):
  """A backbone with adapters.

  Attributes:
    base: the backbone; its number of classes is not used.
    sites: where adapters are.
  """

  base: backbone.Backbone
  sites: tuple[adapters.Site, ...]

  @property
  def block_names(self) -> tuple[str, ...]:
    """Those of the backbone."""
    return self.base.block_names

  @property
  def is_random(self) -> bool:
    """Whether the backbone is, or an adapter has dropout."""
    dropout = any(getattr(rule, "dropout", 0) for site in self.sites for rule in site.rules)
    return self.base.is_random or dropout

  def check_images(self, x: jax.Array) -> None:
    """See `Backbone.check_images`."""
    inspect.unwrap(type(self.base).check_images)(self.base, x)

  @nn.nowrap
  def make_block(self, block: str, name: str, use_batch_statistics: bool) -> nn.Module:
    """See `Backbone.make_block`."""
    make = inspect.unwrap(type(self.base).make_block)
    return make(self.base, block, name, use_batch_statistics)

  @nn.nowrap
  def alone(self, block: str, module: nn.Module) -> nn.Module:
    """See `Backbone.alone`: the block with its adapters."""
    own = tuple(s for s in self.sites if f"{s.path}/".startswith(f"{block}/"))
    return _Alone(_Hidden(module), own, block, name="block")

  def __call__(self, x: jax.Array, **kwargs: Any) -> jax.Array:
    """See `Backbone.__call__`."""
    with nn.intercept_methods(linen.interceptor(self.sites)):
      return super().__call__(x, **kwargs)

  @property
  def merges(self) -> bool:
    """Whether `merged` is exact for all of its adapters."""
    return all(rule.can_merge(site.target) for site in self.sites for rule in site.rules)

  def merged(self, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone's own variables with the adapters in them.

    Raises:
      ValueError: adapters that merge into no parameter.
    """
    params, tree = adapters.split(variables["params"])
    return {**variables, "params": adapters.Adapted(self.base, self.sites).merge(params, tree)}


@dataclasses.dataclass(frozen=True)
class _Hidden:
  """A module as a field that Flax does not make a child of."""

  module: nn.Module


class _Alone(nn.Module):
  """A block outside its model, with its adapters, in the scope that it would have by itself."""

  block: _Hidden
  sites: tuple[adapters.Site, ...]
  prefix: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    depth, prefix = len(self.path), tuple(self.prefix.split("/"))
    with nn.intercept_methods(linen.interceptor(self.sites, prefix, depth)):
      return self.block.module.clone(parent=self.scope)(x)


def add(
  model: backbone.Backbone,
  variables: Mapping[str, Any],
  rules: adapters.Rule | Sequence[adapters.Rule],
  key: jax.Array,
) -> tuple[Adapted, dict[str, Any]]:
  """(backbone with fresh adapters, its variables: the same leaves, and those of the adapters).

  Raises:
    ValueError: an adapter that lies in no block; and see `adapters.add`.
  """
  size = model.image_size
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  made, tree = adapters.add(model, variables, rules, key, images)
  for site in made.sites:
    if not any(f"{site.path}/".startswith(f"{block}/") for block in model.block_names):
      raise ValueError(
        f"{site.rules[0].name} at {site.path} lies in none of the blocks; select modules in "
        f"{', '.join(model.block_names)}"
      )
  own = Adapted(
    base=model.clone(parent=None), sites=made.sites, num_classes=model.num_classes,
    image_size=size, norm_momentum=model.norm_momentum, dtype=model.dtype,
  )  # fmt: skip
  return own, {**variables, "params": linen.join(variables["params"], tree)}


# ------------------------------------------------------------------ layers


def _conv_bn(module: layers.ConvBN, shape: tuple[int, ...], rest: Any) -> layer_lib.Geometry:
  del rest
  groups = shape[-1] if module.kind == "depthwise" else 1
  return layer_lib.conv_geometry(shape, groups, pointwise=module.kind == "pointwise")


def _convolve(module: Any, x: jax.Array, kernel: jax.Array, rest: Any) -> jax.Array:
  del rest
  return module.convolve(x, kernel)


def _convolve_bn(module: layers.ConvBN, x: jax.Array, kernel: jax.Array, rest: Any) -> jax.Array:
  """A kernel that is not depthwise in the place of one that is runs as XLA's convolution."""
  if module.kind != "depthwise" or kernel.shape[-2:] == (1, x.shape[-1]):
    return _convolve(module, x, kernel, rest)
  x, kernel = x.astype(module.dtype), kernel.astype(module.dtype)
  return jax.lax.conv_general_dilated(
    x, kernel, (module.stride, module.stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1] // kernel.shape[-2],
  )  # fmt: skip


def _depthwise(module: Any, shape: tuple[int, ...], rest: Any) -> layer_lib.Geometry:
  del module, rest
  return layer_lib.conv_geometry(shape, shape[-1])


def _patches(module: Any, shape: tuple[int, ...], rest: Any) -> layer_lib.Geometry:
  del module, rest
  return layer_lib.conv_geometry(shape)


def _standardised(module: Any, shape: tuple[int, ...], rest: Any) -> layer_lib.Geometry:
  del module, rest
  return layer_lib.conv_geometry(shape, mergeable=False)


def _projection(module: Any, shape: tuple[int, ...], rest: Any) -> layer_lib.Geometry:
  del module, rest
  return layer_lib.einsum_geometry("...i,io->...o", shape)


def _dot(module: Any, x: jax.Array, kernel: jax.Array, rest: Any) -> jax.Array:
  del module, rest
  return jnp.dot(x, kernel.astype(x.dtype))


def _fold(proceed: Any, args: Any, scale: jax.Array, shift: jax.Array) -> Any:
  gain, own = proceed(*args)
  return gain * scale, own * scale + shift


def _normalize(proceed: Any, args: Any, scale: jax.Array, shift: jax.Array) -> jax.Array:
  x, act = args
  y = proceed(x, "none")
  scale, shift = (batch_norm.per_channel(own, y.ndim).astype(y.dtype) for own in (scale, shift))
  return batch_norm.activate(y * scale + shift, act)


adapters.register(layers.ConvBN, layer_lib.Kind(_conv_bn, _convolve_bn, "linear_map"))
adapters.register(layers.PatchConv, layer_lib.Kind(_patches, _convolve))
adapters.register(convnext.Depthwise, layer_lib.Kind(_depthwise, _convolve))
adapters.register(bit_resnet.StdConv, layer_lib.Kind(_standardised, _convolve))
adapters.register(vit.Projection, layer_lib.Kind(_projection, _dot, "linear_map"))
adapters.register(
  layers.BatchNorm, layer_lib.NormKind((("fold", _fold), ("normalize", _normalize)))
)
