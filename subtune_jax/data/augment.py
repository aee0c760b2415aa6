"""Random views of images on the device: shifts, flips, resized crops and rotations.

Every function is jittable and vectorised over the batch. Each image has its own key, and its view
depends on that key and its own pixels only, not on the other images of the batch. Images go in and
come out as uint8 [batch, height, width, 3], so that a view can be cached and normalised like the
original.
"""

import functools
import math

import jax
import jax.numpy as jnp

_CROP_ATTEMPTS = 10
_PADDINGS = ("edge", "reflect")


def view_keys(
  seed: jax.typing.ArrayLike,
  indices: jax.typing.ArrayLike,
  epoch: jax.typing.ArrayLike,
  num_views: int,
) -> jax.Array:
  """Returns one key per image: a function of (seed, image index, epoch modulo num_views).

  Args:
    seed: scalar, the seed of the run.
    indices: [batch] position of each image in its data set.
    epoch: scalar, counted from 0.
    num_views: after this many epochs the views repeat, so that each can be cached.

  Returns:
    [batch] typed keys.

  Raises:
    ValueError: num_views is below 1.
  """
  if num_views < 1:
    raise ValueError(f"num_views must be at least 1, got {num_views}.")
  view_key = jax.random.fold_in(jax.random.key(seed), jnp.asarray(epoch) % num_views)
  return jax.vmap(functools.partial(jax.random.fold_in, view_key))(jnp.asarray(indices))


def shift_and_flip(
  images: jax.typing.ArrayLike,
  keys: jax.Array,
  pad: int,
  *,
  flip: bool = True,
  padding: str = "edge",
) -> jax.Array:
  """Shifts each image by up to `pad` pixels each way and mirrors it with probability one half.

  Args:
    images: [batch, height, width, 3] uint8.
    keys: [batch] keys, as from `view_keys`.
    pad: largest shift in pixels, along each axis; 0 for none.
    flip: whether to mirror left and right.
    padding: what comes in from outside: "edge" repeats the border's pixels, "reflect" mirrors the
      image about them.

  Returns:
    [batch, height, width, 3] uint8. With pad=0 and flip=False, the images themselves.

  Raises:
    ValueError: images that are not a uint8 batch with one key each, a negative pad, a pad that
      "reflect" cannot fill, or an unknown padding.
  """
  images = _checked(images, keys)
  if padding not in _PADDINGS:
    raise ValueError(f"Unknown padding {padding!r}. Allowed: {', '.join(map(repr, _PADDINGS))}.")
  largest = min(images.shape[1:3]) - 1
  if pad < 0 or (padding == "reflect" and pad > largest):
    raise ValueError(
      f"pad={pad} is out of range for images of {images.shape[1]} x {images.shape[2]} pixels; "
      f'allowed: 0 or more with "edge", 0 to {largest} with "reflect".'
    )

  def one(image, key):
    shift_key, flip_key = jax.random.split(key)
    offset = jax.random.randint(shift_key, (2,), 0, 2 * pad + 1)
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode=padding)
    image = jax.lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)
    return _maybe_flip(image, flip_key) if flip else image

  return jax.vmap(one)(images, keys)


def random_resized_crop(
  images: jax.typing.ArrayLike,
  keys: jax.Array,
  *,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
  flip: bool = True,
) -> jax.Array:
  """Cuts a random box from each image, resizes it to the image's size, and perhaps mirrors it.

  The box is that of Inception (Szegedy et al. 2015, arXiv:1409.4842, section 6) as torchvision
  draws it: the area uniform in `scale`, the aspect ratio log-uniform in `ratio`, ten attempts to
  fit, then the largest centred box of an allowed ratio. Resized bilinearly; at the rim of the box
  the pixels just outside it take part, where a crop made first would repeat the rim.

  Args:
    images: [batch, height, width, 3] uint8.
    keys: [batch] keys, as from `view_keys`.
    scale: smallest and largest area of the box, as a part of the image's.
    ratio: smallest and largest width / height of the box.
    flip: whether to mirror left and right with probability one half.

  Returns:
    [batch, height, width, 3] uint8, rounded.

  Raises:
    ValueError: images that are not a uint8 batch with one key each, or ranges that are not
      0 < smallest <= largest (and largest <= 1 for `scale`).
  """
  images = _checked(images, keys)
  if not 0 < scale[0] <= scale[1] <= 1:
    raise ValueError(f"scale={scale} must be (smallest, largest), 0 < smallest <= largest <= 1.")
  if not 0 < ratio[0] <= ratio[1]:
    raise ValueError(f"ratio={ratio} must be (smallest, largest), 0 < smallest <= largest.")
  height, width = images.shape[1:3]

  def one(image, key):
    box_key, flip_key = jax.random.split(key)
    image = _resize_box(image, *_random_box(box_key, height, width, scale, ratio))
    return _maybe_flip(image, flip_key) if flip else image

  return jax.vmap(one)(images, keys)


