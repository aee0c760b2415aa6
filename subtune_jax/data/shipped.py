"""Reads the sets of domains that come with the package, each in one zip.

A `Shipped` says what a zip has to hold: `emoji_domains.SET`, `glyph_domains.SET`. The zip is read
with `zipfile` and Pillow: `manifest.csv` (`file, domain, class, split` and the column that names
groups) and lossless WebP images, each an example or a column of square ones, one per class.
"""

import collections
from collections.abc import Iterator, Mapping
import csv
import dataclasses
import hashlib
import io
import itertools
import os
import pathlib
import zipfile

import numpy as np
from PIL import Image

from subtune_jax.data import choices, dataset

INTERPOLATIONS = {
  "bicubic": Image.Resampling.BICUBIC,
  "bilinear": Image.Resampling.BILINEAR,
}
_FILES = pathlib.Path(__file__).parent / "files"


@dataclasses.dataclass(frozen=True)
class Shipped:
  """A set of domains in one zip.

  Attributes:
    name: in the registry, before the slash and the domain; also of the folder and the zip.
    title: for messages.
    sha256: of the zip.
    native_size: height and width of the stored images, in pixels.
    num_classes: the same classes in every domain.
    split_sizes: split -> images in each domain.
    attribution: domain -> whose images it holds and under which licence; goes wherever they go.
    group: the manifest's column of what stays together, such as "concept".
    tiles: classes of the examples down one stored image; () where it is one example, whose class
      the manifest has.
  """

  name: str
  title: str
  sha256: str
  native_size: int
  num_classes: int
  split_sizes: Mapping[str, int]
  attribution: Mapping[str, str]
  group: str
  tiles: tuple[str, ...] = ()

  @property
  def path(self) -> pathlib.Path:
    """Where the zip of the package is."""
    return _FILES / self.name / f"{self.name}.zip"

  def load(
    self,
    domain: str,
    split: str,
    image_size: int | None = None,
    *,
    interpolation: str = "bicubic",
    path: str | os.PathLike | None = None,
  ) -> dataset.Dataset:
    """Reads one split of one domain, in the order of the manifest.

    Labels number the sorted class names.

    Args:
      domain: a key of `attribution`.
      split: a key of `split_sizes`, or "trainval": both, train first.
      image_size: height and width of the returned images, in pixels; None returns the stored ones.
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
    size = self.native_size if image_size is None else image_size
    choices.check(f"{self.title} domain", domain, self.attribution)
    choices.check("split", split, (*self.split_sizes, "trainval"))
    choices.check("interpolation", interpolation, INTERPOLATIONS)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
      raise ValueError(f"image_size must be a positive integer of pixels, got {size!r}.")
    wanted = ("train", "validation") if split == "trainval" else (split,)
    path = pathlib.Path(self.path if path is None else path)
    with zipfile.ZipFile(io.BytesIO(self._read_verified(path))) as archive:
      manifest = self._manifest(archive, path)
      rows = [
        row
        for part in wanted
        for row in manifest
        if row["domain"] == domain and row["split"] == part
      ]
      images = np.stack(list(self._images(archive, rows, size, INTERPOLATIONS[interpolation])))
    classes = _sorted_classes(manifest)
    label_of = {name: label for label, name in enumerate(classes)}
    return dataset.Dataset(
      images=images,
      labels=np.array([label_of[row["class"]] for row in rows], np.int32),
      groups=np.array([row[self.group] for row in rows]),
      ids=np.array([row["id"] for row in rows]),
      class_names=classes,
      name=f"{self.name}/{domain}",
      split=split,
    )

  def class_names(self) -> tuple[str, ...]:
    """Returns the names of the classes, sorted: the same in every domain and split."""
    with zipfile.ZipFile(io.BytesIO(self._read_verified(self.path))) as archive:
      return _sorted_classes(self._manifest(archive, self.path))

  @property
  def _fix(self) -> str:
    return f"Reinstall subtune_jax, or put the released {self.path.name} there again."

  def _read_verified(self, path: pathlib.Path) -> bytes:
    """Returns the bytes of the zip after comparing them with `sha256`."""
    if not path.is_file():
      raise FileNotFoundError(f"{self.title}: there is no file {path}. {self._fix}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != self.sha256:
      raise ValueError(
        f"{self.title}: {path} is damaged or another file: its SHA-256 is {found} "
        f"({len(content)} bytes), expected {self.sha256}. {self._fix}"
      )
    return content

  def _manifest(self, archive: zipfile.ZipFile, path: pathlib.Path) -> list[dict[str, str]]:
    """Returns a row per example, after checking the number of classes and examples."""
    lines = io.StringIO(archive.read("manifest.csv").decode("utf-8"))
    rows = [row for stored in csv.DictReader(lines) for row in self._examples(stored)]
    found = collections.Counter((row["domain"], row["split"]) for row in rows)
    expected = {(d, split): n for d in self.attribution for split, n in self.split_sizes.items()}
    num_classes = len({row["class"] for row in rows})
    if found != expected or num_classes != self.num_classes:
      raise ValueError(
        f"{self.title}: manifest.csv in {path} lists {num_classes} classes and {dict(found)} "
        f"images, expected {self.num_classes} classes and {expected}. {self._fix}"
      )
    return rows

  def _examples(self, stored: dict[str, str]) -> list[dict[str, str]]:
    """The rows of the examples in one stored image."""
    if not self.tiles:
      return [stored | {"id": stored["file"]}]
    folder = stored["file"].removesuffix(".webp")
    return [stored | {"id": f"{folder}/{name}", "class": name} for name in self.tiles]

  def _images(
    self, archive: zipfile.ZipFile, rows: list[dict[str, str]], size: int, resampling: int
  ) -> Iterator[np.ndarray]:
    """Yields the image of each row, [size, size, 3] uint8."""
    side = self.native_size
    for file, own in itertools.groupby(rows, lambda row: row["file"]):
      image = self._decode(archive, file)
      for number, _ in enumerate(own):
        tile = image.crop((0, side * number, side, side * (number + 1))) if self.tiles else image
        yield np.asarray(
          tile if tile.size == (size, size) else tile.resize((size,) * 2, resampling)
        )

  def _decode(self, archive: zipfile.ZipFile, file: str) -> Image.Image:
    try:
      with Image.open(io.BytesIO(archive.read(file))) as image:
        return image.convert("RGB")
    except OSError as error:  # Pillow's own errors are OSErrors.
      raise ValueError(
        f"{self.title}: Pillow cannot read {file}: {error}. Install a Pillow with WebP support."
      ) from error


def _sorted_classes(manifest: list[dict[str, str]]) -> tuple[str, ...]:
  return tuple(sorted({row["class"] for row in manifest}))
