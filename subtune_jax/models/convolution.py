"""Convolutions without bias, each in the form that its platform runs fastest.

XLA's own convolution serves GPU and TPU. On CPU it is slow where the convolution is depthwise, so
there, and only there, these forms run instead (`jax.lax.platform_dependent`):

- depthwise: a sum of k*k shifted products, backwards likewise. The weight's gradient reduces over
  batch and map: products are added along the map first and the rest is a matrix product, which
  reads memory once; on maps of at most 4x4 it is one small matrix product per channel.
- few input channels (a stem): the patches of the image times a matrix.
- 1x1: a matrix product on every platform, with a backward pass that transposes nothing large.

All differentiate in reverse mode only.
"""

import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_MAX_PATCH_CHANNELS = 4  # above, patches cost more memory than they save time
_MAX_PAIRED_POSITIONS = 16  # input positions up to which the weight's gradient pairs all positions
_UNROLL = 8  # products added before memory is written


class _Axis:
  """One axis of a "SAME" convolution, reduced to the taps of the kernel that can touch data.

  Attributes:
    size: of the input.
    out: size of the output.
    stride: between outputs.
    first: first tap that touches data.
    taps: how many do, from `first` on.
    low: padding before the input, for the kernel that starts at `first`.
  """

  def __init__(self, size: int, kernel: int, stride: int):
    self.size, self.stride = size, stride
    self.out = -(-size // stride)
    low = max((self.out - 1) * stride + kernel - size, 0) // 2
    self.first = max(0, low - (self.out - 1) * stride)
    self.taps = min(kernel, size + low) - self.first
    self.low = low - self.first

  @property
  def span(self) -> int:
    """Input positions from the first output's to the last output's, for one tap."""
    return (self.out - 1) * self.stride + 1

  @property
  def padding(self) -> tuple[int, int, int]:
    """Padding of the input so that every tap has a value: low, high (negative crops), interior."""
    return self.low, self.span + self.taps - 1 - self.size - self.low, 0

  @property
  def gradient_padding(self) -> tuple[int, int, int]:
    """Padding of the output's gradient, spread by the stride, for the input's gradient."""
    low = self.taps - 1 - self.low
    return low, self.size + self.taps - 1 - self.span - low, self.stride - 1


def _axes(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[_Axis, _Axis]:
  return tuple(_Axis(x.shape[i + 1], kernel.shape[i], stride) for i in (0, 1))


def _pad(x: jax.Array, padding: Any) -> jax.Array:
  """Pads, crops or spreads height and width with zeros."""
  return lax.pad(x, jnp.zeros([], x.dtype), ((0, 0, 0), *padding, (0, 0, 0)))


def _window(x: jax.Array, start: Any, axes: tuple[_Axis, _Axis]) -> jax.Array:
  """What the tap at `start` reads for every output position: [n, out, out, channels]."""
  (i, j), (h, w) = start, axes
  limit = (x.shape[0], i + h.span, j + w.span, x.shape[3])
  return lax.slice(x, (0, i, j, 0), limit, (1, h.stride, w.stride, 1))


def _xla(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), "SAME", dimension_numbers=_DIMENSIONS, feature_group_count=groups
  )


# ------------------------------------------------------------------ depthwise


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Convolves every channel by itself, with TensorFlow's "SAME" padding.

  Args:
    x: [n, h, w, c].
    kernel: [k, k, 1, c], in the dtype of `x`.
    stride: of both axes.

  Returns:
    [n, ceil(h / stride), ceil(w / stride), c].
  """
  return lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(_depthwise_sum, stride=stride),
    default=functools.partial(_xla, stride=stride, groups=x.shape[3]),
  )


def _depthwise_forward(x, kernel, stride):
  return depthwise(x, kernel, stride), (x, kernel)


def _depthwise_backward(stride, residuals, gradient):
  x, kernel = residuals

  def default(x, kernel, gradient):
    convolve = functools.partial(_xla, stride=stride, groups=x.shape[3])
    return jax.vjp(convolve, x, kernel)[1](gradient)

  def cpu(x, kernel, gradient):
    gradient = lax.optimization_barrier(gradient)  # read k*k times: compute it once
    dx = _depthwise_dx(gradient, kernel, x, stride)
    return dx, _depthwise_dw(x, gradient, kernel, stride)

  return lax.platform_dependent(x, kernel, gradient, cpu=cpu, default=default)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _shifted_sum(x: jax.Array, kernel: jax.Array, axes: tuple[_Axis, _Axis]) -> jax.Array:
  """Sum over the taps of kernel [taps, taps, 1, c] times what they read of the padded x."""
  total = 0
  for i in range(axes[0].taps):
    for j in range(axes[1].taps):
      tap = kernel[i, j][None, None].astype(jnp.float32)
      total = total + _window(x, (i, j), axes).astype(jnp.float32) * tap
  return total.astype(x.dtype)


def _crop(kernel: jax.Array, axes: tuple[_Axis, _Axis]) -> jax.Array:
  """The taps that touch data."""
  h, w = axes
  return kernel[h.first : h.first + h.taps, w.first : w.first + w.taps]


def _depthwise_sum(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  axes = _axes(x, kernel, stride)
  return _shifted_sum(_pad(x, [a.padding for a in axes]), _crop(kernel, axes), axes)


def _depthwise_dx(
  gradient: jax.Array, kernel: jax.Array, x: jax.Array, stride: int
) -> jax.Array:
  """The input's gradient: the output's, spread by the stride, under the flipped kernel."""
  axes = _axes(x, kernel, stride)
  spread = _pad(gradient, [a.gradient_padding for a in axes])
  flipped = jnp.flip(_crop(kernel, axes), (0, 1))
  dense = tuple(_Axis(a.size, a.taps, 1) for a in axes)
  return _shifted_sum(spread, flipped, dense)
