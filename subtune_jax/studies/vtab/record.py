"""The record of a suite of tasks, as far as they are finished: declared and read for its page."""

import os
from typing import Any, NotRequired, TypedDict

from subtune_jax.studies import fields


class Method(fields.Accuracy):
  name: str
  title: str
  by_seed: list[float]
  setting: str
  value: float  # of the setting
  grid_edge: bool
  trained_params: int
  moved: float | None  # see `compare.record`
  seconds: float
  compile_seconds: float


class Task(TypedDict):
  task: str
  name: str  # of the data set
  group: str
  folder: str  # of its run
  created: str
  devices: str
  num_classes: int
  num_train: int
  num_validation: int
  num_test: int
  num_seeds: int
  leaders: list[str]  # methods that no other is surely above
  methods: list[Method]


class Score(TypedDict):  # a mean over tasks
  key: str
  title: str
  methods: dict[str, fields.Accuracy]


class Record(fields.Header):
  protocol: NotRequired[str]  # in words
  num_tasks: int  # of the whole suite
  missing: list[str]
  tasks: list[Task]
  scores: list[Score] | None  # null: tasks are missing


def load(workdir: str | os.PathLike) -> Record:
  """The record of a suite; see `fields.load`."""
  return fields.load(workdir, check)


def check(record: Any, where: str = "record") -> None:
  """Raises ValueError unless `record` is one of a suite."""
  fields.check_record(record, Record, where, "vtab")
