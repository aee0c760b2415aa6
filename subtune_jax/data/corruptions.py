"""The 15 common corruptions of ImageNet-C and CIFAR-10-C at 5 severities, computed here.

Hendrycks & Dietterich (2019), "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", with the parameters of its code. A corrupted image is a function of the image, the
corruption, the severity, the seed and the image's index, on every machine.

These are not the published files:
  frost lays on a texture made here; the published one lays on six photographs (`textures` takes
    them);
  random draws differ from the published ones, everywhere;
  motion blur, snow and elastic interpolate in floating point where ImageMagick and OpenCV round;
  ImageNet-C's files were saved once more as JPEG of quality 85, and these are not.
The parameters fit images of 224 x 224 and of 32 x 32 pixels; at other sizes the same number of
pixels is a smaller or larger part of the image.
"""

from collections.abc import Callable, Sequence
import functools
import hashlib
import io

import numpy as np
from PIL import Image
from scipy import ndimage

from subtune_jax.data import choices

SEVERITIES = (1, 2, 3, 4, 5)

# One entry per severity. ImageNet-C: imagenet_c/corruptions.py; CIFAR-10-C: make_cifar_c.py.
_IMAGENET_C = {
  "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # standard deviation
  "shot_noise": (60, 25, 12, 5, 3),  # photons at full brightness
  "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),  # share of values
  "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),  # radius, edge sigma
  "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
  "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),  # radius, sigma
  "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
  "snow": (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
  ),
  "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),  # image, texture
  "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),  # amount, decay of detail
  "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
  "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
  "elastic_transform": (  # displacement, its sigma, corners, in pixels
    (488, 170.8, 24.4),
    (488, 19.52, 48.8),
    (12.2, 2.44, 4.88),
    (17.08, 2.44, 4.88),
    (29.28, 2.44, 4.88),
  ),
  "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
  "jpeg_compression": (25, 18, 15, 10, 7),
}
_CIFAR10_C = {
  "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
  "shot_noise": (500, 250, 100, 75, 50),
  "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
  "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
  "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
  "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
  "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
  "snow": (
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
  ),
  "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
  "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
  "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
  "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
  "elastic_transform": (
    (0, 0, 2.56),
    (1.6, 6.4, 2.24),
    (2.56, 1.92, 1.92),
    (3.2, 1.28, 1.6),
    (3.2, 0.96, 0.96),
  ),
  "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
  "jpeg_compression": (80, 65, 58, 50, 40),
}
TABLES = {"imagenet_c": _IMAGENET_C, "cifar10_c": _CIFAR10_C}
NAMES = tuple(_IMAGENET_C)


def corrupt(
  image: np.ndarray,
  name: str,
  severity: int,
  *,
  table: str,
  seed: int = 0,
  index: int = 0,
  textures: Sequence[np.ndarray] = (),
) -> np.ndarray:
  """Returns a corrupted image.

  Args:
    image: [h, w, 3] uint8, RGB, at least 16 pixels high and wide.
    name: of `NAMES`.
    severity: 1 to 5.
    table: "imagenet_c" for 224 x 224 pixels or "cifar10_c" for 32 x 32.
    seed: of the whole corrupted data set.
    index: of the image in it.
    textures: for frost, [height, width, 3] uint8, each as large as the image or larger (CIFAR-10-C
      has the photographs at a fifth of their size); empty makes
      one.

  Returns:
    [h, w, 3] uint8. Fractions are cut off, not rounded, as in the published code.

  Raises:
    ValueError: an unknown name, table or severity, or an image of another kind.
  """
  choices.check("corruption", name, NAMES)
  choices.check("table", table, TABLES)
  if severity not in SEVERITIES:
    raise ValueError(f"severity={severity!r} must be 1, 2, 3, 4 or 5.")
  shape, dtype = image.shape, image.dtype
  if dtype != np.uint8 or image.ndim != 3 or shape[2] != 3 or min(shape[:2]) < 16:
    raise ValueError(
      f"An image must be uint8 [height, width, 3], 16 pixels or more, got {dtype} {shape}."
    )
  digest = hashlib.sha256(f"{seed}/{index}/{name}".encode()).digest()
  # RandomState's draws are the same in every version of NumPy; those of Generator may change.
  rng = np.random.RandomState(np.frombuffer(digest, "<u4"))
  function: Callable[..., np.ndarray] = _FUNCTIONS[name]
  if name == "frost":
    function = functools.partial(function, textures=textures)
  result = function(image, TABLES[table][name][severity - 1], rng)
  return np.clip(result, 0, 255).astype(np.uint8)


