"""A user's own images: `data.load("folder:/path/to/images", split, image_size)`.

What may lie in the folder:

  one folder per class              /path/cat/1.jpg, /path/dog/2.png, ...
  one folder per split and class    /path/train/cat/1.jpg, /path/validation/..., /path/test/...
                                    ("val" for "validation" will do; train may be absent)
  labels.csv                        columns file,label[,split][,group]; files relative to the folder

Images are looked for in folders of classes at any depth, by suffix (`decode.SUFFIXES`); names that
begin with a dot are passed over. Where no splits are given, 70 % are for training, 15 % for
validation and 15 % for testing: by class, by SHA-256 of the relative path, groups whole
(`splits.share_indices` with seed 0). Classes are numbered in the order of their names, "class 2"
before "class 10".

Each image of every split is decoded once, to find those that cannot be read, and the outcome is
kept in the cache. By default they are refused. "folder:/path/to/images?on_broken=skip" leaves them
out, and logs how many and which.

Images are resized to a square, whatever their shape. Splits that `cache.fits` are decoded once into
the cache; larger ones are decoded on demand.
"""

import collections
from collections.abc import Iterator, Sequence
import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import re

from absl import logging
import numpy as np
import PIL

from subtune_jax.data import cache, choices, dataset, decode, errors, lazy, splits

PREFIX = "folder:"
EXAMPLE = "folder:/path/to/images"
CSV_NAME = "labels.csv"
SHARES = {"train": 70, "validation": 15, "test": 15}  # percent, where no splits are given
ON_BROKEN = ("refuse", "skip")

_SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_COLUMNS = ("file", "label", "split", "group")
_BLOCK = 256  # images decoded at a time into the cache


@dataclasses.dataclass
class _Listing:
  """What a folder holds, before anything is decoded.

  Attributes:
    files: paths relative to the folder, with "/".
    labels: name of each file's class.
    splits: of each file; empty when none are given.
    groups: of each file; empty when none are given.
    class_names: in order.
    broken: the reason for each entry that is no file that can be opened, by relative path.
  """

  files: list[str]
  labels: list[str]
  splits: list[str]
  groups: list[str]
  class_names: tuple[str, ...]
  broken: dict[str, str]


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
    split: "train", "validation", "trainval" (both, train first) or "test".
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
  choices.check("split", split, (*SHARES, "trainval"))
  choices.check("on_broken", on_broken, ON_BROKEN)
  decode.check_size(image_size, interpolation)
  root = path.expanduser().resolve()
  if not root.is_dir():
    raise errors.missing(f"{PREFIX}{path}", root, "Give the path of a folder of images.")
  listing = _list(root)
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


def class_names(name: str) -> tuple[str, ...]:
  """Returns the classes of a folder, in order, without decoding an image. Errors: see `load`."""
  return _list(_parse(name, "refuse")[0].expanduser().resolve()).class_names


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


def _rows(where: str, listing: _Listing, split: str) -> list[int]:
  """Returns the positions in the listing of a split's images, train before validation."""
  split_of = listing.splits
  if not split_of:
    label_of = {label: number for number, label in enumerate(listing.class_names)}
    labels = np.array([label_of[label] for label in listing.labels], np.int64)
    groups = np.array(listing.groups or listing.files)
    parts = splits.share_indices(labels, groups, list(SHARES.values()), seed=0)
    split_of = [""] * len(labels)
    for name, part in zip(SHARES, parts, strict=True):
      for row in part:
        split_of[row] = name
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


def _list(root: pathlib.Path) -> _Listing:
  """Returns what the folder holds, in whichever layout it is."""
  if (root / CSV_NAME).is_file():
    return _list_csv(root / CSV_NAME)
  broken = {}
  folders = _subfolders(root, "", broken)
  named = [folder for folder in folders if folder in _SPLIT_NAMES]
  if not named:
    return _list_classes(root, {"": folders}, broken)
  inner = {folder: _subfolders(root, folder, broken) for folder in named}
  if "train" not in named and (len(named) < len(folders) or not all(inner.values())):
    raise ValueError(
      f"{root} has the folder {named[0]!r}: a split, which must hold folders of classes and lie "
      "beside other splits alone, or a class, which must be called otherwise."
    )
  if len(named) == len(folders):
    return _list_split_folders(root, inner, broken)
  if inner["train"]:
    other = next(folder for folder in folders if folder not in named)
    raise ValueError(
      f"{root} has the folder {other!r} beside 'train'; put the folders of classes in train, "
      "validation and test alone, or no folders of splits."
    )
  return _list_classes(root, {"": folders}, broken)


def _list_split_folders(
  root: pathlib.Path, inner: dict[str, list[str]], broken: dict[str, str]
) -> _Listing:
  """Lists train/, validation/ or val/, and test/ with the class folders inside."""
  if "val" in inner and "validation" in inner:
    raise ValueError(f"{root} has both 'val' and 'validation'; keep one.")
  for folder, classes in inner.items():
    unknown = sorted(set(classes) - set(inner.get("train", classes)))
    if unknown:
      raise ValueError(
        f"{root}: {folder} has the class {unknown[0]!r}, which train does not have; rename it, or "
        "make an empty folder for it in train."
      )
  return _list_classes(root, inner, broken)


