"""What lies in a folder of images: files and their classes, splits and groups where it has them.

`read` knows the three layouts that `subtune_jax.data.folder` describes; nothing is decoded.
"""

import collections
from collections.abc import Iterator, Sequence
import csv
import dataclasses
import os
import pathlib
import re

from absl import logging

from subtune_jax.data import choices, decode

CSV_NAME = "labels.csv"

_SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_COLUMNS = ("file", "label", "split", "group")


@dataclasses.dataclass
class Listing:
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


def read(root: pathlib.Path) -> Listing:
  """Returns what the folder holds, in whichever layout it is."""
  if (root / CSV_NAME).is_file():
    return _list_csv(root / CSV_NAME)
  broken: dict[str, str] = {}
  folders = _subfolders(root, "", broken)
  named = [folder for folder in folders if folder in _SPLIT_NAMES]
  if not named:
    return _list_classes(root, {"": folders}, broken)
  inner = {folder: _subfolders(root, folder, broken) for folder in named}
  others = [folder for folder in folders if folder not in named]
  if others and inner.get("train"):
    raise ValueError(
      f"{root} has the folder {others[0]!r} beside 'train'; put the folders of classes in train, "
      "validation and test alone, or no folders of splits."
    )
  flat = [folder for folder in named if not inner[folder] and _holds_images(root / folder)]
  if others or flat:
    raise _two_readings(root, (flat or named)[0], others)
  return _list_split_folders(root, inner, broken)


def _two_readings(root: pathlib.Path, folder: str, others: list[str]) -> ValueError:
  """The error for a folder that is named as a split and lies where a class does."""
  beside = f" and lie beside other splits alone, not beside {others[0]!r}" if others else ""
  return ValueError(
    f"{root}: the folder {folder!r} may be a split or a class. A split has to hold folders of "
    f"classes, {folder}/CLASS/...{beside}. A class has to be called otherwise, or be listed in "
    f"{CSV_NAME}, where it may have any name."
  )


def _holds_images(folder: pathlib.Path) -> bool:
  with os.scandir(folder) as entries:
    return any(not e.name.startswith(".") and _suffix(e.name) in decode.SUFFIXES for e in entries)


def _list_split_folders(
  root: pathlib.Path, inner: dict[str, list[str]], broken: dict[str, str]
) -> Listing:
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
) -> Listing:
  """Lists class folders; `inner` has those of each split's folder, "" for the root itself."""
  class_names = tuple(sorted({name for names in inner.values() for name in names}, key=natural))
  if not class_names:
    raise ValueError(
      f"{root} has no folders of classes and no {CSV_NAME}. Put the images of each class into a "
      f"folder of its own, or list them in {CSV_NAME}: file,label[,split][,group]."
    )
  listing = Listing([], [], [], [], class_names, broken)
  seen = {_inode(root)} | {_inode(root / folder) for folder in inner}
  for folder, names in inner.items():
    for name in sorted(names, key=natural):
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
        broken[f"{folder}/{entry.name}".lstrip("/")] = str(error.strerror)
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
      broken[folder] = str(error.strerror)
  return sorted(files, key=natural)


def _list_csv(path: pathlib.Path) -> Listing:
  """Lists the rows of labels.csv, in their order."""
  listing = Listing([], [], [], [], (), {})
  for where, row in rows_of(path, _COLUMNS):
    _add_row(listing, row, where)
  if not listing.files:
    raise ValueError(f"{path} lists no image.")
  repeated, times = collections.Counter(listing.files).most_common(1)[0]
  if times > 1:
    raise ValueError(f"{path} lists {repeated!r} {times} times; keep one row.")
  listing.class_names = tuple(sorted(set(listing.labels), key=natural))
  _warn_of_shared_groups(path, listing)
  return listing


def rows_of(path: pathlib.Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
  """(where it stands, column -> value) of each row of a CSV about image files.

  Args:
    path: of the CSV; in UTF-8, with or without its mark.
    columns: those it may have: "file" and "label", which it must have, first.

  Raises:
    ValueError: it is no such CSV, or a row has more or fewer values than there are columns.
  """
  try:
    with open(path, encoding="utf-8-sig", newline="") as file:
      reader = csv.DictReader(file)
      found = tuple(reader.fieldnames or ())
      for column in found:
        choices.check(f"column of {path}", column, columns)
      if not set(columns[:2]) <= set(found) or len(set(found)) != len(found):
        known = ",".join(columns[:2]) + "".join(f"[,{name}]" for name in columns[2:])
        raise ValueError(f"{path}: the columns are {found}; needed: {known}.")
      for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row or None in row.values():
          raise ValueError(f"{where}: it has more or fewer values than there are columns.")
        yield where, row
  except (csv.Error, UnicodeDecodeError) as error:
    raise ValueError(f"{path} is not a CSV file in UTF-8: {error}.") from error


def _add_row(listing: Listing, row: dict[str, str], where: str) -> None:
  """Adds one row of the CSV after checking it."""
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


def _warn_of_shared_groups(path: pathlib.Path, listing: Listing) -> None:
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


def natural(name: str) -> tuple:
  """Sorts "class 2" before "class 10"; numbers come before letters."""
  parts = [part for part in re.split("([0-9]+)", name) if part]
  digits = [part.lstrip("0") if part[0] in "0123456789" else None for part in parts]
  keys = [
    (1, 0, part) if number is None else (0, len(number), number)
    for part, number in zip(parts, digits, strict=True)
  ]
  return keys, name
