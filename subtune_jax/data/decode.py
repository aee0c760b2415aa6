"""An image file becomes uint8 RGB of one size, or a `BrokenImageError` that says why not.

JPEG, PNG, WebP, BMP, GIF and TIFF. Of an animation, the first frame. Transparent pixels are laid on
white. Values of 16 bits keep their upper 8, whether grey or RGB. EXIF's orientation is applied.
JPEGs are decoded whole: decoding at a reduced scale (Pillow's draft mode) gives other pixels than
decoding and then resizing.
"""

from collections.abc import Callable
from concurrent import futures
import functools
import io
import math
import os
import stat
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from subtune_jax.data import choices, errors, resize

VERSION = 1  # Of the pixels; raise it when the same file would give others.
MAX_PIXELS = 100_000_000
SUFFIXES = frozenset(
  (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
)
NO_ANTIALIAS = "bilinear_no_antialias"  # VTAB's; Pillow's filters widen as an image shrinks
INTERPOLATIONS = {
  "bicubic": Image.Resampling.BICUBIC,
  "bilinear": Image.Resampling.BILINEAR,
  "lanczos": Image.Resampling.LANCZOS,
  NO_ANTIALIAS: None,
}

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_ORIENTATION = 0x0112
_TRANSPOSES: dict[int | None, Image.Transpose] = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
_MANY_PIXELS = 16_000_000


def check_size(image_size: int, interpolation: str) -> None:
  """Raises ValueError unless the size is a positive integer and the interpolation is known."""
  choices.check("interpolation", interpolation, INTERPOLATIONS)
  if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
    raise ValueError(f"image_size must be a positive integer of pixels, got {image_size!r}.")


def square(path: str | os.PathLike, image_size: int, interpolation: str = "bicubic") -> np.ndarray:
  """Reads an image and resizes it to a square, whatever its shape.

  Args:
    path: of the file.
    image_size: side of the square, in pixels.
    interpolation: "bicubic", "bilinear" or "lanczos", antialiased as in Pillow, or
      "bilinear_no_antialias".

  Returns:
    [image_size, image_size, 3] uint8.

  Raises:
    BrokenImageError: the file cannot be read as an image; the message begins with its path.
  """
  return _read(path, lambda image: _resized(image, image_size, interpolation))


def square_of(data: bytes, image_size: int, interpolation: str = "bicubic") -> np.ndarray:
  """What `square` makes of a file with these bytes.

  Raises:
    BrokenImageError: they are no image that can be read.
  """
  use = functools.partial(_resized, image_size=image_size, interpolation=interpolation)
  return _read(data, use)


def resized(image: Image.Image, image_size: int, interpolation: str = "bicubic") -> np.ndarray:
  """What `square` makes of a file, of an image that Pillow has opened.

  Raises:
    BrokenImageError: its pixels cannot be read.
  """
  try:
    return _resized(_as_rgb(image), image_size, interpolation)
  except Exception as error:
    raise errors.BrokenImageError(f"{image!r}: {_reason(error)}") from error


def _resized(image: Image.Image, image_size: int, interpolation: str) -> np.ndarray:
  if interpolation == NO_ANTIALIAS:
    return resize.bilinear(np.asarray(image), image_size, image_size)
  size = (image_size, image_size)
  return np.asarray(
    image if image.size == size else image.resize(size, INTERPOLATIONS[interpolation])
  )


def problem(path: str | os.PathLike) -> str:
  """Returns why the file cannot be read as an image, "" when it can; decodes it whole."""
  try:
    _read(path, lambda image: None)
  except errors.BrokenImageError as error:
    return str(error.__cause__ or error)
  return ""


def stored_size(path: str | os.PathLike) -> tuple[int, int]:
  """Returns (width, height) as the file's header has them, before its orientation is applied."""
  with open(path, "rb") as file, Image.open(file, formats=_FORMATS) as image:
    return image.size


@functools.cache
def _large_images() -> futures.ThreadPoolExecutor:
  """The one thread for large images: freed memory stays with the thread that had it (glibc)."""
  return futures.ThreadPoolExecutor(1, thread_name_prefix="large_images")


def _opened(source: str | os.PathLike | bytes) -> BinaryIO:
  if isinstance(source, bytes):
    return io.BytesIO(source)
  if not stat.S_ISREG(os.stat(source).st_mode):
    raise ValueError("not a regular file")
  return open(source, "rb")


def _read(
  source: str | os.PathLike | bytes, use: Callable[[Image.Image], Any], most: float = _MANY_PIXELS
) -> Any:
  """Returns `use` of the RGB image of a file, or of its bytes.

  Images of more pixels than `most` take turns.
  """
  try:
    with _opened(source) as file:
      _check_webp_header(file)
      with Image.open(file, formats=_FORMATS) as image:
        _check_pixels(*image.size)
        if image.width * image.height <= most:
          return use(_as_rgb(image))
  # A damaged file can raise anything from a decoder: struct.error, SyntaxError, MemoryError, ...
  except Exception as error:
    reason = ValueError(_reason(error))
    name = "the picture" if isinstance(source, bytes) else os.fspath(source)
    raise errors.BrokenImageError(f"{name}: {reason}") from reason
  return _large_images().submit(_read, source, use, math.inf).result()


def _reason(error: Exception) -> str:
  if isinstance(error, Image.DecompressionBombError):
    return f"gigapixel header, allowed: {MAX_PIXELS // 10**6} megapixels"
  if isinstance(error, Image.UnidentifiedImageError):
    return "not an image of a known format"
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return str(error) or type(error).__name__


def _check_pixels(width: int, height: int) -> None:
  if width * height > MAX_PIXELS:
    raise ValueError(
      f"gigapixel header, {width} x {height}; allowed: {MAX_PIXELS // 10**6} megapixels"
    )


def _check_webp_header(file: BinaryIO) -> None:
  """Checks the size in a WebP's header: Pillow's decoder takes the memory when it is opened."""
  head = file.read(30)
  file.seek(0)
  if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
    return
  number = int.from_bytes
  if head[12:16] == b"VP8X":
    _check_pixels(number(head[24:27], "little") + 1, number(head[27:30], "little") + 1)
  elif head[12:16] == b"VP8L":
    bits = number(head[21:25], "little")
    _check_pixels((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
  elif head[12:16] == b"VP8 ":
    _check_pixels(number(head[26:28], "little") & 0x3FFF, number(head[28:30], "little") & 0x3FFF)


def _as_rgb(image: Image.Image) -> Image.Image:
  """Returns the image upright, in RGB, on white."""
  image.load()
  _check_pixels(*image.size)  # A frame of a GIF may be larger than its header says.
  turn = _TRANSPOSES.get(_orientation(image))
  if image.mode == "F":
    raise ValueError("an image of floating-point values, whose range no header gives")
  if image.mode == "I" or image.mode.startswith("I;"):
    image = _eight_bits(image)
  elif image.has_transparency_data:
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    image = white
  if image.mode != "RGB":
    image = image.convert("RGB")
  return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int | None:
  try:
    return image.getexif().get(_ORIENTATION)
  except Exception:  # The pixels do not need the block; a broken one is as good as none.
    return None


def _eight_bits(image: Image.Image) -> Image.Image:
  """Returns the upper 8 of the 16 bits of a grey image, as Pillow does for RGB."""
  values = np.asarray(image)
  if values.size and (values.min() < 0 or values.max() > 65535):
    raise ValueError("values outside 0 to 65535; save it with 8 or 16 bits")
  return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
