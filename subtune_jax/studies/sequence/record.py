"""The record of tasks in sequence: declared and read for its page."""

import os
from typing import Any, NotRequired, TypedDict

from subtune_jax.studies import fields


class Task(TypedDict):
  name: str
  classes: int
  num_train: int
  num_test: int
  attribution: str


class Method(TypedDict):
  name: str
  title: str
  on_one_backbone: bool
  matrix: list[list[float]]  # after each task the test accuracies of the tasks so far
  final: list[fields.Accuracy]  # of each task at the end
  forgetting: list[float]  # accuracy after a task's own training minus that at the end
  alone: NotRequired[list[float]]  # accuracy of each task trained alone; empty: not measured
  forward_transfer: NotRequired[list[float]]  # accuracy after own training minus that alone
  logits_moved: float  # most that a logit of an earlier task moved
  num_bytes: int  # of all weights


class Record(fields.Record):
  tasks: list[Task]
  methods: list[Method]


def load(workdir: str | os.PathLike) -> Record:
  """The record of a finished study; see `fields.load`."""
  return fields.load(workdir, check)


def check(record: Any, where: str = "record") -> None:
  """Raises ValueError unless `record` is one of this study."""
  fields.check_record(record, Record, where, "sequence")
