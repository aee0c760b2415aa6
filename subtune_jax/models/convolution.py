"""Convolutions without bias, each in the form that its platform runs fastest.

XLA's own convolution serves GPU and TPU. On CPU it is slow where the convolution is depthwise, so
there, and only there, these forms run instead (`jax.lax.platform_dependent`):

- depthwise: a sum of k*k shifted products, backwards likewise. The weight's gradient reduces over
  batch and map: products are added along the map first and the rest is a matrix product, which
  reads memory once; on maps of at most 4x4 it is one small matrix product per channel.
- few input channels (a stem): the patches of the image times a matrix.
- 1x1: a matrix product on every platform, with a backward pass that transposes nothing large.

All differentiate in reverse mode only, and inside `inference.form` as XLA does.
"""

import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from subtune_jax.models import inference

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_MAX_PATCH_CHANNELS = 4  # above, patches cost more memory than they save time
_MAX_PAIRED_POSITIONS = 16  # input positions up to which the weight's gradient pairs all positions
_UNROLL = 8  # products added before memory is written


class _Axis:
  """One axis of a padded convolution, reduced to the taps of the kernel that can touch data.

  Attributes:
    size: of the input.
    out: size of the output.
    stride: between outputs.
    first: first tap that touches data.
    taps: how many do, from `first` on.
    low: padding before the input, for the kernel that starts at `first`.
  """

  def __init__(self, size: int, kernel: int, stride: int, padding: str = "SAME"):
    self.size, self.stride = size, stride
    if padding == "SAME":
      self.out = -(-size // stride)
      low = max((self.out - 1) * stride + kernel - size, 0) // 2
    else:
      low = kernel // 2
      self.out = (size + 2 * low - kernel) // stride + 1
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


def _axes(
  x: jax.Array, kernel: jax.Array, stride: int, padding: str = "SAME"
) -> tuple[_Axis, _Axis]:
  (h, w), (rows, columns) = x.shape[1:3], kernel.shape[:2]
  return _Axis(h, rows, stride, padding), _Axis(w, columns, stride, padding)


def _pad(x: jax.Array, padding: Any) -> jax.Array:
  """Pads, crops or spreads height and width with zeros."""
  return lax.pad(x, jnp.zeros([], x.dtype), ((0, 0, 0), *padding, (0, 0, 0)))


def _window(x: jax.Array, start: Any, axes: tuple[_Axis, _Axis]) -> jax.Array:
  """What the tap at `start` reads for every output position: [n, out, out, channels]."""
  (i, j), (h, w) = start, axes
  limit = (x.shape[0], i + h.span, j + w.span, x.shape[3])
  return lax.slice(x, (0, i, j, 0), limit, (1, h.stride, w.stride, 1))


def _xla(
  x: jax.Array, kernel: jax.Array, stride: int, groups: int, padding: str = "SAME"
) -> jax.Array:
  pads = "SAME" if padding == "SAME" else [(k // 2, k // 2) for k in kernel.shape[:2]]
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), pads, dimension_numbers=_DIMENSIONS, feature_group_count=groups
  )


# ------------------------------------------------------------------ depthwise


def depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Convolves every channel by itself, with TensorFlow's "SAME" padding.

  Args:
    x: [n, h, w, c].
    kernel: [k, k, 1, c], in the dtype of `x`.
    stride: of both axes.

  Returns:
    [n, ceil(h / stride), ceil(w / stride), c].
  """
  return (_depthwise if inference.is_active() else _trainable_depthwise)(x, kernel, stride)


def _depthwise(x, kernel, stride):
  return inference.by_platform(
    x,
    kernel,
    cpu=functools.partial(_depthwise_sum, stride=stride),
    default=functools.partial(_xla, stride=stride, groups=x.shape[3]),
  )


def _depthwise_forward(x, kernel, stride):
  return _depthwise(x, kernel, stride), (x, kernel)


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


_trainable_depthwise = jax.custom_vjp(_depthwise, nondiff_argnums=(2,))
_trainable_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _shifted_sum(x: jax.Array, kernel: jax.Array, axes: tuple[_Axis, _Axis]) -> jax.Array:
  """Sum over the taps of kernel [taps, taps, 1, c] times what they read of the padded x."""
  total: Any = 0
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


def _depthwise_dx(gradient: jax.Array, kernel: jax.Array, x: jax.Array, stride: int) -> jax.Array:
  """The input's gradient: the output's, spread by the stride, under the flipped kernel."""
  h, w = axes = _axes(x, kernel, stride)
  spread = _pad(gradient, [a.gradient_padding for a in axes])
  flipped = jnp.flip(_crop(kernel, axes), (0, 1))
  return _shifted_sum(spread, flipped, (_Axis(h.size, h.taps, 1), _Axis(w.size, w.taps, 1)))


def _depthwise_dw(x: jax.Array, gradient: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """The kernel's gradient; taps that touch no data get zero."""
  axes = _axes(x, kernel, stride)
  paired = x.shape[1] * x.shape[2] <= _MAX_PAIRED_POSITIONS
  taps = (_paired_dw if paired else _accumulated_dw)(x, gradient, axes)
  taps = taps.reshape(axes[0].taps, axes[1].taps, 1, x.shape[3])
  outside = [(a.first, k - a.first - a.taps) for a, k in zip(axes, kernel.shape[:2], strict=True)]
  return jnp.pad(taps, (*outside, (0, 0), (0, 0))).astype(kernel.dtype)


def _accumulated_dw(x: jax.Array, gradient: jax.Array, axes: tuple[_Axis, _Axis]) -> jax.Array:
  """[taps, c]: for each tap, products added along the map, then over the batch."""
  n, channels = x.shape[0], x.shape[3]
  x = lax.optimization_barrier(_pad(x, [a.padding for a in axes]))
  h, w = axes
  step_w = _largest_divisor(w.out, _UNROLL)
  step_h = _largest_divisor(h.out, _UNROLL // step_w)
  extent = (n, h.span - (step_h - 1) * h.stride, w.span - (step_w - 1) * w.stride, channels)

  def one(tap):
    total: Any = 0
    for a in range(step_h):
      for b in range(step_w):
        corner = (0, tap[0] + a * h.stride, tap[1] + b * w.stride, 0)
        window = lax.dynamic_slice(x, corner, extent)[:, :: step_h * h.stride, :: step_w * w.stride]
        part = gradient[:, a::step_h, b::step_w]
        total = total + window.astype(jnp.float32) * part.astype(jnp.float32)
    total = total.reshape(-1, channels)
    return jnp.ones((1, total.shape[0])) @ total  # as a reduction it would not be vectorised

  taps = [(i, j) for i in range(h.taps) for j in range(w.taps)]
  return lax.map(one, jnp.asarray(taps, jnp.int32)).reshape(len(taps), channels)


def _largest_divisor(n: int, limit: int) -> int:
  return max(d for d in range(1, limit + 1) if n % d == 0)


def _paired_dw(x: jax.Array, gradient: jax.Array, axes: tuple[_Axis, _Axis]) -> jax.Array:
  """[taps, c]: all pairs of an input and an output position, then the pairs of each tap."""
  n, channels = x.shape[0], x.shape[3]
  pairs = lax.dot_general(
    x.reshape(n, -1, channels),
    gradient.reshape(n, -1, channels),
    (((0,), (0,)), ((2,), (2,))),
    preferred_element_type=jnp.float32,
  )
  return jnp.matmul(_tap_of_pairs(axes), pairs.reshape(channels, -1).T)


def _tap_of_pairs(axes: tuple[_Axis, _Axis]) -> np.ndarray:
  """0/1 matrix [taps, pairs of an input and an output position]."""
  per_axis = []
  for a in axes:
    tap, position, out = np.ogrid[: a.taps, : a.size, : a.out]
    per_axis.append((out * a.stride + tap - a.low == position).astype(np.float32))
  both = np.einsum("ipo,jqr->ijpqor", *per_axis)
  return both.reshape(axes[0].taps * axes[1].taps, -1)


# ------------------------------------------------------------------ 1x1


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A 1x1 convolution as a matrix product.

  Args:
    x: [n, h, w, c].
    kernel: [1, 1, c, features], in the dtype of `x`.

  Returns:
    [n, h, w, features].
  """
  return (_pointwise if inference.is_active() else _trainable_pointwise)(x, kernel)


def _pointwise(x, kernel):
  if inference.target() == "onnx":  # ONNX's runtimes are faster at it than at Einsum
    return _xla(x, kernel, 1, 1)
  return jnp.dot(x, kernel[0, 0])


def _pointwise_backward(residuals, gradient):
  x, kernel = residuals
  # On CPU an elementwise product fused into both of these would be computed twice, transposed.
  gradient = lax.platform_dependent(
    gradient, cpu=lax.optimization_barrier, default=lambda gradient: gradient
  )
  rows = gradient.reshape(-1, gradient.shape[-1])
  dx = jnp.dot(rows, kernel[0, 0].T).reshape(x.shape)
  dw = lax.dot_general(x.reshape(-1, x.shape[-1]), rows, (((0,), (0,)), ((), ())))
  return dx, dw.reshape(kernel.shape)


_trainable_pointwise = jax.custom_vjp(_pointwise)
_trainable_pointwise.defvjp(
  lambda x, kernel: (_pointwise(x, kernel), (x, kernel)), _pointwise_backward
)


# ------------------------------------------------------------------ full


def full(x: jax.Array, kernel: jax.Array, stride: int, padding: str = "SAME") -> jax.Array:
  """A dense convolution.

  Args:
    x: [n, h, w, c].
    kernel: [k, k, c, features], in the dtype of `x`.
    stride: of both axes.
    padding: "SAME" is TensorFlow's; "SYMMETRIC" is torch's usual k // 2 zeros on every side.

  Returns:
    [n, h', w', features]; h' is ceil(h / stride) with "SAME", and so it is with "SYMMETRIC" where k
    is odd.
  """
  return (_full if inference.is_active() else _trainable_full)(x, kernel, stride, padding)


def _full(x, kernel, stride, padding):
  return inference.by_platform(
    x,
    kernel,
    cpu=functools.partial(_full_cpu, stride=stride, padding=padding),
    default=functools.partial(_xla, stride=stride, groups=1, padding=padding),
  )


def _full_forward(x, kernel, stride, padding):
  return _full(x, kernel, stride, padding), (x, kernel)


def _full_backward(stride, padding, residuals, gradient):
  def backward(convolve, x, kernel, gradient):
    return jax.vjp(functools.partial(convolve, stride=stride, padding=padding), x, kernel)[1](
      gradient
    )

  return lax.platform_dependent(
    *residuals,
    gradient,
    cpu=functools.partial(backward, _full_cpu),
    default=functools.partial(backward, functools.partial(_xla, groups=1)),
  )


_trainable_full = jax.custom_vjp(_full, nondiff_argnums=(2, 3))
_trainable_full.defvjp(_full_forward, _full_backward)


def _full_cpu(x: jax.Array, kernel: jax.Array, stride: int, padding: str) -> jax.Array:
  """Patches times a matrix where there are few channels, else XLA's convolution."""
  if x.shape[3] > _MAX_PATCH_CHANNELS:
    return _xla(x, kernel, stride, 1, padding)
  axes = _axes(x, kernel, stride, padding)
  kernel = _crop(kernel, axes)
  x = _pad(x, [a.padding for a in axes])
  taps = [(i, j) for i in range(axes[0].taps) for j in range(axes[1].taps)]
  patches = jnp.concatenate([_window(x, tap, axes) for tap in taps], axis=3)
  return pointwise(patches, kernel.reshape(1, 1, -1, kernel.shape[3]))
