"""Random changes of colour, and mixtures of images, on the device."""

from typing import Any

import jax
import jax.numpy as jnp

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as in Pillow's "L"


def color_jitter(
  images: jax.typing.ArrayLike,
  keys: jax.Array,
  *,
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  hue: float = 0.0,
) -> jax.Array:
  """Changes brightness, contrast, saturation and hue, in this order, by random factors.

  Factors are uniform in [max(0, 1 - x), 1 + x], the hue's shift in [-x, x] turns, as torchvision
  draws them; torchvision also draws the order. The result is rounded once, at the end.

  Args:
    images: [batch, height, width, 3] uint8.
    keys: [batch] keys, as from `augment.view_keys`.
    brightness: 0 or more; 0 is off, here and below.
    contrast: 0 or more.
    saturation: 0 or more.
    hue: 0 to 0.5.

  Returns:
    [batch, height, width, 3] uint8.

  Raises:
    ValueError: a strength out of range.
  """
  strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
  for name, value in {**strengths, "hue": hue}.items():
    if not value >= 0 or (name == "hue" and value > 0.5):
      raise ValueError(f"{name}={value} is out of range; allowed: 0 to 0.5 for hue, else 0 or more")

  def one(image, key):
    draws = jax.random.uniform(key, (4,))
    low = [max(0.0, 1 - x) for x in strengths.values()]
    factors = [a + u * (1 + x - a) for a, u, x in zip(low, draws, strengths.values(), strict=False)]
    image = image.astype(jnp.float32)
    if brightness:
      image = blend(image, jnp.zeros_like(image), factors[0])
    if contrast:
      image = blend(image, jnp.full_like(image, jnp.round(jnp.mean(grey(image)))), factors[1])
    if saturation:
      image = blend(image, jnp.broadcast_to(grey(image), image.shape), factors[2])
    if hue:
      image = turn_hue(image, (2 * draws[3] - 1) * hue)
    return jnp.round(image).astype(jnp.uint8)

  return jax.vmap(one)(jnp.asarray(images), keys)


def grey(image: jax.Array) -> jax.Array:
  """[..., 3] as luma, [..., 1]."""
  luma: Any = sum(w * image[..., i : i + 1] for i, w in enumerate(_LUMA))
  return luma


def blend(image: jax.Array, other: jax.Array, factor: jax.Array | float) -> jax.Array:
  """`factor` of the image and the rest of the other, cut to 0..255."""
  return jnp.clip(factor * image + (1 - factor) * other, 0, 255)


def turn_hue(image: jax.Array, turn: jax.Array | float) -> jax.Array:
  """Turns the hue of [..., 3] in 0..255 by a part of a full turn (HSV)."""
  high, low = jnp.max(image, -1), jnp.min(image, -1)
  chroma = high - low
  red, green, blue = image[..., 0], image[..., 1], image[..., 2]
  safe = jnp.where(chroma > 0, chroma, 1)
  sixths = jnp.where(
    high == red,
    (green - blue) / safe,
    jnp.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
  )
  sixths = sixths + 6 * turn

  def channel(offset):
    k = jnp.mod(offset + sixths, 6)
    return high - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

  return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def mixup(x: jax.Array, key: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Mixes every row with another of its batch (Zhang et al. 2018, arXiv:1710.09412).

  Args:
    x: [batch, ...] floats: normalised images.
    key: of the draw; one share for the whole batch.
    alpha: of the Beta(alpha, alpha) that the share comes from, above 0.

  Returns:
    The mixtures `share * x + (1 - share) * x[partner]`, the partners [batch] and the share, so that
    the loss is mixed alike.
  """
  share_key, order_key = jax.random.split(key)
  share = jax.random.beta(share_key, alpha, alpha).astype(x.dtype)
  partner = jax.random.permutation(order_key, x.shape[0])
  return share * x + (1 - share) * x[partner], partner, share