def _gaussian_noise(image, sigma, rng):
  x = image / 255.0
  return np.clip(x + rng.normal(size=x.shape, scale=sigma), 0, 1) * 255


def _shot_noise(image, photons, rng):
  return np.clip(rng.poisson(image / 255.0 * photons) / photons, 0, 1) * 255


def _impulse_noise(image, share, rng):
  hit, white = rng.uniform(size=image.shape) <= share, rng.uniform(size=image.shape) <= 0.5
  return np.where(hit, np.where(white, 255, 0), image)


def _defocus_blur(image, parameters, rng):
  del rng
  kernel = _disk(*parameters)
  x = image / 255.0
  channels = [ndimage.correlate(x[..., c], kernel, mode="mirror") for c in range(3)]
  return np.clip(np.stack(channels, axis=-1), 0, 1) * 255


def _disk(radius: float, sigma: float) -> np.ndarray:
  """Returns a disk of sum 1 with an edge softened over 3 or 5 pixels."""
  reach, taps = (8, 1) if radius <= 8 else (radius, 2)
  y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
  disk = (x**2 + y**2 <= radius**2).astype(np.float64)
  soft = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * sigma**2))
  soft /= soft.sum()
  disk = ndimage.correlate1d(disk / disk.sum(), soft, axis=0, mode="mirror")
  return ndimage.correlate1d(disk, soft, axis=1, mode="mirror")


def _blur(x: np.ndarray, sigma: float) -> np.ndarray:
  return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=4)


def _glass_blur(image, parameters, rng):
  sigma, reach, rounds = parameters
  x = (_blur(image / 255.0, sigma) * 255).astype(np.uint8)
  height, width = x.shape[:2]
  rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
  place = np.arange(height * width).reshape(height, width).tolist()
  for _ in range(rounds):
    moves = rng.randint(-reach, reach, size=(len(rows) * len(columns), 2)).tolist()
    step = iter(moves)
    for h in rows:
      for w in columns:
        dx, dy = next(step)
        # The published code means to swap the two, but overwrites the first with the second.
        place[h][w] = place[h + dy][w + dx]
  x = x.reshape(-1, 3)[np.array(place)]
  return np.clip(_blur(x / 255.0, sigma), 0, 1) * 255


def _motion_blur(image, parameters, rng):
  radius, sigma = parameters
  return np.rint(_smear(image.astype(np.float64), radius, sigma, rng.uniform(-45, 45)))


def _smear(x: np.ndarray, radius: float, sigma: float, angle: float) -> np.ndarray:
  """Averages along a line from each pixel, as ImageMagick's motion blur; edges are repeated.

  Args:
    x: [h, w, ...].
    radius: half the length of the line, in pixels.
    sigma: of the one-sided Gaussian weights, in pixels.
    angle: of the line, in degrees.
  """
  steps = np.arange(2 * int(np.ceil(radius)) + 1)
  weights = np.exp(-(steps**2) / (2 * sigma**2))
  weights /= weights.sum()
  down = np.ceil(steps * np.sin(np.deg2rad(angle)) - 0.5).astype(int)
  right = np.ceil(steps * np.cos(np.deg2rad(angle)) - 0.5).astype(int)
  rows, columns = np.arange(x.shape[0]), np.arange(x.shape[1])
  out = np.zeros(x.shape)
  for weight, dy, dx in zip(weights, down, right, strict=True):
    from_rows = np.clip(rows + dy, 0, len(rows) - 1)
    from_columns = np.clip(columns + dx, 0, len(columns) - 1)
    out += weight * x[from_rows][:, from_columns]
  return out