def rotate(images: jax.typing.ArrayLike, keys: jax.Array, degrees: float) -> jax.Array:
  """Rotates each image about its centre by an angle that is uniform in [-degrees, degrees].

  Bilinear, rounded; what comes in from outside repeats the rim (as `scipy.ndimage.rotate` does with
  order=1, mode="nearest", reshape=False).

  Args:
    images: [batch, height, width, 3] uint8.
    keys: [batch] keys, as from `view_keys`.
    degrees: from 0 to 180.

  Returns:
    [batch, height, width, 3] uint8.

  Raises:
    ValueError: images that are not a uint8 batch with one key each, or degrees out of range.
  """
  images = _checked(images, keys)
  if not 0 <= degrees <= 180:
    raise ValueError(f"rotate={degrees} is out of range; give degrees from 0 to 180.")
  largest = math.radians(degrees)

  def one(image, key):
    return rotated(image, jax.random.uniform(key, minval=-largest, maxval=largest))

  return jax.vmap(one)(images, keys)


def rotated(image: jax.Array, angle: jax.typing.ArrayLike) -> jax.Array:
  """Returns an image [height, width, 3] uint8, rotated counter-clockwise by `angle` in radians."""
  height, width = image.shape[:2]
  middle = (height - 1) / 2, (width - 1) / 2
  down = (jnp.arange(height) - middle[0])[:, None]
  right = (jnp.arange(width) - middle[1])[None]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  y, x = cos * down + sin * right + middle[0], cos * right - sin * down + middle[1]
  top, left = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)
  below, beside = (y - top)[..., None], (x - left)[..., None]

  def at(rows, columns):
    return image[jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)].astype(jnp.float32)

  upper = (1 - beside) * at(top, left) + beside * at(top, left + 1)
  lower = (1 - beside) * at(top + 1, left) + beside * at(top + 1, left + 1)
  return jnp.round((1 - below) * upper + below * lower).astype(jnp.uint8)


def quarter_turns(images: jax.typing.ArrayLike, keys: jax.Array) -> jax.Array:
  """Turns each image by 0, 90, 180 or 270 degrees, each with probability one quarter.

  Args:
    images: [batch, size, size, 3] uint8.
    keys: [batch] keys, as from `view_keys`.

  Raises:
    ValueError: images that are not a uint8 batch with one key each, or not square.
  """
  images = _checked(images, keys)
  if images.shape[1] != images.shape[2]:
    raise ValueError(f"Only square images have quarter turns; got {images.shape}.")

  def one(image, key):
    turned = jnp.stack([jnp.rot90(image, k) for k in range(4)])
    return turned[jax.random.randint(key, (), 0, 4)]

  return jax.vmap(one)(images, keys)


def flip_vertical(images: jax.typing.ArrayLike, keys: jax.Array) -> jax.Array:
  """Mirrors each image [height, width, 3] of a uint8 batch top and bottom, half of the time."""
  images = _checked(images, keys)
  return jax.vmap(functools.partial(_maybe_flip, axis=0))(images, keys)


def _random_box(key, height, width, scale, ratio) -> tuple[jax.Array, jax.Array]:
  """Returns (corner, size) of a box, both [2] int32: (top, left) and (height, width) in pixels."""
  area_key, ratio_key, corner_key = jax.random.split(key, 3)
  shape = (_CROP_ATTEMPTS,)
  area = height * width * jax.random.uniform(area_key, shape, minval=scale[0], maxval=scale[1])
  log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
  aspect = jnp.exp(jax.random.uniform(ratio_key, shape, minval=log_ratio[0], maxval=log_ratio[1]))
  sizes = jnp.round(jnp.sqrt(jnp.stack([area / aspect, area * aspect], axis=1))).astype(jnp.int32)
  limit = jnp.array([height, width], jnp.int32)
  fits = jnp.all((sizes >= 1) & (sizes <= limit[None, :]), axis=1)
  centred = jnp.array(_largest_box(height, width, ratio), jnp.int32)
  any_fits = jnp.any(fits)
  size = jnp.where(any_fits, sizes[jnp.argmax(fits)], centred)
  corner = jax.random.randint(corner_key, (2,), 0, limit - size + 1)
  return jnp.where(any_fits, corner, (limit - centred) // 2), size


def _largest_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
  """Returns (height, width) of the largest box in the image whose aspect ratio is in `ratio`."""
  if width < ratio[0] * height:
    return max(1, round(width / ratio[0])), width
  if width > ratio[1] * height:
    return height, max(1, round(height * ratio[1]))
  return height, width


def _resize_box(image: jax.Array, corner: jax.Array, size: jax.Array) -> jax.Array:
  """Returns the box of `image` resized to the image's own size, uint8."""
  zoom = jnp.array(image.shape[:2], jnp.float32) / size.astype(jnp.float32)
  resized = jax.image.scale_and_translate(
    image.astype(jnp.float32), image.shape, (0, 1), zoom, -corner * zoom, method="bilinear"
  )
  return jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)


def _maybe_flip(image: jax.Array, key: jax.Array, axis: int = 1) -> jax.Array:
  """Mirrors an image along an axis (1: left and right) with probability one half."""
  return jnp.where(jax.random.bernoulli(key), jnp.flip(image, axis), image)


def _checked(images: jax.typing.ArrayLike, keys: jax.Array) -> jax.Array:
  images = jnp.asarray(images)
  if images.dtype != jnp.uint8 or images.ndim != 4:
    raise ValueError(
      "Augmentation takes uint8 images [batch, height, width, 3], before normalisation; got "
      f"{images.dtype} {images.shape}."
    )
  if keys.shape != images.shape[:1]:
    raise ValueError(
      f"Augmentation takes one typed key per image, shape {images.shape[:1]} (see view_keys); got "
      f"{keys.dtype} {keys.shape}."
    )
  return images
