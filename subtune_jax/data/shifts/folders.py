"""The shift benchmarks' data sets that are fetched by hand: folders under one root.

The root is $SUBTUNE_JAX_DATA, or ~/subtune_jax_data.
"""

from collections.abc import Iterator
import dataclasses
import functools
import os
import pathlib

import numpy as np
from PIL import Image

from subtune_jax.data import choices, dataset, decode, errors, folder, lazy, preprocess
from subtune_jax.data.shifts import maps

ROOT_VARIABLE = "SUBTUNE_JAX_DATA"
_CROP = 224 / 256


@dataclasses.dataclass(frozen=True)
class FolderSet:
  """A data set in a folder that `subtune_jax.data.folder` reads.

  Attributes:
    path: below the root.
    by_hand: what to fetch, and how to lay it out.
  """

  path: str
  by_hand: str


@dataclasses.dataclass(frozen=True)
class BreedsSet:
  """One domain of a BREEDS benchmark (Santurkar et al., 2021), over a folder of ImageNet.

  Attributes:
    benchmark: "living17" or "entity30".
    domain: "source" or "target": other subclasses of the same classes.
    num_classes: superclasses.
    subclasses: per superclass and domain.
  """

  benchmark: str
  domain: str
  num_classes: int
  subclasses: int


_OFFICE_HOME = (
  "Fetch OfficeHomeDataset_10072016.zip from https://www.hemanthdv.org/officeHomeDataset.html and "
  "unpack it so that {root}/office_home/Art/Alarm_Clock/ is there."
)
_FMOW = (
  "Fetch WILDS's FMoW (https://wilds.stanford.edu/get_started, about 50 GB) and sort the images "
  "by region, split and class: {root}/fmow/americas/train/airport/1.png, likewise validation and "
  "test, and the regions europe and africa. Region and split are in its rgb_metadata.csv and "
  "country_code_mapping.csv."
)
_BREEDS = (
  "Put ImageNet's images into {root}/imagenet/train/n01440764/ and {root}/imagenet/val/n01440764/ "
  "and so on, and the class list into {root}/{benchmark}.csv with the columns superclass, domain "
  '("source" or "target") and wnid. The published lists come from the package robustness: '
  "robustness.tools.breeds_helpers.make_{benchmark}(info_dir, split='rand')."
)

FOLDERS = {
  f"office_home/{short}": FolderSet(f"office_home/{path}", _OFFICE_HOME)
  for short, path in (
    ("art", "Art"), ("clipart", "Clipart"), ("product", "Product"), ("real_world", "Real World"),
  )
} | {
  f"fmow/{region}": FolderSet(f"fmow/{region}", _FMOW)
  for region in ("americas", "europe", "africa")
}  # fmt: skip
BREEDS = {
  f"{name}/{domain}": BreedsSet(name, domain, num_classes, subclasses)
  for name, num_classes, subclasses in (("living17", 17, 2), ("entity30", 30, 4))
  for domain in ("source", "target")
}


def root() -> pathlib.Path:
  """Returns the folder of the data sets fetched by hand."""
  return pathlib.Path(os.environ.get(ROOT_VARIABLE) or "~/subtune_jax_data").expanduser()


def load_folder(
  name: str, split: str, image_size: int, *, interpolation: str = "bicubic"
) -> dataset.Dataset:
  """Loads one split of Office-Home or FMoW; a folder without splits is split 70/15/15.

  Args, returns: as `folder.load`.

  Raises:
    errors.MissingDataError: it is not there; the message says what to fetch and where to put it.
  """
  entry = FOLDERS[name]
  path = root() / entry.path
  if not path.is_dir():
    raise _missing(name, path, entry.by_hand)
  data = folder.load(str(path), split, image_size, interpolation=interpolation)
  return dataclasses.replace(data, name=name)


def load_breeds(
  name: str, split: str, image_size: int, *, interpolation: str = "bicubic"
) -> dataset.Dataset:
  """Loads one split of a BREEDS domain: labels are superclasses, groups are single images.

  Of ImageNet's training images every tenth of a subclass, in the order of the names, is for
  validation; the test split is ImageNet's validation images. Images are decoded on demand, resized
  by the shorter side and cropped at the centre.

  Args:
    name: of `BREEDS`.
    split: "train", "validation", "trainval" or "test".
    image_size: height and width, in pixels.
    interpolation: "bicubic", "bilinear" or "lanczos".

  Raises:
    errors.MissingDataError: ImageNet or the class list is not there.
    ValueError: an unknown split or interpolation, or a class list that is not the benchmark's.
  """
  entry = BREEDS[name]
  choices.check("split", split, ("train", "validation", "trainval", "test"))
  decode.check_size(image_size, interpolation)
  class_list, images = root() / f"{entry.benchmark}.csv", root() / "imagenet"
  for path in (class_list, images):
    if not path.exists():
      raise _missing(name, path, _BREEDS, benchmark=entry.benchmark)
  class_names, labels = maps.read_breeds(
    class_list, num_classes=entry.num_classes, subclasses=entry.subclasses
  )
  parts = ("train", "validation") if split == "trainval" else (split,)
  rows = [row for part in parts for row in _breeds_rows(images, labels[entry.domain], part)]
  ids = np.array([path.relative_to(images).as_posix() for path, _ in rows])
  return dataset.Dataset(
    images=_cropped([path for path, _ in rows], image_size, interpolation),
    labels=np.array([label for _, label in rows], np.int32),
    groups=ids,
    ids=ids,
    class_names=class_names,
    name=name,
    split=split,
  )


def _breeds_rows(
  images: pathlib.Path, labels: dict[str, int], split: str
) -> Iterator[tuple[pathlib.Path, int]]:
  """Yields (path, label) of one split, by class, subclass and name."""
  for wnid, label in sorted(labels.items(), key=lambda item: (item[1], item[0])):
    path = images / ("val" if split == "test" else "train") / wnid
    if not path.is_dir():
      raise errors.missing(f"ImageNet's {wnid}", path, "Copy the folder of this class there.")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in decode.SUFFIXES)
    for index, file in enumerate(files):
      if split == "test" or (index % 10 == 9) == (split == "validation"):
        yield file, label


def _cropped(paths: list[pathlib.Path], size: int, interpolation: str) -> lazy.LazyImages:
  how = preprocess.Preprocessing((0.0,), (1.0,), interpolation, _CROP)

  def read(path: pathlib.Path) -> np.ndarray:
    try:
      with Image.open(path) as image:
        return preprocess.resize_and_crop(image, how, size)
    except Exception as error:
      raise errors.BrokenImageError(f"{path}: {error}") from error

  return lazy.LazyImages(
    paths, read, size, lambda path: [interpolation, _CROP, *lazy.file_stamp(path)]
  )


def _missing(name: str, path: pathlib.Path, by_hand: str, **fields: str) -> Exception:
  fix = by_hand.format(root=root(), **fields)
  return errors.missing(name, path, f"{fix} For another root, set {ROOT_VARIABLE}.")


ENTRIES = {name: functools.partial(load_folder, name) for name in FOLDERS} | {
  name: functools.partial(load_breeds, name) for name in BREEDS
}
