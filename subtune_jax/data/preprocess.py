"""How an image file becomes a network's input: resize, crop, then one mean and std per channel."""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from subtune_jax.data import choices

_FILTERS = {
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
  "lanczos": Image.Resampling.LANCZOS,
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """What a backbone was trained to see. Mean and std are in units of 0..255.

  Attributes:
    mean: one value for all channels, or one for each of red, green and blue.
    std: likewise, greater than 0.
    interpolation: of the resize: "bilinear", "bicubic" or "lanczos", antialiased as in Pillow.
    resize: share of the resized shorter side that the centre crop keeps, in (0, 1]; None resizes
      to the square that the network reads, whatever the image's shape.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  interpolation: str = "bilinear"
  resize: float | None = None

  def __post_init__(self):
    for name in ("mean", "std"):
      values = tuple(float(v) for v in np.atleast_1d(getattr(self, name)))
      if len(values) not in (1, 3):
        raise ValueError(f"{name}={values} has {len(values)} values; give 1, or red, green, blue")
      object.__setattr__(self, name, values)
    if not min(self.std) > 0:
      raise ValueError(f"std={self.std} must be greater than 0, in units of 0..255")
    choices.check("interpolation", self.interpolation, _FILTERS)
    if self.resize is not None and not 0 < self.resize <= 1:
      raise ValueError(f"resize={self.resize} must be a share in (0, 1], or None")


_IMAGENET_MEAN, _IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_CLIP_MEAN = (122.7709383, 116.7460125, 104.09373615)
_CLIP_STD = (68.5005327, 66.6321579, 70.32316305)

# What the published weights were evaluated with.
PRESETS = {
  "imagenet": Preprocessing(_IMAGENET_MEAN, _IMAGENET_STD, "bilinear", 224 / 256),
  "imagenet_232": Preprocessing(_IMAGENET_MEAN, _IMAGENET_STD, "bilinear", 224 / 232),
  "convnext_tiny": Preprocessing(_IMAGENET_MEAN, _IMAGENET_STD, "bilinear", 224 / 236),
  "convnext_small": Preprocessing(_IMAGENET_MEAN, _IMAGENET_STD, "bilinear", 224 / 230),
  "imagenet_bicubic": Preprocessing(_IMAGENET_MEAN, _IMAGENET_STD, "bicubic", 224 / 256),
  "clip": Preprocessing(_CLIP_MEAN, _CLIP_STD, "bicubic", 1.0),
  "unit": Preprocessing((0.0,), (255.0,), "bilinear"),
  "half": Preprocessing((127.5,), (127.5,), "bilinear"),
  "half_bicubic": Preprocessing((127.5,), (127.5,), "bicubic"),
  # MEAN_RGB and STDDEV_RGB of the TensorFlow original's efficientnet_lite_builder.py.
  "efficientnet_lite": Preprocessing((127.0,), (128.0,), "bicubic", 224 / 256),
}


def preset(name: Preprocessing | str) -> Preprocessing:
  """Returns the preset of that name; a `Preprocessing` is returned as it is.

  Raises:
    ValueError: no preset has that name.
  """
  if isinstance(name, Preprocessing):
    return name
  choices.check("preprocessing", name, PRESETS)
  return PRESETS[name]


def resize_and_crop(image: Image.Image, preprocessing: Preprocessing, size: int) -> np.ndarray:
  """Returns the square that a network reads.

  The shorter side is resized to `size / preprocessing.resize`, rounded, and the centre cropped, as
  torchvision's evaluation does; without `preprocessing.resize` the image is resized to the square.

  Args:
    image: in any mode that Pillow converts to RGB.
    preprocessing: its interpolation and resize are used.
    size: side of the square, in pixels.

  Returns:
    uint8 [size, size, 3].
  """
  image = image.convert("RGB")
  resample = _FILTERS[preprocessing.interpolation]
  if preprocessing.resize is None:
    return np.asarray(image.resize((size, size), resample))
  short, long = sorted(image.size)
  side = round(size / preprocessing.resize)
  other = int(side * long / short)
  width, height = (side, other) if image.width <= image.height else (other, side)
  image = image.resize((width, height), resample)
  left, top = round((width - size) / 2), round((height - size) / 2)
  return np.asarray(image.crop((left, top, left + size, top + size)))


def normalize(images: Any, preprocessing: Preprocessing, dtype: Any = np.float32) -> Any:
  """Returns `(images - mean) / std`, computed in float32 and cast to `dtype`.

  Args:
    images: [..., height, width, 3], uint8 or values in 0..255; a JAX or a NumPy array, as the
      result is.
    preprocessing: the backbone's statistics.
    dtype: of the result.

  Raises:
    ValueError: the last axis is not 3 channels.
  """
  if images.ndim < 3 or images.shape[-1] != 3:
    raise ValueError(f"images have shape {images.shape}; expected [..., height, width, 3]")
  shape = (1,) * (images.ndim - 1) + (-1,)
  mean = np.reshape(np.asarray(preprocessing.mean, np.float32), shape)
  std = np.reshape(np.asarray(preprocessing.std, np.float32), shape)
  return ((images.astype(np.float32) - mean) / std).astype(dtype)
