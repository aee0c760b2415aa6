"""A user's own images: `data.load("folder:/path/to/images", split, image_size)`.

What may lie in the folder:

  one folder per class              /path/cat/1.jpg, /path/dog/2.png, ...
  one folder per split and class    /path/train/cat/1.jpg, /path/validation/..., /path/test/...
                                    ("val" for "validation" will do; train may be absent)
  labels.csv                        columns file,label[,split][,group]; files relative to the folder

Images are looked for in folders of classes at any depth, by suffix (`decode.SUFFIXES`); names that
begin with a dot are passed over. Where no splits are given, 70 % are for training, 15 % for
validation and 15 % for testing: by class, by SHA-256 of the relative path, groups whole
(`splits.share_indices` with seed 0); the split "whole" is all images. Classes are numbered in the
order of their names, "class 2" before "class 10".

Each image of every split is decoded once, to find those that cannot be read, and the outcome is
kept in the cache. By default they are refused. "folder:/path/to/images?on_broken=skip" leaves them
out, and logs how many and which.

Images are resized to a square, whatever their shape. Splits that `cache.fits` are decoded once into
the cache; larger ones are decoded on demand.
"""

from collections.abc import Iterator, Sequence
import hashlib
import json
import os
import pathlib

from absl import logging
import numpy as np
import PIL

from subtune_jax.data import cache, choices, dataset, decode, errors, layout, lazy, splits

PREFIX = "folder:"
EXAMPLE = "folder:/path/to/images"
SHARES = {"train": 70, "validation": 15, "test": 15}  # percent, where no splits are given
ON_BROKEN = ("refuse", "skip")
WHOLE = "whole"  # split of all images, for sets that are only tested on

_BLOCK = 256  # images decoded at a time into the cache


def is_name(name: object) -> bool:
  """Returns whether a data set's name is that of a folder."""
  return isinstance(name, str) and name.startswith(PREFIX) and len(name) > len(PREFIX)


def load(
  name: str,
  split: str,
  image_size: int,
  *,
  interpolation: str = "bicubic",
  on_broken: str = "refuse",
) -> dataset.Dataset:
  """Loads one split of a folder of images.

  Args:
    name: path of the folder, with or without "folder:" before it and "?on_broken=skip" behind it.
    split: "train", "validation", "trainval" (both, train first), "test", or "whole": all images.
    image_size: height and width of the returned images, in pixels.
    interpolation: "bicubic", "bilinear" or "lanczos", antialiased as in Pillow.
    on_broken: what to do about images that cannot be read, in any split: "refuse" or "skip".

  Returns:
    A `Dataset` with images memory-mapped or lazy; ids are paths relative to the folder, groups
    those of labels.csv, else the ids.

  Raises:
    MissingDataError: there is no such folder.
    BrokenImageError: images cannot be read and on_broken is "refuse"; names the first ten.
    ValueError: an unknown split, size, interpolation or option; a folder laid out in no way or two
      ways; a damaged labels.csv; a split that is not there or has no image.
  """
  path, on_broken = _parse(name, on_broken)
  choices.check("split", split, (*SHARES, "trainval", WHOLE))
  choices.check("on_broken", on_broken, ON_BROKEN)
  decode.check_size(image_size, interpolation)
  root = path.expanduser().resolve()
  if not root.is_dir():
    raise errors.missing(f"{PREFIX}{path}", root, "Give the path of a folder of images.")
  listing = layout.read(root)
  where = f"{PREFIX}{root}"
  broken = listing.broken | _check(root, listing.files)
  if broken:
    _report_broken(where, broken, len(listing.files), on_broken)
  rows = [row for row in _rows(where, listing, split) if listing.files[row] not in broken]
  if not rows:
    raise ValueError(f"{where}: the split {split!r} has no image.")
  label_of = {label: number for number, label in enumerate(listing.class_names)}
  files = [listing.files[row] for row in rows]
  return dataset.Dataset(
    images=_images(root, files, where, split, image_size, interpolation),
    labels=np.array([label_of[listing.labels[row]] for row in rows], np.int32),
    groups=np.array([listing.groups[row] for row in rows] if listing.groups else files),
    ids=np.array(files),
    class_names=listing.class_names,
    name=where,
    split=split,
  )


def canonical(name: str) -> str:
  """Returns the name that the folder's data sets bear: its whole path, no option."""
  return f"{PREFIX}{root_of(name)}"


def gives_splits(name: str) -> bool:
  """Returns whether the folder says which images are for what. Errors: see `load`."""
  return bool(layout.read(root_of(name)).splits)


