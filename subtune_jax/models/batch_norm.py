"""BatchNorm in batch mode, with ReLU6 behind it where asked: one function with one backward pass.

The backward pass computes the normalised values again rather than keeping them, and reads every
activation twice: once for its sums, once for the gradient.
"""

import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

EPSILON = 1e-3


@jax.custom_vjp
def relu6(x: jax.Array) -> jax.Array:
  """min(max(x, 0), 6); the gradient is 0 at and outside 0 and 6, as in torch."""
  return jnp.clip(x, 0, 6)


def _relu6_forward(x):
  y = jnp.clip(x, 0, 6)
  return y, y


relu6.defvjp(_relu6_forward, lambda y, g: (jnp.where((y > 0) & (y < 6), g, jnp.zeros_like(g)),))


def fold(
  scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns gain and shift, [c]: BatchNorm on given statistics is `x * gain + shift`."""
  gain = scale * lax.rsqrt(var + EPSILON)
  return gain, bias - mean * gain


def per_channel(values: jax.Array, ndim: int) -> jax.Array:
  """[c] as [1, ..., 1, c] with `ndim` axes."""
  return values.reshape((1,) * (ndim - 1) + (-1,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_mode(
  x: jax.Array, scale: jax.Array, bias: jax.Array, act: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Normalises by the batch's own mean and biased variance, in float32.

  Args:
    x: [..., c]; statistics are over all axes but the last.
    scale: [c] float32.
    bias: [c] float32.
    act: whether ReLU6 follows.

  Returns:
    The result in the dtype of `x`, and the mean and biased variance [c] in float32.
  """
  return _forward(x, scale, bias, act)[0]


def _forward(x, scale, bias, act):
  axes = tuple(range(x.ndim - 1))
  values = x.astype(jnp.float32)
  mean = jnp.mean(values, axes)
  var = jnp.maximum(jnp.mean(jnp.square(values), axes) - jnp.square(mean), 0)
  gain, shift = fold(scale, bias, mean, var)
  y = values * per_channel(gain, x.ndim) + per_channel(shift, x.ndim)
  y = jnp.clip(y, 0, 6) if act else y
  return (y.astype(x.dtype), mean, var), (x, scale, bias, mean, var)


def _backward(act: bool, residuals: Any, cotangents: Any):
  x, scale, bias, mean, var = residuals
  gradient, d_mean, d_var = cotangents
  axes = tuple(range(x.ndim - 1))
  n = x.size // x.shape[-1]
  channel = functools.partial(per_channel, ndim=x.ndim)
  values, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
  inverse = lax.rsqrt(var + EPSILON)
  gain, shift = fold(scale, bias, mean, var)
  if act:
    y = values * channel(gain) + channel(shift)
    gradient = jnp.where((y > 0) & (y < 6), gradient, 0)
  d_bias = jnp.sum(gradient, axes)
  # Centred after the sum, so that the sum reads two arrays that exist and writes none.
  d_scale = (jnp.sum(gradient * values, axes) - mean * d_bias) * inverse
  along = (2 * d_var - gain * inverse * d_scale) / n
  constant = (d_mean - gain * d_bias) / n - along * mean
  dx = gradient * channel(gain) + values * channel(along) + channel(constant)
  return dx.astype(x.dtype), d_scale, d_bias


batch_mode.defvjp(_forward, _backward)
