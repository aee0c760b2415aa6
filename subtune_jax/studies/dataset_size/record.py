"""The record of a study of the number of training images: read, checked, asked by its page."""

from collections.abc import Sequence
import os
from typing import Any

import numpy as np

from subtune_jax.studies import fields
from subtune_jax.studies.search import checks
from subtune_jax.studies.search import record as search_record

Row = checks.Row

_SIZE = {"asked": int, "size": int, "folder": str, "methods": list, "against_ft": dict}
_SIZE_METHOD = {"name": str, "title": str, "by_seed": list, "setting": str}


def load(workdir: str | os.PathLike) -> dict[str, Any]:
  """The record of a finished study; see `search.checks.load`."""
  return checks.load(workdir, check)


def check(record: Any, where: str = "record") -> None:
  """Raises ValueError unless `record` is a whole one of this study."""
  checks.check_header(record, checks.DATASET_SIZE, where)
  data = {"train": str, "class_names": list, "num_test": int, "test": str}
  fields.check_fields(record["data"], data, f"{where}: data")
  wanted = {"sizes": list, "map": (dict, type(None)), "crossover": (dict, type(None))}
  fields.check_fields(record, wanted, where)
  checks.check_list(record["sizes"], f"{where}: sizes", _check_size, least=1)
  sizes = [size["size"] for size in record["sizes"]]
  if sorted(set(sizes)) != sizes or sizes[0] < 1:
    raise ValueError(f"{where}: sizes are {sizes}; they have to be positive and to rise.")
  if record["crossover"] is not None:
    fields.check_fields(record["crossover"], {"text": str}, f"{where}: crossover")
  if record["map"] is not None:
    _check_map(record["map"], sizes, f"{where}: map")


def _check_size(size: Any, where: str) -> None:
  fields.check_fields(size, _SIZE, where)
  checks.check_folder(size["folder"], where)
  checks.check_list(size["methods"], f"{where}: methods", _check_size_method, least=1)
  if not all(isinstance(unit, str) for unit in size.get("chosen", ())):
    raise ValueError(f"{where}: chosen is {size['chosen']!r}, it has to be a list of units.")
  for name, entry in size["against_ft"].items():
    checks.check_estimate(entry, f"{where}: against_ft.{name}", least=-1.0)


def _check_size_method(method: Any, where: str) -> None:
  fields.check_fields(method, _SIZE_METHOD, where)
  checks.check_estimate(method, where, key="accuracy")
  for i in range(len(method["by_seed"])):
    checks.check_accuracy(dict(enumerate(method["by_seed"])), i, f"{where}: by_seed")


def _check_map(entry: Row, sizes: Sequence[int], where: str) -> None:
  fields.check_fields(entry, {"units": list, "rows": list, "head": list}, where)

  def check_head(row: Any, place: str) -> None:
    fields.check_fields(row, {"size": int}, place)
    fields.check_one_of(row["size"], sizes, f"{place}: size")
    checks.check_estimate(row, place)

  def check_row(row: Any, place: str) -> None:
    check_head(row, place)
    fields.check_fields(row, {"unit": str, "by_fold": list}, place)
    fields.check_one_of(row["unit"], entry["units"], f"{place}: unit")
    checks.check_folds(row, len(row["by_fold"]), place)

  checks.check_list(entry["rows"], f"{where}.rows", check_row)
  checks.check_list(entry["head"], f"{where}.head", check_head)


def methods(record: Row) -> dict[str, str]:
  """Titles of the methods by name, in the order in which they come."""
  return {method["name"]: method["title"] for size in record["sizes"] for method in size["methods"]}


def method(size: Row, name: str) -> Row | None:
  """The entry of a method, None if it was not run at that size."""
  return next((method for method in size["methods"] if method["name"] == name), None)


def profiles(record: Row) -> list[tuple[Row, list[Row]]]:
  """Per size of the map: the entry of the head alone, and those of the single units."""
  if record["map"] is None:
    return []
  return [
    (head, [row for row in record["map"]["rows"] if row["size"] == head["size"]])
    for head in sorted(record["map"]["head"], key=lambda head: head["size"])
  ]


def gains(record: Row) -> tuple[np.ndarray, np.ndarray, list[Row]]:
  """The map of the record as arrays.

  Returns:
    [sizes, units] gain over the head alone in points, NaN where there is none; [sizes, units]
    whether a unit is not told apart from the best of its size; the entries of the head alone.
  """
  found = profiles(record)
  rows = [search_record.gains(rows, head, record["map"]["units"]) for head, rows in found]
  values, near = (np.array(part) for part in zip(*rows, strict=True))
  return values, near, [head for head, _ in found]
