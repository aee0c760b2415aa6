"""VTAB-1k: one comparison of the methods for each task, with the same settings, and their scores.

A task is a run of `compare` in WORKDIR/tasks/TASK or, where SubTuning's blocks are searched for, a
`search` there, whose final comparison counts. Tasks that are finished in a workdir stay in its
table, so the suite may be run in parts, and a killed one goes on where it stopped.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import gc
import os
import pathlib
import sys
from typing import Any, TextIO

import jax

from subtune_jax.data import errors, tfds_source, vtab
from subtune_jax.report import html
from subtune_jax.runner import executors, progress, recipes
from subtune_jax.runner import workdir as workdir_lib
from subtune_jax.studies import fields, publish
from subtune_jax.studies import nested_search as studies
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import run as compare
from subtune_jax.studies.compare import summary as summary_lib
from subtune_jax.studies.search import config as search_config
from subtune_jax.studies.vtab import config as vtab_config
from subtune_jax.studies.vtab import page as suite
from subtune_jax.studies.vtab import protocols
from subtune_jax.studies.vtab import record as vtab_record
from subtune_jax.workers import queue

Row = dict[str, Any]
TASKS = "tasks"  # folder of the tasks' runs
_PREPARE = "python -m subtune_jax.data.prepare"
_KNOWN = {**vtab.TASKS, **vtab.EXTRA}


def run(
  config: Any, workdir: str | os.PathLike, *, command: str = "", stream: TextIO | None = None
) -> Row:
  """Runs the suite, or goes on with one that was killed.

  Nothing is written before the config has been checked and every task's data found.

  Args:
    config: from `vtab_config.default()`.
    workdir: where everything is written; of one config, but for its tasks.
    command: how the run was started, for the report.
    stream: where progress and the tables go; standard output by default.

  Returns:
    The record, as written to WORKDIR/results.json.

  Raises:
    errors.MissingDataError: data sets that are not prepared, all of them, with what to do.
    ValueError: a config that makes no sense, a workdir of another config, bad weights or data.
  """
  stream = stream or sys.stdout
  workdir = pathlib.Path(workdir)
  names = vtab_config.task_names(config)
  old = _old_rows(workdir)
  rows = {task: row for task in _KNOWN if (row := _finished(config, workdir, task, old))}
  todo = [task for task in names if task not in rows]
  _require_data(names, todo)
  if todo:
    compare.check(vtab_config.task_config(config, todo[0]))
  workdir, entered = workdir_lib.enter(workdir, vtab_config.shared(config))
  if entered:
    stream.write(f"resuming; finished and not repeated: {', '.join(rows) or 'no task'}\n")
  record = _write(config, workdir, rows, command)
  for task, row in _run_tasks(config, workdir, todo, command, stream):
    rows[task] = row
    record = _write(config, workdir, rows, command)
    stream.write(f"{suite.task_line(row)}\n\n")
  publish.publish(suite.report(vtab_record.load(workdir)), workdir, stream)
  return record


def _require_data(names: Sequence[str], todo: Sequence[str]) -> None:
  """Raises one error for all tasks whose data is not prepared."""
  missing = [task for task in todo if not _KNOWN[task].source.is_prepared()]
  if not missing:
    return
  lines = [f"{len(missing)} of {len(names)} tasks have no data here. Nothing was written."]
  lines += [_how_to_get(_KNOWN[task]) for task in missing]
  automatic = [vtab.full_name(_KNOWN[t]) for t in missing if not _KNOWN[t].source.manual]
  if len(automatic) > 1:
    lines.append(f"All that need nothing by hand: {_PREPARE} {' '.join(automatic)}")
  lines.append("Tasks of one TFDS data set share its download. Data in another folder: set "
               "TFDS_DATA_DIR.")  # fmt: skip
  here = [task for task in names if task not in missing]
  if here:
    value = "".join(f"'{task}'," for task in here)
    lines.append(f'What is here runs alone: --config.tasks="({value})"')
  raise errors.MissingDataError("\n".join(lines))


def _how_to_get(task: vtab.Task) -> str:
  source, name = task.source, vtab.full_name(task)
  text = f"  {name} (TFDS {source.name} {source.version}): {source.download} to download, goes to "
  text += f"{source.path}\n    "
  if source.manual:
    text += f"by hand, put into {tfds_source.manual_dir()}: {source.manual}; then: "
  text += f"{_PREPARE} {name}"
  lacking = source.missing_modules()
  return text + (f" (needs these, not installed here: {', '.join(lacking)})" if lacking else "")


def _run_tasks(
  config: Any, workdir: pathlib.Path, todo: Sequence[str], command: str, stream: TextIO
) -> Iterator[tuple[str, Row]]:
  """(task, its row) as they end: one after the other, or as many at once as keep a cluster busy."""
  if config.workers == executors.HERE:
    for number, task in enumerate(todo, start=1):
      stream.write(f"task {number} of {len(todo)}: {task}\n")
      stream.flush()
      yield task, _run_task(config, workdir, task, command, stream)
    return
  grids = sum(len(recipes.learning_rates(config, name)) for name in config.methods)
  most = 2 if config.choose_blocks else 2 + queue.width(executors.of(config, 1)) // grids
  stream.write(f"{len(todo)} tasks, {min(most, len(todo))} at a time\n")
  drivers = [
    functools.partial(
      _run_task, config, workdir, task, command, progress.Prefixed(f"{task}: ", stream)
    )
    for task in todo
  ]
  for number, row in queue.side_by_side(drivers, most):
    yield todo[number], row


def _run_task(
  config: Any, workdir: pathlib.Path, task: str, command: str, stream: TextIO
) -> Row:  # fmt: skip
  folder = workdir / TASKS / task
  if config.choose_blocks:
    studies.run_search(folder, vtab_config.search_of(config, task), command, stream)
    return _row(folder, task)
  try:
    own = vtab_config.task_config(config, task)
    compare.run(own, folder, command=command, stream=stream, changeable=False)
  except ValueError as e:
    raise ValueError(f"{task}: {e}") from e
  jax.clear_caches()  # the next task has a head of another size
  gc.collect()
  return _row(folder, task)


def _finished(
  config: Any, workdir: pathlib.Path, task: str, old: Mapping[str, Row]
) -> Row | None:  # fmt: skip
  """The row of a task that an earlier start has finished.

  Raises:
    ValueError: it was run with other settings, or its records are damaged.
  """
  folder = workdir / TASKS / task
  make = vtab_config.search_of if config.choose_blocks else vtab_config.task_config
  record = studies.finished(folder, make(config, task))
  if record is None:
    return None
  row = old.get(task)
  return row if row and row["created"] == record["created"] else _row(folder, task)


def _old_rows(workdir: pathlib.Path) -> dict[str, vtab_record.Task]:
  """Rows of an earlier start, whose intervals need not be computed again."""
  if not (workdir / fields.RESULTS).is_file():
    return {}
  return {row["task"]: row for row in vtab_record.load(workdir)["tasks"]}


def _row(folder: pathlib.Path, task: str) -> vtab_record.Task:
  """What the suite says of a task, from the records of its run."""
  own = fields.read(folder)
  searched = fields.kind_of(own) == "search"
  run_ = compare_record.load(folder / search_config.FINAL if searched else folder)
  record, summary = run_.record, summary_lib.summarize(run_)
  data, (column,) = record["data"], summary.columns
  row = {
    "task": task, "name": data["train"], "group": _KNOWN[task].group,
    "folder": f"{TASKS}/{task}", "created": own["created"], "devices": record["devices"],
    "num_classes": len(data["class_names"]), "num_train": data["num_train"],
    "num_validation": data["num_validation"], "num_test": data["num_test"][data["id"]],
    "num_seeds": summary.num_seeds, "leaders": list(summary.leaders[column.key]),
    "methods": [],
  }  # fmt: skip
  for method in summary.rows:
    estimate = method.accuracy[column.key]
    trainings = [t["test"][data["id"]]["accuracy"] for t in run_.chosen(method.name)]
    row["methods"].append({
      "name": method.name, "title": method.title, "accuracy": estimate.mean,
      "low": estimate.low, "high": estimate.high, "by_seed": trainings,
      "setting": method.setting, "value": method.value, "grid_edge": method.at_edge,
      "trained_params": method.trained_params, "moved": method.moved,
      "seconds": method.seconds, "compile_seconds": method.compile_seconds,
    })  # fmt: skip
  return row


def _write(
  config: Any, workdir: pathlib.Path, rows: Mapping[str, vtab_record.Task], command: str
) -> vtab_record.Record:
  """Writes the record and the page as far as there are results."""
  ordered = [rows[task] for task in _KNOWN if task in rows]
  record = {
    **fields.header(config, command),
    "protocol": protocols.described(config),
    "config": workdir_lib.as_json(config),
    "num_tasks": len(vtab.TASKS),
    "missing": [task for task in vtab.TASKS if task not in rows],
    "tasks": ordered,
    "scores": scores(ordered),
  }
  workdir_lib.write_json(workdir / fields.RESULTS, record)
  html.write(workdir, suite.report(record))
  return record


def scores(rows: Sequence[vtab_record.Task]) -> list[vtab_record.Score] | None:
  """The scores of each method; None unless all 19 tasks are there. Other tasks never count.

  Each score is a weighted mean of accuracies. Test sets and trainings of two tasks have nothing in
  common, so its interval adds the tasks' intervals as independent errors: the square root of the
  sum of squared, weighted half widths, below and above.

  Args:
    rows: of results.json.
  """
  rows = [row for row in rows if row["task"] in vtab.TASKS]
  if {row["task"] for row in rows} != vtab.TASKS.keys():
    return None
  found = []
  for key, title, function in _SCORES:
    methods = {}
    for name in [method["name"] for method in rows[0]["methods"]]:
      cells = {row["task"]: next(m for m in row["methods"] if m["name"] == name) for row in rows}
      methods[name] = _score(cells, function)
    found.append({"key": key, "title": title, "methods": methods})
  return found


def _score(
  cells: Mapping[str, vtab_record.Method], function: Callable[[Mapping[str, float]], float]
) -> fields.Accuracy:
  value = function({task: cell["accuracy"] for task, cell in cells.items()})
  below = above = 0.0
  for task, cell in cells.items():
    weight = function({other: float(other == task) for other in cells})
    below += (weight * (cell["accuracy"] - cell["low"])) ** 2
    above += (weight * (cell["high"] - cell["accuracy"])) ** 2
  return {"accuracy": value, "low": value - below**0.5, "high": value + above**0.5}


def _group_mean(group: str) -> Callable[[Mapping[str, float]], float]:
  return lambda accuracies: vtab.group_means(accuracies)[group]


_SIZES = {g: sum(task.group == g for task in vtab.TASKS.values()) for g in vtab.GROUPS}
_SCORES = (
  ("mean_of_tasks", f"mean of {len(vtab.TASKS)} tasks", vtab.score),
  *((f"mean_of_{g}", f"mean of {n} {g}", _group_mean(g)) for g, n in _SIZES.items()),
  ("mean_of_group_means", f"mean of {len(_SIZES)} group means", vtab.mean_of_group_means),
)
