"""Two folders of photographs, as an inspection has them: crops with and without a scratch.

The photographs are scikit-learn's two samples (CC BY 2.0). The second folder is of the other
photograph, darker: the same question in another light.
"""

import pathlib

import numpy as np
from PIL import Image, ImageDraw
from sklearn import datasets

CLASSES = ("defect", "ok")


def write(
  root: pathlib.Path, *, number: int = 120, defects: int = 40, size: int = 96, seed: int = 0
) -> tuple[pathlib.Path, pathlib.Path]:
  """Writes ROOT/parts and ROOT/night, a folder a class each; returns both.

  Args:
    root: folder to write in.
    number: crops without a scratch, in each folder.
    defects: crops with one.
    size: of a crop, in pixels.
    seed: of positions and scratches.
  """
  rng = np.random.default_rng(seed)
  first, second = datasets.load_sample_images().images
  folders = root / "parts", root / "night"
  for folder, photo, light in zip(folders, (first, second), (1.0, 0.5), strict=True):
    for name, count in (("ok", number), ("defect", defects)):
      (folder / name).mkdir(parents=True)
      for index in range(count):
        image = _crop(photo, size, light, rng)
        if name == "defect":
          _scratch(image, rng)
        image.save(folder / name / f"{index:03d}.jpg", quality=92)
  return folders


def _crop(photo: np.ndarray, size: int, light: float, rng: np.random.Generator) -> Image.Image:
  top, left = (int(rng.integers(0, side - size)) for side in photo.shape[:2])
  pixels = photo[top : top + size, left : left + size] * light
  return Image.fromarray(pixels.astype(np.uint8))


def _scratch(image: Image.Image, rng: np.random.Generator) -> None:
  size = image.size[0]
  start = rng.integers(size // 8, size * 7 // 8, 2)
  angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.5) * size
  end = start + length * np.array([np.cos(angle), np.sin(angle)])
  grey = int(rng.integers(190, 256))
  ImageDraw.Draw(image).line([*map(float, start), *map(float, end)], fill=(grey,) * 3, width=2)
