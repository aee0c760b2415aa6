"""What a linear layer's kernel does: which axes it reads and writes, and how to run another one.

Adapters know layers by a `Kind`, registered for a module's class: those of Linen and NNX are here,
and `register` adds others. A kind says which method is intercepted: `__call__(x)` of a layer, or,
for a layer that does more than a linear map (a normalisation folded into its kernel, an
activation), a method of its own `(x, kernel, gain)` that is the linear map alone, `gain` times its
outputs.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclasses.dataclass(frozen=True)
class Geometry:
  """The kernel of a linear layer, without the leading axes along which layers are stacked.

  Attributes:
    shape: of the kernel.
    inputs: its axes that are summed over; a convolution's window is among them.
    outputs: its axes that stay.
    batch: axes that both the input and the output have.
    equation: "x,kernel->y" as an einsum; "" of a convolution and of what is no einsum.
    groups: of a convolution.
    pointwise: y at a position is a function of x at it, along the last axis of each.
    mergeable: the layer computes with its kernel as it is stored.
  """

  shape: tuple[int, ...]
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  batch: tuple[int, ...] = ()
  equation: str = ""
  groups: int = 1
  pointwise: bool = False
  mergeable: bool = True

  def sizes(self, axes: Sequence[int]) -> tuple[int, ...]:
    """Of these axes of the kernel."""
    return tuple(self.shape[axis] for axis in axes)

  @property
  def fan_in(self) -> int:
    """Inputs of an output."""
    size = 1
    for own in self.sizes(self.inputs):
      size *= own
    return size

  def norms(self, kernel: jax.Array) -> jax.Array:
    """Length of the weights of each output, with axes of size 1 for the inputs."""
    squares = jnp.square(kernel.astype(jnp.float32))
    return jnp.sqrt(jnp.sum(squares, axis=self.inputs, keepdims=True))


# (module, kernel's shape, arguments after x) -> Geometry.
Describe = Callable[[Any, tuple[int, ...], tuple[Any, ...]], Geometry]
# (module, x, kernel, arguments after x) -> the linear map with this kernel, without bias. Of a
# convolution the kernel may have another number of outputs.
Run = Callable[[Any, jax.Array, jax.Array, tuple[Any, ...]], jax.Array]


@dataclasses.dataclass(frozen=True)
class Kind:
  """How adapters see the linear layers of one class.

  Attributes:
    describe: see `Describe`.
    run: see `Run`.
    method: that is intercepted.
    kernel: name of the leaf.
    bias: name of the leaf, which the layer may lack.
  """

  describe: Describe
  run: Run
  method: str = "__call__"
  kernel: str = "kernel"
  bias: str = "bias"


# scale_shift(proceed, arguments, scale, shift) -> what the method returns, with the normalised
# values times `scale` plus `shift`.
ScaleShift = Callable[[Callable[..., Any], tuple[Any, ...], jax.Array, jax.Array], Any]


@dataclasses.dataclass(frozen=True)
class NormKind:
  """How adapters see the normalisations of one class: method -> `ScaleShift`, names of leaves."""

  methods: tuple[tuple[str, ScaleShift], ...]
  scale: str = "scale"
  bias: str = "bias"


_KINDS: dict[type, Kind] = {}
_NORMS: dict[type, NormKind] = {}


def register(module: type, kind: Kind | NormKind) -> None:
  """Makes the layers of a class, and of classes made from it, known to adapters."""
  if isinstance(kind, Kind):
    _KINDS[module] = kind
  else:
    _NORMS[module] = kind


def kind_of(module: type) -> Kind | None:
  """That of a class; None if it is no linear layer that is known."""
  return next((_KINDS[own] for own in module.__mro__ if own in _KINDS), None)


def norm_of(module: type) -> NormKind | None:
  """That of a class; None if it is no normalisation that is known."""
  return next((_NORMS[own] for own in module.__mro__ if own in _NORMS), None)


def conv_geometry(shape: tuple[int, ...], groups: int = 1, **fields: Any) -> Geometry:
  """Of a convolution's kernel [*window, channels in / groups, channels out]."""
  last = len(shape) - 1
  return Geometry(shape, tuple(range(last)), (last,), groups=groups, **fields)


def einsum_geometry(equation: str, shape: tuple[int, ...]) -> Geometry:
  """Of `einsum(equation, x, kernel)`."""
  left, result = equation.replace(" ", "").split("->")
  x, kernel = left.split(",")
  axes = {letter: axis for axis, letter in enumerate(kernel)}
  inputs = tuple(axis for letter, axis in axes.items() if letter not in result)
  outputs = tuple(axis for letter, axis in axes.items() if letter not in x)
  batch = tuple(axis for axis in axes.values() if axis not in (*inputs, *outputs))
  pointwise = len(kernel) == 2 and (x[-1], result[-1]) == (kernel[0], kernel[1])
  return Geometry(shape, inputs, outputs, batch, f"{x},{kernel}->{result}", pointwise=pointwise)


def low_rank_equations(equation: str, geometry: Geometry) -> tuple[str, str]:
  """The equation as two: x by [*batch, *inputs, r], and that by [*batch, r, *outputs]."""
  left, result = equation.split("->")
  x, kernel = left.split(",")
  rank = next(letter for letter in _LETTERS if letter not in equation)
  names = {part: "".join(kernel[axis] for axis in getattr(geometry, part))
           for part in ("batch", "inputs", "outputs")}  # fmt: skip
  kept = "".join(letter for letter in result if letter not in names["outputs"])
  hidden = f"{kept}{rank}"
  first = f"{x},{names['batch']}{names['inputs']}{rank}->{hidden}"
  return first, f"{hidden},{names['batch']}{rank}{names['outputs']}->{result}"