def _list_classes(
  root: pathlib.Path, inner: dict[str, list[str]], broken: dict[str, str]
) -> _Listing:
  """Lists class folders; `inner` has those of each split's folder, "" for the root itself."""
  class_names = tuple(sorted({name for names in inner.values() for name in names}, key=_natural))
  if not class_names:
    raise ValueError(
      f"{root} has no folders of classes and no {CSV_NAME}. Put the images of each class into a "
      f"folder of its own, or list them in {CSV_NAME}: file,label[,split][,group]."
    )
  listing = _Listing([], [], [], [], class_names, broken)
  seen = {_inode(root)} | {_inode(root / folder) for folder in inner}
  for folder, names in inner.items():
    for name in sorted(names, key=_natural):
      files = _find(root, f"{folder}/{name}".lstrip("/"), seen, broken)
      listing.files += files
      listing.labels += [name] * len(files)
      listing.splits += [_SPLIT_NAMES[folder]] * len(files) if folder else []
  if not listing.files and not broken:
    raise ValueError(f"{root} has no image in {len(class_names)} folders of classes.")
  return listing


def _subfolders(root: pathlib.Path, folder: str, broken: dict[str, str]) -> list[str]:
  """Returns the names of the folders in `root / folder`; logs images that lie beside them."""
  found, beside = [], 0
  with os.scandir(root / folder) as entries:
    for entry in sorted(entries, key=lambda e: e.name):
      if entry.name.startswith("."):
        continue
      try:
        is_folder = entry.is_dir()
      except OSError as error:
        broken[f"{folder}/{entry.name}".lstrip("/")] = error.strerror
        continue
      if is_folder:
        found.append(entry.name)
      else:
        beside += _suffix(entry.name) in decode.SUFFIXES
  if beside and found:
    logging.warning(
      "%s: %d images are in no class's folder and are left out", root / folder, beside
    )
  return found


def _find(
  root: pathlib.Path, top: str, seen: set[tuple[int, int]], broken: dict[str, str]
) -> list[str]:
  """Returns the images below `top`, sorted; a folder that was `seen` already is broken."""
  files, left = [], [top]
  while left:
    folder = left.pop()
    try:
      inode = _inode(root / folder)
      if inode in seen:
        broken[folder] = "a link to a folder that is read already"
        continue
      seen.add(inode)
      with os.scandir(root / folder) as entries:
        for entry in entries:
          if not entry.name.startswith("."):
            name = f"{folder}/{entry.name}"
            if entry.is_dir(follow_symlinks=False) or os.path.isdir(entry.path):
              left.append(name)
            elif _suffix(name) in decode.SUFFIXES:
              files.append(name)
    except OSError as error:
      broken[folder] = error.strerror
  return sorted(files, key=_natural)


def _list_csv(path: pathlib.Path) -> _Listing:
  """Lists the rows of labels.csv, in their order."""
  listing = _Listing([], [], [], [], (), {})
  try:
    with open(path, encoding="utf-8-sig", newline="") as file:
      reader = csv.DictReader(file)
      columns = tuple(reader.fieldnames or ())
      for column in columns:
        choices.check(f"column of {path}", column, _COLUMNS)
      if "file" not in columns or "label" not in columns or len(set(columns)) != len(columns):
        raise ValueError(f"{path}: the columns are {columns}; needed: file,label[,split][,group].")
      for row in reader:
        _add_row(listing, row, f"{path}, line {reader.line_num}")
  except (csv.Error, UnicodeDecodeError) as error:
    raise ValueError(f"{path} is not a CSV file in UTF-8: {error}.") from error
  if not listing.files:
    raise ValueError(f"{path} lists no image.")
  repeated, times = collections.Counter(listing.files).most_common(1)[0]
  if times > 1:
    raise ValueError(f"{path} lists {repeated!r} {times} times; keep one row.")
  listing.class_names = tuple(sorted(set(listing.labels), key=_natural))
  _warn_of_shared_groups(path, listing)
  return listing


def _add_row(listing: _Listing, row: dict[str, str | None], where: str) -> None:
  """Adds one row of the CSV after checking it."""
  if None in row or None in row.values():
    raise ValueError(f"{where}: it has more or fewer values than there are columns.")
  if not row["file"] or not row["label"]:
    raise ValueError(f"{where}: file and label must not be empty.")
  file = pathlib.PurePosixPath(row["file"])
  if file.is_absolute() or ".." in file.parts:
    raise ValueError(f"{where}: {row['file']!r} must be a path within the folder.")
  listing.files.append(str(file))
  listing.labels.append(row["label"])
  if "split" in row:
    choices.check(f"split in {where}:", row["split"], _SPLIT_NAMES)
    listing.splits.append(_SPLIT_NAMES[row["split"]])
  if "group" in row:
    listing.groups.append(row["group"] or str(file))


def _warn_of_shared_groups(path: pathlib.Path, listing: _Listing) -> None:
  if not listing.splits or not listing.groups:
    return
  splits_of = collections.defaultdict(set)
  for group, split in zip(listing.groups, listing.splits, strict=True):
    splits_of[group].add(split)
  shared = [group for group, found in splits_of.items() if len(found) > 1]
  if shared:
    logging.warning("%s: %d groups are in several splits, as %r", path, len(shared), shared[0])


def _inode(path: pathlib.Path) -> tuple[int, int]:
  stat = os.stat(path)
  return stat.st_dev, stat.st_ino


def _suffix(name: str) -> str:
  return os.path.splitext(name)[1].lower()


def _natural(name: str) -> tuple:
  """Sorts "class 2" before "class 10"; numbers come before letters."""
  parts = [part for part in re.split("([0-9]+)", name) if part]
  digits = [part.lstrip("0") if part[0] in "0123456789" else None for part in parts]
  keys = [
    (1, 0, part) if number is None else (0, len(number), number)
    for part, number in zip(parts, digits, strict=True)
  ]
  return keys, name
