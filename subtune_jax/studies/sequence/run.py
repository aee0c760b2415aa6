"""Tasks in sequence: on one frozen backbone, which forgets nothing, or from the last's weights.

Methods of `on_one_backbone` train every task from the pretrained weights, and the tasks so far
answer as one multi-task network. The other methods go on from the weights that the last task left;
an earlier task keeps its head. WORKDIR/tasks/METHOD/TASK holds the leaves of each training, and
WORKDIR/alone/METHOD/TASK those of a task trained from the pretrained weights; one that is there is
not repeated.

Forward transfer is what the tasks before added to a task's accuracy right after its own training,
against that of the task alone. The FWT of Lopez-Paz and Ranzato (2017, arXiv:1706.08840) is the
accuracy on a task before its training against that of random weights; here every task has a head of
its own, which is random until then, so that FWT compares two guesses.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import pathlib
import sys
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

from subtune_jax import data, methods, multitask
from subtune_jax.models import heads
from subtune_jax.runner import examples, provenance, recipes
from subtune_jax.runner import network as network_lib
from subtune_jax.runner import workdir as workdir_lib
from subtune_jax.statistics import intervals
from subtune_jax.studies import fields, publish
from subtune_jax.studies.sequence import config as sequence_config
from subtune_jax.studies.sequence import page
from subtune_jax.studies.sequence import record as sequence_record
from subtune_jax.training import engine as engine_lib
from subtune_jax.training import evaluate, export, loop
from subtune_jax.training import trace as trace_lib

Row = dict[str, Any]
TASKS, ALONE = "tasks", "alone"


class _Data(NamedTuple):
  """The images of a task."""

  train: data.Dataset
  validation: data.Dataset
  test: data.Dataset


class _Run(NamedTuple):
  """What all methods share."""

  config: Any
  workdir: pathlib.Path
  engine: engine_lib.Engine
  pretrained: Any
  sets: dict[str, _Data]
  stream: TextIO
  trace: trace_lib.Trace | None

  def engine_of(self, task: str) -> engine_lib.Engine:
    """The engine with a head for the task's classes."""
    classes = len(self.sets[task].train.class_names)
    return dataclasses.replace(self.engine, model=self.engine.model.clone(num_classes=classes))


def run(
  config: Any, workdir: str | os.PathLike, *, command: str = "", stream: TextIO | None = None
) -> Row:
  """Runs the study, or goes on with one that was killed.

  Args:
    config: from `config.default()`.
    workdir: where everything is written.
    command: how the run was started, for the report.
    stream: where progress and the tables go; standard output by default.

  Returns:
    The record, as written to WORKDIR/results.json.

  Raises:
    ValueError: a config that makes no sense, data or weights that are not there.
  """
  stream = stream or sys.stdout
  sequence_config.check(config)
  for name in config.tasks:
    data.require(name)
  workdir, _ = workdir_lib.enter(workdir, config)
  sets = {name: _read(config, name) for name in config.tasks}
  first = len(sets[config.tasks[0]].train.class_names)
  engine, pretrained = network_lib.load_network(config, first)
  trace = trace_lib.asked(config, workdir, lambda line: stream.write(f"{line}\n"))
  state = _Run(config, workdir, engine, pretrained, sets, stream, trace)
  rows = [_method(state, name) for name in config.methods]
  record = _record(state, rows, command)
  workdir_lib.write_json(workdir / fields.RESULTS, record)
  publish.publish(page.report(sequence_record.load(workdir)), workdir, stream)
  return record


def _read(config: Any, name: str) -> _Data:
  size, how = config.data.image_size, config.data.interpolation
  train, validation, test = (
    data.load(name, split, size, interpolation=how) for split in ("train", "validation", "test")
  )
  indices = examples.train_indices(config, train)
  return _Data(train if indices is None else train.subset(indices), validation, test)


def _method(run: _Run, name: str) -> sequence_record.Method:
  """The accuracies of a method: a row for each time, a column for each task so far."""
  engine, pretrained = network_lib.prepared(name, run.config, run.engine, run.pretrained)
  run = run._replace(engine=engine, pretrained=pretrained)
  learn = _shared if name in run.config.on_one_backbone else _in_sequence
  matrix, last, num_bytes, moved = learn(run, name)
  final = [_figure(logits, run.sets[task].test) for task, logits in last.items()]
  best = [matrix[i][i] for i in range(len(matrix))]
  alone = _alone(run, name, best) if run.config.forward_transfer else []
  return {
    "name": name, "title": methods.DECLARED[name].title,
    "on_one_backbone": name in run.config.on_one_backbone, "matrix": matrix, "final": final,
    "forgetting": [a - row["accuracy"] for a, row in zip(best, final, strict=True)],
    "alone": alone, "forward_transfer": [a - b for a, b in zip(best, alone, strict=bool(alone))],
    "logits_moved": moved, "num_bytes": num_bytes,
  }  # fmt: skip


Learnt = tuple[list[list[float]], dict[str, np.ndarray], int, float]


