"""Emoji Domains: 1,087 emoji, each drawn by four design teams, in 45 classes.

The images (96 x 96 RGB, lossless WebP) and `manifest.csv` come with the package in one zip, which
is read here with `zipfile` and Pillow. The splits are by concept and the same in every domain.
Licences: `ATTRIBUTION`, and `files/emoji_domains/LICENSES.md` beside the zip.
"""

import collections
import csv
import hashlib
import io
import os
import pathlib
import zipfile

import numpy as np
from PIL import Image

from subtune_jax.data import choices, dataset

NATIVE_SIZE = 96  # pixels, height and width of the stored images
NUM_CLASSES = 45
SPLIT_SIZES = {"train": 652, "validation": 174, "test": 261}  # images, in each domain
DEFAULT_PATH = pathlib.Path(__file__).parent / "files" / "emoji_domains" / "emoji_domains.zip"
SHA256 = "a08d815a4090bb5553882fa3c4f4c567ef02d7567258e8288a6a92b92df3e9d0"

# Goes wherever the images of a domain go.
ATTRIBUTION = {
  "noto": "Noto Emoji, Google Inc (Apache-2.0), from @iconify-json/noto 1.2.9",
  "twemoji": "Twemoji, Twitter Inc and contributors (CC-BY-4.0), from @iconify-json/twemoji 1.2.5",
  "openmoji": (
    "OpenMoji, HfG Schwaebisch Gmuend (CC-BY-SA-4.0), from @iconify-json/openmoji 1.2.29"
  ),
  "fluent": (
    "Fluent Emoji (flat), Microsoft Corporation (MIT), from @iconify-json/fluent-emoji-flat 1.2.6"
  ),
}
DOMAINS = tuple(ATTRIBUTION)

INTERPOLATIONS = {
  "bicubic": Image.Resampling.BICUBIC,
  "bilinear": Image.Resampling.BILINEAR,
}

_FIX = "Reinstall subtune_jax, or put the released emoji_domains.zip there again."


def load(
  domain: str,
  split: str,
  image_size: int = NATIVE_SIZE,
  *,
  interpolation: str = "bicubic",
  path: str | os.PathLike | None = None,
) -> dataset.Dataset:
  """Reads one split of one domain, in the order of the manifest.

  Labels number the sorted class names, groups are concepts, ids are the files' names in the zip.

  Args:
    domain: one of `DOMAINS`.
    split: one of `SPLIT_SIZES`.
    image_size: height and width of the returned images, in pixels. 96 returns the stored pixels.
    interpolation: Pillow's filter for another size, "bicubic" or "bilinear"; Pillow widens either
      with the reduction, so that it does not alias.
    path: a copy of the zip elsewhere; the one that comes with the package by default.

  Returns:
    A `Dataset` with images [n, image_size, image_size, 3].

  Raises:
    FileNotFoundError: there is no zip at the path.
    ValueError: an unknown domain, split or interpolation, an image size that is not a positive
      integer, or a zip that is not the released one.
  """
  choices.check("Emoji Domains domain", domain, DOMAINS)
  choices.check("split", split, SPLIT_SIZES)
  choices.check("interpolation", interpolation, INTERPOLATIONS)
  if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
    raise ValueError(f"image_size must be a positive integer of pixels, got {image_size!r}.")
  path = pathlib.Path(DEFAULT_PATH if path is None else path)
  with zipfile.ZipFile(io.BytesIO(_read_verified(path))) as archive:
    manifest = _read_manifest(archive, path)
    rows = [row for row in manifest if row["domain"] == domain and row["split"] == split]
    images = [_decode(archive, row["file"], image_size, interpolation) for row in rows]
  classes = _sorted_classes(manifest)
  label_of = {name: label for label, name in enumerate(classes)}
  return dataset.Dataset(
    images=np.stack(images),
    labels=np.array([label_of[row["class"]] for row in rows], np.int32),
    groups=np.array([row["concept"] for row in rows]),
    ids=np.array([row["file"] for row in rows]),
    class_names=classes,
    name=f"emoji_domains/{domain}",
    split=split,
  )


def class_names() -> tuple[str, ...]:
  """Returns the names of the 45 classes, sorted: the same in every domain and split."""
  with zipfile.ZipFile(io.BytesIO(_read_verified(DEFAULT_PATH))) as archive:
    return _sorted_classes(_read_manifest(archive, DEFAULT_PATH))


def _sorted_classes(manifest: list[dict[str, str]]) -> tuple[str, ...]:
  return tuple(sorted({row["class"] for row in manifest}))


def _read_verified(path: pathlib.Path) -> bytes:
  """Returns the bytes of the zip after comparing them with `SHA256`."""
  if not path.is_file():
    raise FileNotFoundError(f"Emoji Domains: there is no file {path}. {_FIX}")
  content = path.read_bytes()
  found = hashlib.sha256(content).hexdigest()
  if found != SHA256:
    raise ValueError(
      f"Emoji Domains: {path} is damaged or another file: its SHA-256 is {found} "
      f"({len(content)} bytes), expected {SHA256}. {_FIX}"
    )
  return content


def _read_manifest(archive: zipfile.ZipFile, path: pathlib.Path) -> list[dict[str, str]]:
  """Returns the rows of manifest.csv after checking the number of classes and images."""
  rows = list(csv.DictReader(io.StringIO(archive.read("manifest.csv").decode("utf-8"))))
  found = collections.Counter((row["domain"], row["split"]) for row in rows)
  expected = {(domain, split): n for domain in DOMAINS for split, n in SPLIT_SIZES.items()}
  num_classes = len({row["class"] for row in rows})
  if found != expected or num_classes != NUM_CLASSES:
    raise ValueError(
      f"Emoji Domains: manifest.csv in {path} lists {num_classes} classes and {dict(found)} "
      f"images, expected {NUM_CLASSES} classes and {expected}. {_FIX}"
    )
  return rows


def _decode(archive: zipfile.ZipFile, file: str, size: int, interpolation: str) -> np.ndarray:
  """Returns one image, [size, size, 3] uint8."""
  try:
    with Image.open(io.BytesIO(archive.read(file))) as image:
      rgb = image.convert("RGB")
  except OSError as error:  # Pillow's own errors are OSErrors.
    raise ValueError(
      f"Emoji Domains: Pillow cannot read {file}: {error}. Install a Pillow with WebP support."
    ) from error
  if rgb.size != (size, size):
    rgb = rgb.resize((size, size), INTERPOLATIONS[interpolation])
  return np.asarray(rgb)
