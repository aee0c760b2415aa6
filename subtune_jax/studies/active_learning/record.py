"""The record of a study of active learning: declared, read and checked for its page."""

import os
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from subtune_jax.studies import fields
from subtune_jax.studies.search import checks


class Data(fields.Data):
  pool: str  # the data set, whose labels are asked for
  num_pool: int
  num_test: int
  num_validation: NotRequired[int]


class Point(checks.Mean):  # test accuracy over seeds
  total: int  # labels
  by_seed: NotRequired[list[fields.Fraction]]


class Saved(TypedDict):
  """Labels saved against the reference rule, as a share; negative where it needs fewer."""

  at: float  # the accuracy that both reach
  mean: float
  low: float
  high: float


class Rule(TypedDict):
  rule: str
  points: Annotated[list[Point], msgspec.Meta(min_length=2)]
  saved: Saved | None  # null: the reference


class Method(TypedDict):
  name: str
  title: str
  rules: Annotated[list[Rule], msgspec.Meta(min_length=1)]


class Record(fields.Record):
  data: Data
  totals: list[int]  # labels
  seeds: list[int]
  chose: list[str]  # methods that chose a setting on further labels
  rules: dict[str, str]  # titles
  methods: Annotated[list[Method], msgspec.Meta(min_length=1)]


def load(workdir: str | os.PathLike) -> Record:
  """The record of a finished study; see `fields.load`."""
  return fields.load(workdir, check)


def check(record: Any, where: str = "record") -> None:
  """Raises ValueError unless `record` is a whole one of this study."""
  fields.check_record(record, Record, where, "active_learning")
  for i, method in enumerate(record["methods"]):
    for j, row in enumerate(method["rules"]):
      place = f"{where}: methods[{i}].rules[{j}]"
      fields.check_one_of(row["rule"], list(record["rules"]), f"{place}: rule")
      for point in row["points"]:
        checks.check_interval(point, place)
      if [point["total"] for point in row["points"]] != record["totals"]:
        raise ValueError(f"{place}: points are not at the totals {record['totals']}.")
