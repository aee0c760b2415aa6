"""Predictions for picture files: found in folders and patterns, answered in a stream."""

from collections.abc import Iterator, Sequence
import csv
import dataclasses
import glob
import os
import pathlib
from typing import Any

import numpy as np

from subtune_jax import strict_json
from subtune_jax.data import choices, decode, errors, lazy
from subtune_jax.deploy import classifier as classifier_lib

SUFFIXES = (".csv", ".jsonl")


@dataclasses.dataclass(frozen=True)
class Answer:
  """What the network says of one file.

  Attributes:
    file: its path, as it was found.
    probabilities: [num_classes], None where the file cannot be read.
    error: why it cannot be read, "" where it can.
  """

  file: str
  probabilities: np.ndarray | None
  error: str = ""


def find(given: Sequence[str]) -> list[str]:
  """Files of pictures.

  Args:
    given: files; folders, whose files with a picture's suffix count, at any depth, but for names
      that begin with a dot; and patterns with *, ? or **.

  Returns:
    Paths, each once; those of a folder or a pattern sorted.

  Raises:
    ValueError: nothing is there, or nothing matches.
  """
  found: dict[str, None] = {}
  for each in given:
    files = [each] if os.path.isfile(each) else _below(each) if os.path.isdir(each) else []
    if not files and not os.path.isdir(each):
      files = [f for f in sorted(glob.glob(each, recursive=True)) if os.path.isfile(f)]
      if not files and os.path.lexists(each):
        files = [each]  # a broken link or a device: a row that says so
    if not files:
      raise ValueError(
        f"{each!r} is no picture: no file, no folder with pictures "
        f"({', '.join(sorted(decode.SUFFIXES))}) and no pattern that matches one"
      )
    found |= dict.fromkeys(files)
  return list(found)


def _below(folder: str) -> list[str]:
  files = []
  for root, folders, names in os.walk(folder):
    folders[:] = sorted(name for name in folders if not name.startswith("."))
    files += [
      os.path.join(root, name) for name in sorted(names)
      if not name.startswith(".") and pathlib.Path(name).suffix.lower() in decode.SUFFIXES
    ]  # fmt: skip
  return files


def answers(
  classifier: classifier_lib.Classifier, files: Sequence[str], *, calibrate: bool = False
) -> Iterator[Answer]:
  """Answers for files, in their order; a batch is in memory at a time.

  Raises:
    ValueError: see `Classifier.calibrated`.
  """
  with lazy.prefetch(decoded(classifier, files)) as batches:
    for batch, read in batches:
      images = [image for image in read if not isinstance(image, str)]
      rows = iter(())
      if images:
        rows = iter(classifier.predict(np.stack(images), calibrate=calibrate).probabilities)
      for file, image in zip(batch, read, strict=True):
        yield Answer(file, None, image) if isinstance(image, str) else Answer(file, next(rows))


def decoded(
  classifier: classifier_lib.Classifier, files: Sequence[str]
) -> Iterator[tuple[Sequence[str], list[np.ndarray | str]]]:
  """A batch of files at a time, and for each its image or why there is none."""
  for begin in range(0, len(files), classifier.batch_size):
    batch = files[begin : begin + classifier.batch_size]
    yield batch, list(lazy.workers().map(lambda file: _read(classifier, file), batch))


def _read(classifier: classifier_lib.Classifier, file: str) -> np.ndarray | str:
  """The image, or why there is none."""
  try:
    return decode.square(file, classifier.image_size, classifier.interpolation)
  except errors.BrokenImageError as e:
    return str(e.__cause__ or e)


class Table:
  """Writes answers as rows of a CSV, or as lines of JSON; to PATH.part, which `close` renames.

  Columns: file, prediction, probability, then prediction_2, probability_2, ... up to `top_k`, then
  "p(CLASS)" of every class if asked for, error. JSON has "top" and "probabilities" instead.

  Args:
    path: ends with ".csv" or ".jsonl".
    class_names: in the order of the probabilities.
    top_k: how many classes are named, 1 to their number.
    probabilities: write those of all classes too.

  Raises:
    ValueError: an unknown suffix, or a `top_k` that is out of range.
  """

  def __init__(
    self, path: pathlib.Path, class_names: Sequence[str], *, top_k: int = 1,
    probabilities: bool = False,
  ):  # fmt: skip
    choices.check("suffix of the table", path.suffix.lower(), SUFFIXES)
    if not 1 <= top_k <= len(class_names):
      raise ValueError(f"top_k is {top_k}; the network has {len(class_names)} classes")
    self._json, self._names = path.suffix.lower() == ".jsonl", list(class_names)
    self._top_k, self._all = top_k, probabilities
    self._path, self._part = path, path.with_name(f"{path.name}.part")
    self._stream = open(  # noqa: SIM115 (closed by close)
      self._part, "w", newline="", encoding="utf-8", errors="surrogateescape"
    )
    if not self._json:
      self._csv = csv.writer(self._stream, lineterminator="\n")
      self._csv.writerow(self._header())

  def write(self, answer: Answer) -> None:
    """Writes one row."""
    if self._json:
      self._stream.write(strict_json.dumps(self._object(answer)) + "\n")
    else:
      self._csv.writerow(self._row(answer))

  def close(self) -> None:
    """Ends the table, which takes the place of one that was there."""
    self._stream.close()
    os.replace(self._part, self._path)

  def _header(self) -> list[str]:
    ranks = ["", *(f"_{k}" for k in range(2, self._top_k + 1))]
    named = [f"{what}{rank}" for rank in ranks for what in ("prediction", "probability")]
    return ["file", *named, *([f"p({n})" for n in self._names] if self._all else []), "error"]

  def _top(self, probabilities: np.ndarray) -> list[tuple[str, float]]:
    order = np.argsort(-probabilities, kind="stable")[: self._top_k]
    return [(self._names[i], float(probabilities[i])) for i in order]

  def _row(self, answer: Answer) -> list[Any]:
    if answer.probabilities is None:
      return [answer.file, *[""] * (len(self._header()) - 2), answer.error]
    named = [cell for name, p in self._top(answer.probabilities) for cell in (name, f"{p:.9g}")]
    every = [f"{p:.9g}" for p in answer.probabilities] if self._all else []
    return [answer.file, *named, *every, ""]

  def _object(self, answer: Answer) -> dict[str, Any]:
    if answer.probabilities is None:
      return {"file": answer.file, "error": answer.error}
    top = self._top(answer.probabilities)
    made = {"file": answer.file, "prediction": top[0][0], "probability": top[0][1]}
    if self._top_k > 1:
      made["top"] = [{"class": name, "probability": p} for name, p in top]
    if self._all:
      every = map(float, answer.probabilities)
      made["probabilities"] = dict(zip(self._names, every, strict=True))
    return made
