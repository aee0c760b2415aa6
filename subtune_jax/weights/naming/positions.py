"""Position embeddings of one grid of patches at another grid."""

import math

import numpy as np

from subtune_jax.weights import errors

_A = -0.75  # of the cubic kernel, as torch has it
_A_ANTIALIASED = -0.5


def fit(tensor: np.ndarray, grid: int, class_token: bool, antialias: bool = False) -> np.ndarray:
  """Returns a file's positions for a model's tokens.

  The class token's position is kept, and is zero for a model with a class token whose file has
  positions of the patches alone (timm adds it to the token itself then).

  Args:
    tensor: [tokens, width] or [1, tokens, width]; others are returned as they are.
    grid: patches along one side of the model's images.
    class_token: the model has one.
    antialias: see `resize`.

  Returns:
    [1, grid * grid, width], with the class token [1, 1 + grid * grid, width].

  Raises:
    WeightsError: the file's positions are not those of a square grid.
  """
  if tensor.ndim == 2:
    tensor = tensor[None]
  if tensor.ndim != 3 or tensor.shape[0] != 1:
    return tensor
  count, width = tensor.shape[1:]
  side = rows(count, class_token)
  first = count - side * side
  patches = tensor[0, first:].reshape(side, side, width)
  patches = resize(patches, grid, antialias).reshape(1, grid * grid, width)
  if not class_token:
    return patches
  token = tensor[:, :1] if first else np.zeros((1, 1, width), patches.dtype)
  return np.concatenate([token, patches], axis=1)


def rows(count: int, class_token: bool) -> int:
  """Rows of the square grid that has `count` positions, one more where it has the class token's.

  Raises:
    WeightsError: there is no such grid.
  """
  first = int(class_token and math.isqrt(count) ** 2 != count)
  side = math.isqrt(count - first)
  if side < 1 or side * side != count - first:
    raise errors.WeightsError(
      f"{count} positions{', the class token with it,' if class_token else ''} are not those of a "
      "square grid of patches; only weights of square images can be read"
    )
  return side


def resize(values: np.ndarray, side: int, antialias: bool = False) -> np.ndarray:
  """Bicubic interpolation of a square grid, in float32; one of the right size is returned as it is.

  Pixel centres lie at halves and the border is repeated, as in torch's
  `interpolate(mode="bicubic", align_corners=False, size=side)` that Hugging Face's models use.

  Args:
    values: [rows, rows, width].
    side: rows of the result.
    antialias: widen the kernel when shrinking, and take a = -0.5 for -0.75, as torch does; DINOv2
      with registers does so.

  Returns:
    [side, side, width].
  """
  if values.shape[0] == side:
    return values
  matrix = (_antialiased if antialias else _bicubic)(values.shape[0], side).astype(np.float32)
  return np.einsum("ai,bj,ijc->abc", matrix, matrix, values.astype(np.float32), optimize=True)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
  """Keys' cubic convolution kernel (1981)."""
  x = np.abs(distance)
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = ((x - 5) * x + 8) * a * x - 4 * a
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _bicubic(size: int, side: int) -> np.ndarray:
  """The matrix [side, size] of interpolation along one axis."""
  centre = (np.arange(side) + 0.5) * size / side - 0.5
  matrix = np.zeros((side, size))
  for tap in range(-1, 3):
    at = np.floor(centre) + tap
    column = np.clip(at, 0, size - 1).astype(int)
    np.add.at(matrix, (np.arange(side), column), _cubic(centre - at, _A))
  return matrix


def _antialiased(size: int, side: int) -> np.ndarray:
  """The matrix [side, size]; the kernel is cut at the border and its weights sum to 1."""
  scale = size / side
  centre = (np.arange(side) + 0.5) * scale
  distance = (np.arange(size)[None, :] + 0.5 - centre[:, None]) / max(scale, 1.0)
  matrix = _cubic(distance, _A_ANTIALIASED)
  return matrix / matrix.sum(axis=1, keepdims=True)
