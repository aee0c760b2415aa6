"""Labels that come back: pictures and their classes in a CSV go into a folder of images.

The folder gets a labels.csv (`layout`) that lists what it held, in the splits that it had, and the
new pictures as training images: what validates and tests stays what it was.
"""

from collections.abc import Sequence
import csv
import hashlib
import io
import pathlib
from typing import NamedTuple

from subtune_jax import files
from subtune_jax.data import choices, errors, folder, layout

COLUMNS = ("file", "label", "prediction", "score")
ADDED = "labelled"  # folder that the pictures are copied into


class Answers(NamedTuple):
  """What a CSV says.

  Attributes:
    files: pictures that have a label.
    labels: of those.
    num_empty: rows that have none yet.
  """

  files: list[pathlib.Path]
  labels: list[str]
  num_empty: int


def read(path: pathlib.Path) -> Answers:
  """Reads a CSV with columns file and label; the files are relative to where it lies.

  Raises:
    ValueError: no CSV in UTF-8, a column that is missing or unknown, a row of another length, a
      picture that is not there or comes twice, or no label at all.
  """
  found, empty = Answers([], [], 0), 0
  for where, row in layout.rows_of(path, COLUMNS):
    empty += _add(found, row, path.parent, where)
  if not found.files:
    raise ValueError(f"{path} has no label: fill in the column 'label', one class a row")
  return found._replace(num_empty=empty)


def _add(found: Answers, row: dict, folder_of_csv: pathlib.Path, where: str) -> int:
  """Adds a row; returns whether it has no label yet."""
  label = row["label"].strip()
  if not label:
    return 1
  file = folder_of_csv / row["file"]
  if not row["file"] or not file.is_file():
    raise ValueError(f"{where}: there is no picture {file}; files are relative to the CSV")
  file = file.resolve()
  if file in found.files:
    raise ValueError(f"{where}: {row['file']!r} has a row before; keep one")
  found.files.append(file)
  found.labels.append(label)
  return 0


def add(answers: Answers, name: str, *, new_classes: bool = False) -> dict[str, int]:
  """Puts labelled pictures into a folder of images, as training images.

  Pictures that lie outside are copied into its folder "labelled".

  Args:
    answers: of `read`.
    name: of the folder, with or without "folder:" before it.
    new_classes: whether a label may be a class that the folder does not have.

  Returns:
    Class -> pictures added.

  Raises:
    MissingDataError: there is no such folder.
    ValueError: it cannot be read, a label is none of its classes, or a picture is in it already.
  """
  root = folder.root_of(name)
  if not root.is_dir():
    raise errors.missing(f"{folder.PREFIX}{root}", root, "Give the path of a folder of images.")
  listing = layout.read(root)
  if listing.broken:
    raise errors.broken_images(str(root), listing.broken, "Repair or remove them.")
  for label in answers.labels if not new_classes else ():
    try:
      choices.check(f"label for {root}", label, listing.class_names)
    except ValueError as error:
      raise ValueError(f"{error} A class that is to be new needs --new_classes.") from None
  _check_new(root, listing.files, answers.files)
  columns = (listing.files, listing.labels, folder.splits_of(listing))
  rows = [list(row) for row in zip(*columns, strict=True)]
  groups = list(listing.groups)
  for file, label in zip(answers.files, answers.labels, strict=True):
    own = _place(root, file)
    rows.append([own, label, "train"])
    groups += [own] if groups else []
  _write(root / layout.CSV_NAME, rows, groups)
  return {label: answers.labels.count(label) for label in sorted(set(answers.labels))}


def _check_new(root: pathlib.Path, held: Sequence[str], pictures: Sequence[pathlib.Path]) -> None:
  """Raises ValueError for a picture that the folder holds already, itself or as a copy."""
  by_size: dict[int, list[pathlib.Path]] = {}
  for name in held:
    by_size.setdefault((root / name).stat().st_size, []).append(root / name)
  for file in pictures:
    for own in by_size.get(file.stat().st_size, ()):
      if own.resolve() == file or own.read_bytes() == file.read_bytes():
        raise ValueError(
          f"{file} has a label in {root} already, as {own.relative_to(root)}; leave its row out"
        )


def _place(root: pathlib.Path, file: pathlib.Path) -> str:
  """The path of a picture within the folder; it is copied there if it lies outside."""
  if file.is_relative_to(root):
    return file.relative_to(root).as_posix()
  content = file.read_bytes()
  target = root / ADDED / file.name
  if target.exists() and target.read_bytes() != content:
    target = target.with_stem(f"{file.stem}-{hashlib.sha256(content).hexdigest()[:8]}")
  files.write_atomically(target, content)
  return target.relative_to(root).as_posix()


def _write(path: pathlib.Path, rows: Sequence[Sequence[str]], groups: Sequence[str]) -> None:
  stream = io.StringIO()
  table = csv.writer(stream, lineterminator="\n")
  table.writerow(["file", "label", "split", *(["group"] if groups else [])])
  for place, row in enumerate(rows):
    table.writerow([*row, *([groups[place]] if groups else [])])
  files.write_atomically(path, stream.getvalue().encode())
