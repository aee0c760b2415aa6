"""What is kept of a run for the table of claims: answers, not logits; a few tens of kilobytes."""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from subtune_jax import files

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "results" / "claims"
_FACTS, _ABSENT, _LABELS, _GROUPS = "facts", "absent", "labels", "groups"
_SEPARATOR = "|"  # in the name of an array: "SET|COLUMN"


@dataclasses.dataclass(frozen=True)
class Answers:
  """What several networks answered on one set of images.

  Attributes:
    labels: [n] true classes.
    groups: [n] numbers of groups, whose images are not independent.
    predicted: column ("ft", "ft + ALG", "block2/unit1") -> [seeds, n] classes.
  """

  labels: np.ndarray
  groups: np.ndarray
  predicted: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Archive:
  """A run.

  Attributes:
    facts: JSON: the command, date and versions, and numbers that are not answers.
    sets: name -> answers.
    absent: [seeds, classes] bool, of a study of absent classes.
  """

  facts: Mapping[str, Any]
  sets: Mapping[str, Answers]
  absent: np.ndarray | None = None


def write(name: str, archive: Archive) -> pathlib.Path:
  """Writes FOLDER/NAME.npz."""
  arrays = {_FACTS: np.array(json.dumps(archive.facts, sort_keys=True))}
  if archive.absent is not None:
    arrays[_ABSENT] = archive.absent
  for title, own in archive.sets.items():
    columns = {_LABELS: own.labels, _GROUPS: own.groups, **own.predicted}
    for column, values in columns.items():
      arrays[title + _SEPARATOR + column] = _small(values)
  path = FOLDER / f"{name}.npz"
  path.parent.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(path, **arrays)
  return path


def read(name: str) -> Archive:
  """Reads FOLDER/NAME.npz.

  Raises:
    FileNotFoundError, ValueError: it is missing or damaged.
  """
  arrays = files.read_npz(FOLDER / f"{name}.npz", "the answers of a run")
  facts = json.loads(str(arrays.pop(_FACTS)))
  absent = arrays.pop(_ABSENT, None)
  sets: dict[str, dict[str, np.ndarray]] = {}
  for key, values in arrays.items():
    title, _, column = key.rpartition(_SEPARATOR)
    sets.setdefault(title, {})[column] = values.astype(np.int64)
  return Archive(
    facts, {t: Answers(own.pop(_LABELS), own.pop(_GROUPS), own) for t, own in sets.items()}, absent
  )


def _small(values: np.ndarray) -> np.ndarray:
  """In the smallest unsigned type that holds them."""
  values = np.asarray(values)
  if values.min() < 0:
    raise ValueError(f"an answer or group is {values.min()}; they have to be 0 or above")
  return values.astype(np.min_scalar_type(values.max()))
