"""What the records of a search and of studies made of searches share, checked.

Such a record is plain JSON in WORKDIR/results.json. Accuracies are fractions, intervals 95 %.
"""

from collections.abc import Callable, Mapping, Sequence
import itertools
import math
import os
import pathlib
from typing import Any

import numpy as np

from subtune_jax import files
from subtune_jax.studies import fields
from subtune_jax.studies.compare import record as compare_record

Row = Mapping[str, Any]
Units = tuple[str, ...]

SEARCH, DATASET_SIZE, CORRUPTION, ACTIVE_LEARNING = KINDS = (
  "search", "dataset_size", "corruption", "active_learning"
)  # fmt: skip
_HEADER = {
  "kind": str,
  "name": str,
  "title": str,
  "command": str,
  "created": str,
  "versions": dict,
  "devices": str,
  "config": dict,
  "backbone": dict,
  "data": dict,
}
_FOLDED_DATA = {"train": str, "class_names": list, "num_examples": int, "num_folds": int}
_UNIT = {"name": str, "blocks": list, "params": int, "macs": fields.NUMBER}
_CERTIFICATE = {
  "chosen": list,
  "probability_best": fields.NUMBER,
  "expected_regret": fields.NUMBER,
  "undecided": list,
  "level": fields.NUMBER,
  "text": str,
}


def load(workdir: str | os.PathLike, check: Callable[[Any, str], None]) -> dict[str, Any]:
  """Reads WORKDIR/results.json and checks it.

  Args:
    workdir: of a finished search or study.
    check: of the kind that it has to be.

  Raises:
    FileNotFoundError: there is no results.json.
    ValueError: it is damaged, of another kind, or contradicts itself; the message names the field
      and what is allowed.
  """
  path = pathlib.Path(workdir) / compare_record.RESULTS
  record = files.read_record(path)
  check(record, str(path))
  return record


def check_header(record: Any, kind: str, where: str) -> None:
  """Raises unless `record` is of the kind and has what all kinds have."""
  fields.check_fields(record, {"kind": str}, where)
  fields.check_one_of(record["kind"], KINDS, f"{where}: kind")
  if record["kind"] != kind:
    raise ValueError(f"{where}: kind is {record['kind']!r}, wanted {kind!r}.")
  fields.check_fields(record, _HEADER, where)
  fields.check_fields(record["backbone"], fields.BACKBONE, f"{where}: backbone")


def check_accuracy(
  entry: Row, key: str, where: str, *, maybe: bool = False, least: float = 0.0
) -> None:
  """Raises unless entry[key] is a number in [least, 1], or None where `maybe`."""
  if key not in entry:
    raise ValueError(f"{where} lacks {key}; it has {', '.join(sorted(entry)) or 'nothing'}.")
  value = entry[key]
  if value is None and maybe:
    return
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not is_number or not least <= value <= 1:
    allowed = f"a number in [{least:g}, 1]" + (" or null" if maybe else "")
    raise ValueError(f"{where}: {key} is {value!r}, it has to be {allowed}.")


def check_estimate(entry: Any, where: str, *, key: str = "mean", least: float = 0.0) -> None:
  """Raises unless the entry has a mean and an interval, which may be null on both sides."""
  fields.check_fields(entry, {}, where)
  check_accuracy(entry, key, where, least=least)
  for end in ("low", "high"):
    check_accuracy(entry, end, where, maybe=True, least=least)
  low, high = entry["low"], entry["high"]
  if (low is None) != (high is None) or (low is not None and low > high):
    raise ValueError(f"{where}: the interval is [{low}, {high}]; low has to be at most high.")


def check_folds(entry: Row, num_folds: int, where: str) -> None:
  """Raises unless `by_fold` has an accuracy or null per fold, whose mean is that of the entry."""
  values = entry["by_fold"]
  if len(values) != num_folds:
    raise ValueError(
      f"{where}: by_fold has {len(values)} values, data.num_folds is {num_folds}; every fold needs "
      "one, null if it was not trained."
    )
  for i in range(len(values)):
    check_accuracy(dict(enumerate(values)), i, f"{where}: by_fold", maybe=True)
  trained = [value for value in values if value is not None]
  if not trained:
    raise ValueError(f"{where}: by_fold is null in every fold; leave the entry out.")
  if not math.isclose(np.mean(trained), entry["mean"], rel_tol=0, abs_tol=1e-6):
    raise ValueError(
      f"{where}: mean is {entry['mean']:.6f}, that of its folds {np.mean(trained):.6f}."
    )


def check_units(names: Any, allowed: Sequence[str], where: str) -> None:
  """Raises unless `names` are units, each once and in the order of the network."""
  if not isinstance(names, list):
    raise ValueError(f"{where} is {names!r}, it has to be a list of units.")
  for name in names:
    fields.check_one_of(name, allowed, f"{where}: a unit")
  places = [allowed.index(name) for name in names]
  if any(a >= b for a, b in itertools.pairwise(places)):
    raise ValueError(
      f"{where} is {names}; it has to name each unit once, in the order of the network."
    )


def check_candidates(record: Row, where: str) -> Units:
  """Checks the field `units`, returns the names."""
  fields.check_fields(record, {"units": list, "data": dict}, where)
  for i, unit in enumerate(record["units"]):
    fields.check_fields(unit, _UNIT, f"{where}: units[{i}]")
    for block in unit["blocks"]:
      fields.check_one_of(
        block, record["backbone"]["block_names"], f"{where}: a block of units[{i}]"
      )
  names = tuple(unit["name"] for unit in record["units"])
  if not names or len(set(names)) != len(names):
    raise ValueError(f"{where}: units are {list(names)}; at least one is needed, each named once.")
  return names


def check_folded_data(record: Row, where: str) -> int:
  """Checks the field `data` of what was scored on folds, returns their number."""
  fields.check_fields(record["data"], _FOLDED_DATA, f"{where}: data")
  num_folds = record["data"]["num_folds"]
  if num_folds < 1:
    raise ValueError(f"{where}: data.num_folds is {num_folds}, it has to be 1 or more.")
  return num_folds


def check_folder(folder: Any, where: str) -> None:
  """Raises unless `folder` is a path below the workdir: it becomes a link of the page."""
  path = pathlib.PurePosixPath(folder) if isinstance(folder, str) and folder else None
  if path is None or path.is_absolute() or ".." in path.parts or ":" in folder or "\\" in folder:
    raise ValueError(f"{where}: folder is {folder!r}; it has to be a path inside of the workdir.")


def check_certificate(entry: Any, units: Units, where: str) -> None:
  """Raises unless `entry` is None or a certificate of sets of `units`."""
  if entry is None:
    return
  fields.check_fields(entry, _CERTIFICATE, where)
  check_units(entry["chosen"], units, f"{where}: chosen")
  for key in ("probability_best", "expected_regret", "level"):
    check_accuracy(entry, key, where)
  for i, other in enumerate(entry["undecided"]):
    fields.check_fields(other, {"units": list}, f"{where}: undecided[{i}]")
    check_units(other["units"], units, f"{where}: undecided[{i}].units")
    check_accuracy(other, "probability", f"{where}: undecided[{i}]")


def check_list(
  entries: Any, where: str, check_entry: Callable[[Any, str], None], *, least: int = 0
) -> None:
  """Raises unless `entries` is a list of `least` or more that `check_entry` lets pass."""
  if not isinstance(entries, list) or len(entries) < least:
    raise ValueError(f"{where} is {entries!r}, it has to be a list of {least} or more.")
  for i, entry in enumerate(entries):
    check_entry(entry, f"{where}[{i}]")