def _shared(run: _Run, name: str) -> Learnt:
  """Every task from the pretrained weights; the tasks so far are one network."""
  backbone = multitask.Backbone(
    run.engine.model, run.pretrained.variables, run.pretrained.preprocessing,
    run.config.data.interpolation,
  )  # fmt: skip
  folders: dict[str, pathlib.Path] = {}
  network: multitask.MultiTask | None = None

  def learn(task: str) -> Callable[[str], np.ndarray]:
    nonlocal network
    folders[task] = _trained(run, name, task, run.pretrained.variables)
    network = multitask.MultiTask(folders, backbone)
    batch_size = run.config.batch_size
    return lambda old: (
      network.predict(run.sets[old].test.images, [old], batch_size=batch_size)[old].logits
    )

  matrix, last, moved = _over_time(run, name, learn)
  return matrix, last, network.num_bytes, moved


def _in_sequence(run: _Run, name: str) -> Learnt:
  """Every task from the weights that the last one left; earlier tasks keep their heads."""
  variables = run.pretrained.variables
  own_heads: dict[str, Any] = {}

  def learn(task: str) -> Callable[[str], np.ndarray]:
    nonlocal variables
    folder = _trained(run, name, task, variables)
    variables, _ = export.load_task(folder, run.pretrained.variables)
    own_heads[task] = variables["params"]["head"]

    def logits(old: str) -> np.ndarray:
      params = {**variables["params"], "head": own_heads[old]}
      whole = {**variables, "params": params}
      return run.engine_of(old).predict(whole, run.sets[old].test.images)

    return logits

  matrix, last, moved = _over_time(run, name, learn)
  body = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
  others = [own for task, own in own_heads.items() if task != run.config.tasks[-1]]
  return matrix, last, body + sum(leaf.nbytes for leaf in jax.tree.leaves(others)), moved


def _alone(run: _Run, name: str, best: Sequence[float]) -> list[float]:
  """Test accuracy of each task trained alone; `best`: that after its training in the sequence."""
  if name in run.config.on_one_backbone:
    return list(best)  # the same trainings
  found = [best[0]]
  for task in run.config.tasks[1:]:
    folder = _trained(run, name, task, run.pretrained.variables, ALONE)
    variables, _ = export.load_task(folder, run.pretrained.variables)
    test = run.sets[task].test
    logits = run.engine_of(task).predict(variables, test.images)
    found.append(evaluate.accuracy(logits, test.labels))
  run.stream.write(f"{name}, each alone: {', '.join(f'{100 * a:.1f}' for a in found)}\n")
  return found


def _over_time(
  run: _Run, name: str, learn: Callable[[str], Callable[[str], np.ndarray]]
) -> tuple[list[list[float]], dict[str, np.ndarray], float]:
  """(accuracies, the last logits of each task, how far any logit moved after its training)."""
  matrix: list[list[float]] = []
  first: dict[str, np.ndarray] = {}
  last: dict[str, np.ndarray] = {}
  moved = 0.0
  for at, task in enumerate(run.config.tasks):
    logits_of = learn(task)
    row = []
    for old in run.config.tasks[: at + 1]:
      last[old] = logits_of(old)
      row.append(evaluate.accuracy(last[old], run.sets[old].test.labels))
      moved = max(moved, float(np.abs(last[old] - first.setdefault(old, last[old])).max()))
    matrix.append(row)
    run.stream.write(f"{name}, after {task}: {', '.join(f'{100 * a:.1f}' for a in row)}\n")
    run.stream.flush()
  return matrix, last, moved


def _trained(
  run: _Run, name: str, task: str, start: Mapping[str, Any], where: str = TASKS
) -> pathlib.Path:
  """The folder of a task's training; it is trained unless it is there."""
  folder = run.workdir / where / name / task.replace("/", "-")
  if folder.is_dir():
    return folder
  config, sets, engine = run.config, run.sets[task], run.engine_of(task)
  (rate,) = recipes.learning_rates(config, name)
  method = recipes.make_method(config, name, rate, engine.model.block_names)
  variables = heads.init_head(engine.model, start, config.seed, run.pretrained.sha256)
  result = loop.fit(
    engine, variables, method, sets.train, sets.validation, seed=config.seed, validate="end",
    trace=run.trace,
  )  # fmt: skip
  note = {"backbone": config.backbone.weights, "class_names": list(sets.train.class_names)}
  touched = result.touched
  if name not in config.on_one_backbone:  # what earlier trainings changed counts too
    touched = jax.tree.map(lambda _: True, result.variables)
  export.save_task(folder, result.variables, touched, run.pretrained.variables, note)
  return folder


def _figure(logits: np.ndarray, test: data.Dataset) -> fields.Accuracy:
  right = evaluate.predictions(logits) == test.labels
  low, high = intervals.of_accuracy(right, test.groups)
  return {"accuracy": float(right.mean()), "low": low, "high": high}


def _record(
  run: _Run, rows: Sequence[sequence_record.Method], command: str
) -> sequence_record.Record:
  config = run.config
  return {
    **fields.header(config, command),
    **provenance.run_facts(run.engine.mesh), "config": workdir_lib.as_json(config),
    "backbone": network_lib.backbone_row(config, run.engine.model, run.pretrained),
    "tasks": [
      {"name": name, "classes": len(own.train.class_names), "num_train": len(own.train),
       "num_test": len(own.test), "attribution": data.attribution(name)}
      for name, own in run.sets.items()
    ],
    "methods": list(rows),
  }  # fmt: skip
