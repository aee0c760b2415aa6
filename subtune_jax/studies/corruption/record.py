"""The record of a study of corruptions: read, checked, and asked for what its page needs."""

from collections.abc import Sequence
import math
import os
from typing import Any

import numpy as np

from subtune_jax.report import estimate
from subtune_jax.studies import fields
from subtune_jax.studies.search import checks
from subtune_jax.studies.search import record as search_record

Row = checks.Row
_ROW = {
  "corruption": str,
  "severity": int,
  "title": str,
  "name": str,
  "folder": str,
  "order": list,
  "chosen": list,
  "profile": list,
}


def load(workdir: str | os.PathLike) -> dict[str, Any]:
  """The record of a finished study; see `search.checks.load`."""
  return checks.load(workdir, check)


def check(record: Any, where: str = "record") -> None:
  """Raises ValueError unless `record` is a whole one of this study."""
  checks.check_header(record, checks.CORRUPTION, where)
  units, num_folds = checks.check_candidates(record, where), checks.check_folded_data(record, where)
  fields.check_fields(record, {"rows": list}, where)

  def check_row(row: Any, place: str) -> None:
    fields.check_fields(row, _ROW, place)
    checks.check_folder(row["folder"], place)
    checks.check_units(row["chosen"], units, f"{place}: chosen")
    for key in ("head", "all", "certificate", "test"):
      fields.check_fields(row, {key: (dict, type(None))}, place)
    for key in ("head", "all"):
      if row[key] is not None:
        checks.check_estimate(row[key], f"{place}: {key}")
    checks.check_certificate(row["certificate"], units, f"{place}: certificate")
    _check_order(row["order"], units, f"{place}: order")
    for i, point in enumerate(row["profile"]):
      fields.check_fields(point, {"unit": str, "by_fold": list}, f"{place}: profile[{i}]")
      fields.check_one_of(point["unit"], units, f"{place}: profile[{i}].unit")
      checks.check_estimate(point, f"{place}: profile[{i}]")
      checks.check_folds(point, num_folds, f"{place}: profile[{i}]")
    for name, entry in (row["test"] or {}).items():
      checks.check_estimate(entry, f"{place}: test.{name}", key="accuracy")
      fields.check_fields(entry, {"title": str}, f"{place}: test.{name}")

  checks.check_list(record["rows"], f"{where}: rows", check_row, least=1)


def _check_order(order: Sequence[Any], units: checks.Units, where: str) -> None:
  for i, step in enumerate(order):
    fields.check_fields(step, {"unit": str, "taken": bool}, f"{where}[{i}]")
    fields.check_one_of(step["unit"], units, f"{where}[{i}].unit")
    checks.check_accuracy(step, "score", f"{where}[{i}]")


def labels(record: Row) -> list[str]:
  """Titles of the corruptions; with their severity where there are several, 0 being none."""
  severities = {row["severity"] for row in record["rows"]} - {0}
  several = len(severities) > 1
  return [
    f"{row['title']}, {row['severity']}" if several and row["severity"] else row["title"]
    for row in record["rows"]
  ]


def titled(record: Row, key: str) -> list[tuple[str, Row]]:
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


def method_titles(record: Row) -> dict[str, str]:
  """Titles of the methods that were tested, in the order in which they come."""
  tests = [row["test"] or {} for row in record["rows"]]
  return {name: entry["title"] for test in tests for name, entry in test.items()}


def mean_test(record: Row) -> dict[str, estimate.Estimate]:
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
