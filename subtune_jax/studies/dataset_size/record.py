"""The record of a study of the number of training images: read, checked, asked by its page."""

import os
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
import numpy as np

from subtune_jax.studies import fields
from subtune_jax.studies.search import checks
from subtune_jax.studies.search import record as search_record

Row = checks.Row


class Data(fields.Data):
  train: str
  test: str
  num_test: int


class Method(checks.Tested):
  name: str
  by_seed: list[fields.Fraction]
  setting: str
  value: NotRequired[float | None]  # of the setting


class Difference(TypedDict):  # of accuracies
  mean: Annotated[float, msgspec.Meta(ge=-1, le=1)]
  low: Annotated[float, msgspec.Meta(ge=-1, le=1)] | None
  high: Annotated[float, msgspec.Meta(ge=-1, le=1)] | None


class Size(TypedDict):
  asked: int  # images
  size: int  # as many could be drawn
  folder: str  # of the search
  chosen: NotRequired[list[str]]  # units
  methods: Annotated[list[Method], msgspec.Meta(min_length=1)]
  against_ft: dict[str, Difference]  # by method


class Head(checks.Mean):
  size: int


class OfUnit(checks.OfUnit):
  size: int


class Map(TypedDict):  # which unit helps at which size
  units: list[str]
  rows: list[OfUnit]
  head: list[Head]  # of the head alone


class Record(fields.Record):
  data: Data
  sizes: Annotated[list[Size], msgspec.Meta(min_length=1)]
  map: Map | None
  crossover: dict[str, str] | None  # "text"


def load(workdir: str | os.PathLike) -> Record:
  """The record of a finished study; see `fields.load`."""
  return fields.load(workdir, check)


def check(record: Any, where: str = "record") -> None:
  """Raises ValueError unless `record` is a whole one of this study."""
  fields.check_record(record, Record, where, "dataset_size")
  sizes = [size["size"] for size in record["sizes"]]
  if sorted(set(sizes)) != sizes or sizes[0] < 1:
    raise ValueError(f"{where}: sizes are {sizes}; they have to be positive and to rise.")
  for i, size in enumerate(record["sizes"]):
    place = f"{where}: sizes[{i}]"
    checks.check_folder(size["folder"], place)
    for entry in (*size["methods"], *size["against_ft"].values()):
      checks.check_interval(entry, place)
  for name in ("rows", "head") if record["map"] else ():
    for i, row in enumerate(record["map"][name]):
      place = f"{where}: map.{name}[{i}]"
      fields.check_one_of(row["size"], sizes, f"{place}: size")
      checks.check_interval(row, place)
      if name == "rows":
        fields.check_one_of(row["unit"], record["map"]["units"], f"{place}: unit")
        checks.check_folds(row, len(row["by_fold"]), place)


def methods(record: Record) -> dict[str, str]:
  """Titles of the methods by name, in the order in which they come."""
  return {method["name"]: method["title"] for size in record["sizes"] for method in size["methods"]}


def method(size: Size, name: str) -> Method | None:
  """The entry of a method, None if it was not run at that size."""
  return next((method for method in size["methods"] if method["name"] == name), None)


def profiles(record: Record) -> list[tuple[Head, list[OfUnit]]]:
  """Per size of the map: the entry of the head alone, and those of the single units."""
  own = record["map"]
  if own is None:
    return []
  return [
    (head, [row for row in own["rows"] if row["size"] == head["size"]])
    for head in sorted(own["head"], key=lambda head: head["size"])
  ]


def gains(record: Record) -> tuple[np.ndarray, np.ndarray, list[Head]]:
  """The map of the record as arrays.

  Returns:
    [sizes, units] gain over the head alone in points, NaN where there is none; [sizes, units]
    whether a unit is not told apart from the best of its size; the entries of the head alone.
  """
  found = profiles(record)
  units = record["map"]["units"] if record["map"] else []
  rows = [search_record.gains(rows, head, units) for head, rows in found]
  values, near = (np.array(part) for part in zip(*rows, strict=True))
  return values, near, [head for head, _ in found]
