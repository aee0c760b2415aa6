"""BatchNorm in batch mode with the activation behind it: one function with one backward pass.

The backward pass computes the normalised values again rather than keeping them, and reads every
activation twice: once for its sums, once for the gradient.
"""

import functools
from typing import Any, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from subtune_jax.models import inference

_Array = TypeVar("_Array", np.ndarray, jax.Array)

# The upper end of what each activation lets through; all but "none" cut at 0 from below.
LIMITS = {"none": None, "relu": jnp.inf, "relu6": 6.0}


def activate(x: jax.Array, act: str) -> jax.Array:
  """ReLU or ReLU6; the gradient is 0 at and outside the ends, as in torch.

  Args:
    x: of any shape.
    act: a key of `LIMITS`.
  """
  return (_activate if inference.is_active() else _trainable_activate)(x, act)


def _activate(x, act):
  return x if act == "none" else jnp.clip(x, 0, LIMITS[act])


def _activate_forward(x, act):
  y = _activate(x, act)
  return y, y


def _activate_backward(act, y, gradient):
  return (_masked(gradient, y, act),)


_trainable_activate = jax.custom_vjp(_activate, nondiff_argnums=(1,))
_trainable_activate.defvjp(_activate_forward, _activate_backward)


def _masked(gradient: jax.Array, y: jax.Array, act: str) -> jax.Array:
  """The gradient where `y`, before or after the activation, is strictly between its ends."""
  limit = LIMITS[act]
  if limit is None:
    return gradient
  return jnp.where((y > 0) & (y < limit), gradient, jnp.zeros_like(gradient))


def fold(
  scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array]:
  """Returns gain and shift, [c]: BatchNorm on given statistics is `x * gain + shift`."""
  gain = scale * lax.rsqrt(var + epsilon)
  return gain, bias - mean * gain


def per_channel(values: _Array, ndim: int) -> _Array:
  """[c] as [1, ..., 1, c] with `ndim` axes."""
  return values.reshape((1,) * (ndim - 1) + (-1,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_mode(
  x: jax.Array, scale: jax.Array, bias: jax.Array, act: str, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Normalises by the batch's own mean and biased variance, in float32.

  Args:
    x: [..., c]; statistics are over all axes but the last.
    scale: [c] float32.
    bias: [c] float32.
    act: the activation that follows, a key of `LIMITS`.
    epsilon: added to the variance.

  Returns:
    The result in the dtype of `x`, and the mean and biased variance [c] in float32.
  """
  return _forward(x, scale, bias, act, epsilon)[0]


def _forward(x, scale, bias, act, epsilon):
  axes = tuple(range(x.ndim - 1))
  values = x.astype(jnp.float32)
  mean = jnp.mean(values, axes)
  var = jnp.maximum(jnp.mean(jnp.square(values), axes) - jnp.square(mean), 0)
  gain, shift = fold(scale, bias, mean, var, epsilon)
  y = values * per_channel(gain, x.ndim) + per_channel(shift, x.ndim)
  y = y if act == "none" else jnp.clip(y, 0, LIMITS[act])
  return (y.astype(x.dtype), mean, var), (x, scale, bias, mean, var)


def _backward(act: str, epsilon: float, residuals: Any, cotangents: Any):
  x, scale, bias, mean, var = residuals
  gradient, d_mean, d_var = cotangents
  axes = tuple(range(x.ndim - 1))
  n = x.size // x.shape[-1]
  channel = functools.partial(per_channel, ndim=x.ndim)
  values, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
  inverse = lax.rsqrt(var + epsilon)
  gain, shift = fold(scale, bias, mean, var, epsilon)
  if act != "none":
    gradient = _masked(gradient, values * channel(gain) + channel(shift), act)
  d_bias = jnp.sum(gradient, axes)
  # Centred after the sum, so that the sum reads two arrays that exist and writes none.
  d_scale = (jnp.sum(gradient * values, axes) - mean * d_bias) * inverse
  along = (2 * d_var - gain * inverse * d_scale) / n
  constant = (d_mean - gain * d_bias) / n - along * mean
  dx = gradient * channel(gain) + values * channel(along) + channel(constant)
  return dx.astype(x.dtype), d_scale, d_bias


batch_mode.defvjp(_forward, _backward)
