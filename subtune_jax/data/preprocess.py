"""How uint8 images become a network's input: one mean and one standard deviation per channel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """The statistics a backbone was trained with, in units of 0..255.

  Attributes:
    mean: one value for all channels, or one for each of red, green and blue.
    std: likewise, greater than 0.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]

  def __post_init__(self):
    for name in ("mean", "std"):
      values = tuple(float(v) for v in np.atleast_1d(getattr(self, name)))
      if len(values) not in (1, 3):
        raise ValueError(f"{name}={values} has {len(values)} values; give 1, or red, green, blue")
      object.__setattr__(self, name, values)
    if min(self.std) <= 0:
      raise ValueError(f"std={self.std} must be greater than 0, in units of 0..255")


def normalize(
  images: jax.Array | np.ndarray,
  preprocessing: Preprocessing,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
  """Returns `(images - mean) / std`, computed in float32 and cast to `dtype`.

  Args:
    images: [..., height, width, 3], uint8 or values in 0..255.
    preprocessing: the backbone's statistics.
    dtype: of the result.

  Raises:
    ValueError: the last axis is not 3 channels.
  """
  if images.ndim < 3 or images.shape[-1] != 3:
    raise ValueError(f"images have shape {images.shape}; expected [..., height, width, 3]")
  shape = (1,) * (images.ndim - 1) + (-1,)
  mean = np.reshape(np.float32(preprocessing.mean), shape)
  std = np.reshape(np.float32(preprocessing.std), shape)
  return ((jnp.asarray(images, jnp.float32) - mean) / std).astype(dtype)
