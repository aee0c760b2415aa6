"""The record of a study of corruptions: read, checked, and asked for what its page needs."""

import math
import os
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import numpy as np

from subtune_jax.report import estimate
from subtune_jax.studies import fields
from subtune_jax.studies.search import checks
from subtune_jax.studies.search import record as search_record

Row = checks.Row


class Added(TypedDict):  # a unit that the forward search added, or would not
  unit: str
  score: fields.Fraction
  taken: bool


class Shift(TypedDict):  # what was found under a corruption
  corruption: str
  severity: int  # 0: none
  title: str
  name: str  # of the data set
  folder: str  # of the search
  order: list[Added]
  chosen: list[str]
  profile: list[checks.OfUnit]
  head: checks.Mean | None  # of the head alone
  all: checks.Mean | None  # of all units
  certificate: checks.Certificate | None
  test: dict[str, checks.Tested] | None  # by method


class Record(fields.Record):
  data: checks.FoldedData
  units: list[checks.Unit]
  rows: Annotated[list[Shift], msgspec.Meta(min_length=1)]


def load(workdir: str | os.PathLike) -> Record:
  """The record of a finished study; see `fields.load`."""
  return fields.load(workdir, check)


def check(record: Any, where: str = "record") -> None:
  """Raises ValueError unless `record` is a whole one of this study."""
  fields.check_record(record, Record, where, "corruption")
  units = checks.check_candidates(record, where)
  for number, row in enumerate(record["rows"]):
    place = f"{where}: rows[{number}]"
    checks.check_folder(row["folder"], place)
    checks.check_units(row["chosen"], units, f"{place}: chosen")
    checks.check_certificate(row["certificate"], units, f"{place}: certificate")
    for name in ("order", "profile"):
      for i, entry in enumerate(row[name]):
        fields.check_one_of(entry["unit"], units, f"{place}: {name}[{i}].unit")
    for i, point in enumerate(row["profile"]):
      checks.check_folds(point, record["data"]["num_folds"], f"{place}: profile[{i}]")
    for name, entry in {"head": row["head"], "all": row["all"], **(row["test"] or {})}.items():
      if entry is not None:
        checks.check_interval(entry, f"{place}: {name}")


def labels(record: Record) -> list[str]:
  """Titles of the corruptions; with their severity where there are several, 0 being none."""
  severities = {row["severity"] for row in record["rows"]} - {0}
  several = len(severities) > 1
  return [
    f"{row['title']}, {row['severity']}" if several and row["severity"] else row["title"]
    for row in record["rows"]
  ]


def titled(record: Record, key: Literal["order", "profile", "test"]) -> list[tuple[str, Shift]]:
  """The rows that hold something under `key`, with their labels."""
  return [(t, row) for t, row in zip(labels(record), record["rows"], strict=True) if row[key]]


def gains(record: Row) -> tuple[np.ndarray, np.ndarray]:
  """The profiles of the record as arrays.

  Returns:
    [corruptions, units + 2] gain over the head alone in points: a column per unit, an empty one,
    and that of all units; NaN where there is none. [corruptions, units + 2] whether a unit is not
    told apart from the best one of its row.
  """
  names = search_record.unit_names(record)
  values = np.full((len(record["rows"]), len(names) + 2), np.nan)
  near = np.zeros(values.shape, bool)
  for number, row in enumerate(record["rows"]):
    if row["head"] is None:
      continue
    found = search_record.gains(row["profile"], row["head"], names)
    values[number, : len(names)], near[number, : len(names)] = found
    if row["all"] is not None:
      values[number, -1] = 100 * (row["all"]["mean"] - row["head"]["mean"])
  return values, near


def method_titles(record: Record) -> dict[str, str]:
  """Titles of the methods that were tested, in the order in which they come."""
  tests = [row["test"] or {} for row in record["rows"]]
  return {name: entry["title"] for test in tests for name, entry in test.items()}


def mean_test(record: Record) -> dict[str, estimate.Estimate]:
  """Mean test accuracy over the corruptions; methods that were not tested under all are absent.

  There is no interval: corruptions of one set of images err together.
  """
  rows = [row["test"] for row in record["rows"] if row["test"]]
  found = {}
  for name in method_titles(record):
    if all(name in test for test in rows):
      mean = float(np.mean([test[name]["accuracy"] for test in rows]))
      found[name] = estimate.Estimate(mean, math.nan, math.nan)
  return found