def stored_sizes(name: str, files: Sequence[str]) -> np.ndarray:
  """Returns the width and height, [n, 2], of files of a folder, before EXIF's orientation.

  Args:
    name: of the folder, as for `load`.
    files: the ids that `load` gave; their headers are read, once for all runs.
  """
  root, files = root_of(name), [str(file) for file in files]
  key = {"name": f"sizes in {root}", "source": _fingerprint(root, files)}

  def build() -> list[tuple[int, int]]:
    return list(lazy.workers().map(decode.stored_size, [root / file for file in files]))

  return np.array(cache.report(key, build))


def root_of(name: str) -> pathlib.Path:
  """Returns the whole path of a folder, without links and options."""
  return _parse(name, "refuse")[0].expanduser().resolve()


def _parse(name: str, on_broken: str) -> tuple[pathlib.Path, str]:
  """Returns (path, on_broken) of "folder:/path?on_broken=skip"."""
  text = os.fspath(name).removeprefix(PREFIX)
  path, mark, query = text.rpartition("?")
  if not mark or os.path.isdir(text):
    return pathlib.Path(text), on_broken
  option, _, value = query.partition("=")
  choices.check(f"option of {text!r}", option, ("on_broken",))
  return pathlib.Path(path), value


def _report_broken(where: str, broken: dict[str, str], n: int, on_broken: str) -> None:
  """Raises, or logs what is left out."""
  fix = f"Repair or remove them, or load {where + '?on_broken=skip'!r} to leave them out."
  error = errors.broken_images(where, broken, fix)
  if on_broken == "refuse":
    raise error
  logging.warning("Left out %d broken of %d images. %s", len(broken), n, error)


def splits_of(listing: layout.Listing) -> list[str]:
  """Returns the split of each file: as the folder gives it, else by hash of the path."""
  if listing.splits:
    return listing.splits
  label_of = {label: number for number, label in enumerate(listing.class_names)}
  labels = np.array([label_of[label] for label in listing.labels], np.int64)
  groups = np.array(listing.groups or listing.files)
  parts = splits.share_indices(labels, groups, list(SHARES.values()), seed=0)
  found = [""] * len(labels)
  for name, part in zip(SHARES, parts, strict=True):
    for row in part:
      found[row] = name
  return found


def _rows(where: str, listing: layout.Listing, split: str) -> list[int]:
  """Returns the positions in the listing of a split's images, train before validation."""
  if split == WHOLE:
    return list(range(len(listing.files)))
  split_of = splits_of(listing)
  wanted = ("train", "validation") if split == "trainval" else (split,)
  absent = [name for name in wanted if name not in split_of]
  if absent:
    raise ValueError(
      f"{where} has no image in the split {absent[0]!r}; it has "
      f"{', '.join(map(repr, sorted(set(split_of))))}."
    )
  return [row for name in wanted for row, own in enumerate(split_of) if own == name]


def _images(
  root: pathlib.Path, files: Sequence[str], where: str, split: str, size: int, interpolation: str
) -> np.ndarray | lazy.LazyImages:
  """Returns the images of one split from the cache, or lazy ones where they are too many."""
  decoded = lazy.from_files([root / file for file in files], size, interpolation)
  if not cache.fits(len(files), decoded.shape[1:]):
    return decoded
  key = {
    "name": where, "split": split, "image_size": size, "interpolation": interpolation,
    "pillow": PIL.__version__, "decode": decode.VERSION, "source": _fingerprint(root, files),
  }  # fmt: skip

  def build() -> Iterator[np.ndarray]:
    return (decoded[begin : begin + _BLOCK] for begin in range(0, len(files), _BLOCK))

  return cache.images(key, build, len(files), decoded.shape[1:])


def _check(root: pathlib.Path, files: Sequence[str]) -> dict[str, str]:
  """Returns why images cannot be read, by file; decodes all of them unless the cache knows."""
  key = {
    "name": f"check of {root}", "pillow": PIL.__version__, "decode": decode.VERSION,
    "source": _fingerprint(root, files),
  }  # fmt: skip

  def build() -> dict[str, str]:
    logging.info("Decoding the %d images in %s to check them", len(files), root)
    problems = lazy.workers().map(decode.problem, [root / file for file in files])
    return {file: why for file, why in zip(files, problems, strict=True) if why}

  return cache.report(key, build)


def _fingerprint(root: pathlib.Path, files: Sequence[str]) -> str:
  """Returns the SHA-256 (hex) of the files' names, sizes and times of modification."""
  stamps = []
  for file in files:
    try:
      stamps.append([file, *lazy.file_stamp(root / file)])
    except (OSError, ValueError):  # Missing, or no name of a file: the check says so.
      stamps.append([file])
  return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