def _zoom_blur(image, parameters, rng):
  del rng
  x = (image / 255.0).astype(np.float32)
  factors = np.arange(1, *parameters)
  total = x + sum(_zoomed(x, factor) for factor in factors)
  return np.clip(total / (len(factors) + 1), 0, 1) * 255


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
  """Returns the middle of `x` [h, w, channels], enlarged to its size."""
  height, width = x.shape[:2]
  rows, columns = int(np.ceil(height / factor)), int(np.ceil(width / factor))
  top, left = (height - rows) // 2, (width - columns) // 2
  middle = x[top : top + rows, left : left + columns]
  large = ndimage.zoom(middle, (factor, factor, 1), order=1)
  top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
  return large[top : top + height, left : left + width]


def _snow(image, parameters, rng):
  mean, sigma, zoom, threshold, radius, blur, weight = parameters
  x = image.astype(np.float32) / 255.0
  layer = rng.normal(size=x.shape[:2], loc=mean, scale=sigma)
  layer = _zoomed(layer[..., None], zoom)[..., 0]
  layer = np.clip(np.where(layer < threshold, 0, layer), 0, 1)
  layer = (layer * 255).astype(np.uint8).astype(np.float64)
  layer = np.rint(_smear(layer, radius, blur, rng.uniform(-135, -45)))[..., None] / 255.0
  grey = (x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
  x = weight * x + (1 - weight) * np.maximum(x, grey * 1.5 + 0.5)
  return np.clip(x + layer + np.rot90(layer, 2, axes=(0, 1)), 0, 1) * 255


def _frost(image, parameters, rng, textures=()):
  of_image, of_frost = parameters
  height, width = image.shape[:2]
  if textures:
    texture = textures[rng.randint(len(textures))]
    if texture.shape[0] < height or texture.shape[1] < width:
      raise ValueError(f"A frost texture is {texture.shape}, smaller than the image {image.shape}.")
    top = rng.randint(texture.shape[0] - height + 1)
    left = rng.randint(texture.shape[1] - width + 1)
    texture = texture[top : top + height, left : left + width]
  else:
    texture = _frost_texture(height, width, rng)
  return of_image * image + of_frost * texture.astype(np.float64)


def _frost_texture(height: int, width: int, rng) -> np.ndarray:
  """Returns ridges of fractal noise, crystals of a kind, in bluish white: [height, width, 3].

  Mean and standard deviation are near those of the published photographs, 160 and 40.
  """
  ridges = 1 - np.abs(2 * _plasma(max(height, width), 1.25, rng) - 1)
  cover = _plasma(max(height, width), 2.5, rng)
  light = (ridges**4 * 0.7 + cover * 0.5)[:height, :width, None]
  light = 160 + 40 * (light - light.mean()) / light.std()
  return np.clip(light * np.array([0.95, 1.0, 1.05]), 0, 255)


def _fog(image, parameters, rng):
  amount, decay = parameters
  height, width = image.shape[:2]
  x = image / 255.0
  brightest = x.max()
  x = x + amount * _plasma(max(height, width), decay, rng)[:height, :width, None]
  return np.clip(x * brightest / (brightest + amount), 0, 1) * 255


def _plasma(size: int, decay: float, rng) -> np.ndarray:
  """Returns fractal noise in 0..1 by the diamond-square algorithm, on a torus.

  Args:
    size: the side is the next power of 2.
    decay: the noise is divided by it at each halving of the step; larger is smoother.
    rng: of the noise.
  """
  side = 1 << (size - 1).bit_length()
  plasma = np.zeros((side, side))
  step, noise = side, 100.0

  def around(total):
    return total / 4 + noise * rng.uniform(-noise, noise, total.shape)

  while step >= 2:
    half = step // 2
    corners = plasma[::step, ::step]
    rows = corners + np.roll(corners, -1, axis=0)
    plasma[half::step, half::step] = around(rows + np.roll(rows, -1, axis=1))
    centres = plasma[half::step, half::step]
    plasma[::step, half::step] = around(
      centres + np.roll(centres, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
    )
    plasma[half::step, ::step] = around(
      centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
    )
    step, noise = half, noise / decay
  plasma -= plasma.min()
  return plasma / plasma.max()


def _brightness(image, amount, rng):
  """Adds to HSV's value, the largest channel; hue and saturation stay."""
  del rng
  x = image / 255.0
  value = x.max(axis=-1, keepdims=True)
  wanted = np.clip(value + amount, 0, 1)
  return np.where(value > 0, x * wanted / np.where(value > 0, value, 1), wanted) * 255


def _contrast(image, factor, rng):
  del rng
  x = image / 255.0
  means = x.mean(axis=(0, 1), keepdims=True)
  return np.clip((x - means) * factor + means, 0, 1) * 255


def _elastic_transform(image, parameters, rng):
  strength, sigma, corners = parameters
  x = image.astype(np.float32) / 255.0
  height, width = x.shape[:2]
  centre, reach = np.array([width, height]) // 2, min(height, width) // 3
  source = centre + reach * np.array([[1, 1], [1, -1], [-1, -1]])
  target = source + rng.uniform(-corners, corners, size=source.shape)
  # Affine map of (x, y, 1) from the target's corners back to the source's.
  back = np.linalg.solve(np.column_stack([target, np.ones(3)]), source)
  rows, columns = np.mgrid[:height, :width].astype(np.float64)
  old_columns, old_rows = (columns * back[0, k] + rows * back[1, k] + back[2, k] for k in (0, 1))
  x = _sampled(x, old_rows, old_columns, "mirror")
  smooth = functools.partial(ndimage.gaussian_filter, sigma=sigma, mode="reflect", truncate=3)
  dx, dy = (strength * smooth(rng.uniform(-1, 1, size=(height, width))) for _ in range(2))
  return np.clip(_sampled(x, rows + dy, columns + dx, "reflect"), 0, 1) * 255


def _sampled(x: np.ndarray, rows: np.ndarray, columns: np.ndarray, edges: str) -> np.ndarray:
  """Returns `x` [h, w, 3] at the places (rows, columns), bilinear."""
  channels = [
    ndimage.map_coordinates(x[..., c], (rows, columns), order=1, mode=edges) for c in range(3)
  ]
  return np.stack(channels, axis=-1)


def _pixelate(image, share, rng):
  del rng
  height, width = image.shape[:2]
  smaller = (int(width * share), int(height * share))
  small = Image.fromarray(image).resize(smaller, Image.Resampling.BOX)
  return np.asarray(small.resize((width, height), Image.Resampling.BOX))


def _jpeg_compression(image, quality, rng):
  del rng
  file = io.BytesIO()
  Image.fromarray(image).save(file, "JPEG", quality=quality)
  return np.asarray(Image.open(file))


_FUNCTIONS = {
  "gaussian_noise": _gaussian_noise,
  "shot_noise": _shot_noise,
  "impulse_noise": _impulse_noise,
  "defocus_blur": _defocus_blur,
  "glass_blur": _glass_blur,
  "motion_blur": _motion_blur,
  "zoom_blur": _zoom_blur,
  "snow": _snow,
  "frost": _frost,
  "fog": _fog,
  "brightness": _brightness,
  "contrast": _contrast,
  "elastic_transform": _elastic_transform,
  "pixelate": _pixelate,
  "jpeg_compression": _jpeg_compression,
}
