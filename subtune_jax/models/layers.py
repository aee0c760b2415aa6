"""The layers that several backbones share."""

from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from subtune_jax.models import batch_norm, convolution, inference

MOMENTUM = 0.9  # of the running statistics; see Backbone.norm_momentum


class ConvBN(nn.Module):
  """A convolution without bias, BatchNorm, and an activation.

  With running statistics BatchNorm is folded into the kernel, so that neither pass computes it.

  Attributes:
    kind: "full", "depthwise" or "pointwise".
    features: channels out.
    kernel: side of the square kernel; 1 for "pointwise".
    stride: of both axes.
    padding: "SAME" (TensorFlow's) or "SYMMETRIC" (torch's); the latter for "full" ones only.
    act: "none", "relu" or "relu6".
    epsilon: of BatchNorm.
    use_batch_statistics: normalise by the batch and update the running statistics.
    momentum: of the running statistics.
    dtype: of the computation.
  """

  kind: str
  features: int
  kernel: int = 1
  stride: int = 1
  padding: str = "SAME"
  act: str = "none"
  epsilon: float = 1e-3
  use_batch_statistics: bool = False
  momentum: float = MOMENTUM
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    fan_in = 1 if self.kind == "depthwise" else x.shape[-1]
    init = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
    if self.kind == "depthwise":  # one input and one output channel to each
      init = nn.initializers.truncated_normal((2.0 / self.kernel**2) ** 0.5)
    shape = (self.kernel, self.kernel, fan_in, self.features)
    w = self.param("kernel", init, shape, jnp.float32)
    bn = BatchNorm(self.features, self.momentum, self.epsilon, name="bn")
    if self.use_batch_statistics:
      return bn.normalize(self.linear_map(x, w), self.act)
    with inference.constants():
      gain, shift = bn.fold()
      w = w * batch_norm.per_channel(gain, 4)
    y = self.linear_map(x, w, gain)
    y = y + batch_norm.per_channel(shift, x.ndim).astype(self.dtype)
    return batch_norm.activate(y, self.act)

  def linear_map(self, x: jax.Array, w: jax.Array, gain: jax.Array | None = None) -> jax.Array:
    """The convolution, for adapters to join: `gain` [features] is what `w` has been scaled by."""
    del gain
    return self.convolve(x, w)

  @nn.nowrap
  def convolve(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """The convolution with a kernel."""
    x, w = x.astype(self.dtype), w.astype(self.dtype)
    if self.kind == "pointwise":
      return convolution.pointwise(x, w)
    if self.kind == "depthwise":
      return convolution.depthwise(x, w, self.stride)
    return convolution.full(x, w, self.stride, self.padding)


class BatchNorm(nn.Module):
  """Parameters and running statistics [features] in float32, and the two ways to use them.

  The running statistics follow torch: `running = momentum * running + (1 - momentum) * batch`, with
  the unbiased variance (Flax's own layer keeps the biased one); normalising uses the biased one in
  both.
  """

  features: int
  momentum: float = MOMENTUM
  epsilon: float = 1e-3

  def setup(self) -> None:
    shape = (self.features,)
    self.scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
    self.bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
    self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
    self.var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)

  def fold(self) -> tuple[jax.Array, jax.Array]:
    """Returns gain and shift [features] of the running statistics."""
    running = (self.mean.value, self.var.value)
    return batch_norm.fold(self.scale, self.bias, *running, self.epsilon)

  def normalize(self, x: jax.Array, act: str) -> jax.Array:
    """Normalises [..., features] by the batch's statistics and updates the running ones."""
    y, mean, var = batch_norm.batch_mode(x, self.scale, self.bias, act, self.epsilon)
    if not self.is_initializing():
      n = x.size // self.features
      unbiased = var * (n / max(n - 1, 1))
      for running, batch in ((self.mean, mean), (self.var, unbiased)):
        batch = lax.stop_gradient(batch)
        running.value = self.momentum * running.value + (1 - self.momentum) * batch
    return y


class PatchConv(nn.Module):
  """A convolution whose kernel does not overlap itself: patches of the map times a matrix.

  What is left over at the right and at the bottom is not read, as in torch.

  Attributes:
    features: channels out.
    patch: side of the square patches.
    use_bias: whether there is one.
    dtype: of the computation.
  """

  features: int
  patch: int
  use_bias: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.initializers.lecun_normal()
    shape = (self.patch, self.patch, x.shape[3], self.features)
    y = self.convolve(x, self.param("kernel", init, shape, jnp.float32))
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
      y = y + batch_norm.per_channel(bias, y.ndim).astype(self.dtype)
    return y

  @nn.nowrap
  def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution with a kernel [patch, patch, c, features]."""
    p, features = self.patch, kernel.shape[-1]
    n, h, w, c = x.shape[0], x.shape[1] // p, x.shape[2] // p, x.shape[3]
    x = x[:, : h * p, : w * p].reshape(n, h, p, w, p, c).transpose(0, 1, 3, 2, 4, 5)
    return jnp.dot(x.reshape(n, h, w, -1), kernel.astype(self.dtype).reshape(-1, features))