# ------------------------------------------------------------------ Linen


def _dense(module: Any, shape: tuple[int, ...], rest: tuple[Any, ...]) -> Geometry:
  del module, rest
  return einsum_geometry("...i,io->...o", shape)


def _einsum_run(equation_of: Callable[[Any, tuple[Any, ...]], str]) -> Run:
  def run(module, x, kernel, rest):
    precision = getattr(module, "precision", None)
    return jnp.einsum(equation_of(module, rest), x, kernel.astype(x.dtype), precision=precision)

  return run


def _as_tuple(value: Any) -> tuple[int, ...]:
  return (value,) if isinstance(value, int) else tuple(value)


def general_equation(axis: Sequence[int], num_features: int, batch: Sequence[int]) -> str:
  """Of a DenseGeneral over the last axes.

  Raises:
    ValueError: the axes are not the last ones in order, or batch axes are asked for.
  """
  n = len(axis)
  if batch or tuple(axis) != tuple(range(-n, 0)):
    raise ValueError(
      f"DenseGeneral over axes {tuple(axis)} with batch axes {tuple(batch)}; adapters take those "
      f"over the last axes, {tuple(range(-n, 0))}, without batch axes. Use nn.Einsum"
    )
  inputs, outputs = _LETTERS[:n], _LETTERS[n : n + num_features]
  return f"...{inputs},{inputs}{outputs}->...{outputs}"


def _linen_general(module: Any, rest: tuple[Any, ...]) -> str:
  del rest
  features = _as_tuple(module.features)
  return general_equation(_as_tuple(module.axis), len(features), _as_tuple(module.batch_dims))


def _linen_einsum(module: Any, rest: tuple[Any, ...]) -> str:
  return (rest[0] if rest and rest[0] is not None else module.einsum_str).replace(" ", "")


def _linen_conv(module: Any, shape: tuple[int, ...], rest: tuple[Any, ...]) -> Geometry:
  del rest
  if getattr(module, "mask", None) is not None:
    raise ValueError("a convolution with a mask takes no adapter")
  plain = all(size == 1 for size in shape[:-2]) and _is_one(module.strides)
  pointwise = plain and module.feature_group_count == 1
  return conv_geometry(shape, module.feature_group_count, pointwise=pointwise)


def _is_one(strides: Any) -> bool:
  return strides is None or all(stride == 1 for stride in jax.tree.leaves(strides))


def _linen_conv_run(module: Any, x: jax.Array, kernel: jax.Array, rest: tuple[Any, ...]):
  """The same convolution with another kernel, padding and all; its channels tell the groups."""
  del rest
  fields = {"features": kernel.shape[-1], "use_bias": False, "parent": None, "name": None}
  other = module.clone(feature_group_count=x.shape[-1] // kernel.shape[-2], **fields)
  return other.apply({"params": {"kernel": kernel}}, x)


def _through(equation_of: Callable[[Any, tuple[Any, ...]], str]) -> Describe:
  return lambda module, shape, rest: einsum_geometry(equation_of(module, rest), shape)


register(nn.Dense, Kind(_dense, _einsum_run(lambda module, rest: "...i,io->...o")))
register(nn.DenseGeneral, Kind(_through(_linen_general), _einsum_run(_linen_general)))
register(nn.Einsum, Kind(_through(_linen_einsum), _einsum_run(_linen_einsum)))
register(nn.Conv, Kind(_linen_conv, _linen_conv_run))

# ------------------------------------------------------------------ NNX


def _nnx_general(module: Any, rest: tuple[Any, ...]) -> str:
  del rest
  batch = getattr(module, "batch_axis", {})
  return general_equation(module.axis, len(module.out_features), tuple(batch))


def _nnx_einsum(module: Any, rest: tuple[Any, ...]) -> str:
  return (rest[0] if rest and rest[0] is not None else module.einsum_str).replace(" ", "")


def _nnx_conv(module: Any, shape: tuple[int, ...], rest: tuple[Any, ...]) -> Geometry:
  return _linen_conv(module, shape, rest)


def _nnx_conv_run(module: Any, x: jax.Array, kernel: jax.Array, rest: tuple[Any, ...]):
  """As `_linen_conv_run`: Linen's convolution reads the same fields."""
  del rest
  names = ("kernel_size", "strides", "padding", "input_dilation", "kernel_dilation", "dtype",
           "precision")  # fmt: skip
  fields = {name: getattr(module, name) for name in names}
  groups = x.shape[-1] // kernel.shape[-2]
  other = nn.Conv(kernel.shape[-1], use_bias=False, feature_group_count=groups, **fields)
  return other.apply({"params": {"kernel": kernel}}, x)


register(nnx.Linear, Kind(_dense, _einsum_run(lambda module, rest: "...i,io->...o")))
register(nnx.LinearGeneral, Kind(_through(_nnx_general), _einsum_run(_nnx_general)))
register(nnx.Einsum, Kind(_through(_nnx_einsum), _einsum_run(_nnx_einsum)))
register(nnx.Conv, Kind(_nnx_conv, _nnx_conv_run))

# ------------------------------------------------------------------ normalisations


def _after(proceed: Callable[..., Any], args: tuple[Any, ...], scale: jax.Array, shift: jax.Array):
  y = proceed(*args)
  scale, shift = (own.reshape((1,) * (y.ndim - 1) + own.shape) for own in (scale, shift))
  return y * scale.astype(y.dtype) + shift.astype(y.dtype)


for _own in (nn.LayerNorm, nn.BatchNorm, nn.GroupNorm, nn.InstanceNorm, nnx.LayerNorm,
             nnx.BatchNorm, nnx.GroupNorm):  # fmt: skip
  register(_own, NormKind((("__call__", _after),)))
