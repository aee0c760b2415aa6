"""A table of a torch file's names as the sources of a vision transformer's variables.

In all of these files a linear layer is [out, in] and the patch embedding [width, 3, patch, patch].
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from flax import linen as nn
import numpy as np

from subtune_jax.weights.naming import base, positions

_FIELDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_TOKENS = ("class_token", "registers", "probe")

Names = str | tuple[str, ...]
Source = Callable[[nn.Module, str, str], base.Source | None]


@dataclasses.dataclass(frozen=True)
class Layout:
  """Names of the tensors, by our names of the variables or of their layers.

  A layer's name ends in "." or "_", and "weight" or "bias" is added to it; a variable's name is
  whole, and a kernel of this kind lies as ours does. Several names are concatenated. A name that
  begins with "/" is outside of the image tower: without the prefix's own part.

  Attributes:
    outside: of everything but the blocks; "embedding/patch" for example.
    block: what names of a block's tensors begin with, {} for its number.
    inside: of a block; "attention/qkv" for example.
    prefixes: that the scheme has of its own.
  """

  outside: Mapping[str, Names]
  block: str
  inside: Mapping[str, Names]
  prefixes: tuple[str, ...] = ("",)

  def source(self, model: nn.Module, path: str, prefix: str) -> base.Source | None:
    """See `base.Scheme.source`."""
    variable = path.removeprefix("params/")
    unit, _, inner = variable.partition("/")
    table, start = self.outside, prefix
    if unit.startswith("encoderblock_"):
      table, start = self.inside, prefix + self.block.format(unit.removeprefix("encoderblock_"))
      variable = inner
    whole = variable in table
    layer, _, field = variable.rpartition("/")
    names = table.get(variable if whole else layer)
    if names is None:
      return None
    names = (names,) if isinstance(names, str) else names
    ending = "" if whole else _FIELDS[field]
    keys = tuple(self._place(name, start, prefix) + ending for name in names)
    return base.Source(keys, _conversion(model, path, whole))

  def _place(self, name: str, start: str, prefix: str) -> str:
    return outer(prefix, self.prefixes) + name[1:] if name.startswith("/") else start + name


def outer(prefix: str, own: tuple[str, ...]) -> str:
  """Returns the prefix without the longest of a scheme's own that it ends in."""
  return prefix.removesuffix(max((p for p in own if prefix.endswith(p)), key=len, default=""))


def _conversion(model: Any, path: str, whole: bool) -> Callable[..., np.ndarray]:
  field = path.rpartition("/")[2]
  if field == "positions":
    grid, token, antialias = model.grid, model.class_token, model.registers > 0
    return lambda tensor: positions.fit(tensor, grid, token, antialias)
  if field in _TOKENS:
    return _tokens
  if path.startswith("params/map_pool/attention/q/"):
    return lambda tensor: _transpose(tensor[: len(tensor) // 3])
  if path.startswith("params/map_pool/attention/kv/"):
    return lambda tensor: _transpose(tensor[len(tensor) // 3 :])
  if whole:
    return lambda tensor: tensor
  return lambda *tensors: _joined([_transpose(tensor) for tensor in tensors])


def _transpose(tensor: np.ndarray) -> np.ndarray:
  axes = {2: (1, 0), 4: (2, 3, 1, 0)}.get(tensor.ndim)
  return tensor.transpose(axes) if axes else tensor


def _tokens(tensor: np.ndarray) -> np.ndarray:
  """[width], [count, width] or [1, count, width] as [1, count, width]."""
  return tensor.reshape((1,) * (3 - tensor.ndim) + tensor.shape) if 0 < tensor.ndim < 3 else tensor


def _joined(tensors: list[np.ndarray]) -> np.ndarray:
  """Queries, keys and values side by side; tensors that cannot be are stacked, to be told of."""
  if len(tensors) == 1:
    return tensors[0]
  if len({tensor.shape for tensor in tensors}) > 1 or not tensors[0].ndim:
    return np.zeros((len(tensors), *tensors[0].shape), tensors[0].dtype)
  return np.concatenate(tensors, axis=-1)


def scheme(title: str, family: type[nn.Module], layout: Layout, **fields: Any) -> base.Scheme:
  """Returns the scheme of a layout; `fields` are those of `base.Scheme`."""
  return base.Scheme(title, family, layout.source, layout.prefixes, **fields)


def group(what: str, start: str, *names: str) -> base.Dropped:
  """Returns a group of the names that begin with `start`."""
  return base.Dropped(what, frozenset(start + name for name in names))


def linear(*layers: str) -> tuple[str, ...]:
  """Returns the weight and the bias of layers."""
  return tuple(f"{layer}.{field}" for layer in layers for field in ("weight", "bias"))
