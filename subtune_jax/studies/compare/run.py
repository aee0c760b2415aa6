"""Compares methods on one data set and its shifted siblings.

For each method: a training per learning rate on the first seed, the rate with the best validation
accuracy, a training per further seed at that rate; then the networks see the test sets, once. With
`data.retrain` the chosen setting is trained anew on training and validation images, for each seed.
"""

from collections.abc import Callable, Mapping, Sequence
import io
import os
import pathlib
import shutil
import sys
from typing import Any, TextIO

import numpy as np

from subtune_jax import data, files, methods, processes
from subtune_jax.data import choices, preprocess, shifts
from subtune_jax.models import forks
from subtune_jax.report import document, terminal
from subtune_jax.runner import (
  choice,
  examples,
  executors,
  forecast,
  many,
  network,
  provenance,
  recipes,
  trainings,
  writers,
)
from subtune_jax.runner import progress as progress_lib
from subtune_jax.runner import workdir as workdir_lib
from subtune_jax.statistics import criteria
from subtune_jax.studies import data_table, fields, publish
from subtune_jax.studies.compare import best, errors, label_check
from subtune_jax.studies.compare import page as compare_page
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import summary as summary_lib
from subtune_jax.training import ledger as ledger_lib
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import trainable_split

Row = dict[str, Any]
Report = Callable[[compare_record.Run, summary_lib.Summary], document.Document]
SEVERAL_PROCESSES = True  # see `main`


def run(
  config: Any, workdir: str | os.PathLike, *, command: str = "", stream: TextIO | None = None,
  changeable: bool = True,
) -> Row:  # fmt: skip
  """Runs a comparison, or goes on with one that was killed.

  Args:
    config: from `recipes.default()`.
    workdir: where everything is written.
    command: how the run was started, for the report.
    stream: where progress and the final table go; standard output by default.
    changeable: see `start`.

  Returns:
    The record, as written to WORKDIR/results.json.

  Raises:
    ValueError: a config that makes no sense, a workdir of another config, bad weights or data.
  """
  state = start(config, workdir, stream or sys.stdout, changeable=changeable)
  chosen = train_all(state)
  return finish(state, chosen, command)


def dry_run(
  config: Any, workdir: str | os.PathLike, *, stream: TextIO | None = None
) -> forecast.Forecast | None:
  """Says what `run` would take; trains and writes nothing. Arguments and errors: see `run`."""
  state, notes = look(config, pathlib.Path(workdir), stream or sys.stdout)
  _say_what_is_there(state, notes)
  if config.workers != executors.HERE:
    state.progress.line(f"dry run, nothing was trained; {executors.NO_FORECAST}")
    state.progress.close()
    return None
  found = forecast.measure(state)
  done = "nothing: all trainings are in the ledger"
  state.progress.line(f"dry run, nothing was trained; {found.text() if found else done}")
  state.progress.close()
  return found


def forecast_of(config: Any, workdir: str | os.PathLike) -> forecast.Forecast | None:
  """What `run` would take, None where nothing is left. Errors: see `run`."""
  state, _ = look(config, pathlib.Path(workdir), io.StringIO())
  return forecast.measure(state)


def start(
  config: Any, workdir: str | os.PathLike, stream: TextIO, *, changeable: bool = False
) -> trainings.Run:
  """Checks everything and enters the workdir; nothing is trained yet. Errors: see `run`.

  Args:
    config: of the comparison.
    workdir: where everything is written.
    stream: where progress goes.
    changeable: whether a workdir without results may be entered with other methods, learning rates
      and seeds, which the keys of its ledger hold. Not where it is a part of another workdir.
  """
  state, notes = look(config, pathlib.Path(workdir), stream)
  finished = (state.workdir / fields.RESULTS).exists()
  free = trainings.fields_in_keys() if changeable and not finished else ()
  state.workdir, entered = workdir_lib.enter(workdir, config, free)
  state.changeable = changeable
  state.writer = writers.MetricWriter(state.workdir, tensorboard=config.tensorboard)
  _say_what_is_there(state, notes)
  if entered:
    state.progress.line(state.resuming())
  validation = state.validation
  read = {"labels": validation.labels, "groups": validation.groups, "ids": validation.ids}
  files.write_npz(state.workdir / "logits/validation/examples.npz", read)
  if config.workers != executors.HERE:
    state.progress.line(executors.NO_FORECAST)
    return state
  expected = forecast.measure(state)
  if expected:
    state.progress.line(expected.text())
    state.progress.expect(expected.whole)
    state.epoch_cost = expected.epoch
  return state


def look(config: Any, workdir: pathlib.Path, stream: TextIO) -> tuple[trainings.Run, list[str]]:
  """The run before it enters its workdir and writes anything, and what to say of its data.

  Arguments and errors: see `run`.
  """
  grids = grids_of(config)
  check_fields(config)
  train, validation, trainval, train_indices = examples.load_data(config)
  if criteria.of(config).name == "auroc" and len(set(validation.labels.tolist())) < 2:
    raise ValueError(
      f"select_by is 'auroc', and all {len(validation)} validation images of {validation.name} are "
      "of one class; choose by another metric"
    )
  tests, notes = examples.load_tests(config, train.class_names)
  engine, pretrained = network.load_network(config, len(train.class_names))
  check_methods(config, grids, engine, pretrained, train.class_names)
  if config.workers == executors.HERE:  # elsewhere there are other devices
    rows = min(config.batch_size, len(train))
    mesh_lib.check_batch_size(rows, engine.mesh, config.optimizer.accumulate)
  ledger = ledger_lib.Ledger(workdir / "ledger.jsonl")
  state = trainings.Run(
    config, workdir, train, validation, trainval, tests, train_indices, engine, pretrained, ledger,
    ledger.rows(), None, None,
  )  # fmt: skip
  state.progress = progress_lib.Progress(forecast.num_epochs(state), stream)
  return state, notes


def _say_what_is_there(run: trainings.Run, notes: Sequence[str]) -> None:
  run.progress.line(_first_line(run.config, grids_of(run.config), run.engine, run.workdir))
  training = (run.trainval,) if run.trainval else ()
  sets = data_table.report((run.train, run.validation, *training), run.tests, notes)
  run.progress.line(terminal.render(sets))


def train_all(run: trainings.Run) -> dict[str, Row]:
  """Method -> {"name", "grid", "chosen", "tried", "learning_rate"}: every training of the run."""
  plans = {
    name: choice.train_method(run, name, rates) for name, rates in grids_of(run.config).items()
  }
  return many.train_all(run, plans, executors.of(run.config, 1))


def finish(
  run: trainings.Run,
  chosen: Mapping[str, Row],
  command: str,
  *,
  more: Callable[[], Mapping[str, Any]] = dict,
  report: Report = compare_page.report,
) -> Row:
  """Reads the test splits and writes record, page and table.

  Args:
    run: after `train_all`.
    chosen: what that returned.
    command: how the run was started.
    more: makes further entries of the record, after the test splits were read.
    report: makes the document that is published.
  """
  run.progress.line("reading the test splits")
  record = _record(run, chosen, command) | dict(more())
  row = best.choose(record) if run.config.save_model else None
  if row:
    record["best"] = {"method": row["method"], "seed": row["seed"], "folder": best.FOLDER}
  run.writer.close()
  labelled = label_check.write(run, record)
  processes.on_first(lambda: _publish(run, record, row, labelled, report))
  return record


def _publish(
  run: trainings.Run, record: Row, row: Row | None, labelled: errors.Take, report: Report
) -> None:
  """Writes record, page, table and model folder; nothing of it is computed on all devices."""
  workdir_lib.write_json(run.workdir / fields.RESULTS, record)
  keep = {training["key"] for training in record["trainings"] if training["chosen"]}
  for folder in (run.workdir / "tasks").iterdir():
    if folder.name not in keep:  # learning rates that were not chosen
      shutil.rmtree(folder)
  written = compare_record.load(run.workdir)
  take = {test.name: test.images.__getitem__ for test in run.tests}
  errors.save(written, {**take, errors.LABELS: labelled})
  made = report(written, summary_lib.summarize(written))
  run.progress.close()
  run.progress.compare()
  publish.publish(made, run.workdir, run.progress.stream)
  if row:
    run.progress.stream.write(f"model folder: {_save_best(run, written, row)}\n")


def _save_best(run: trainings.Run, written: compare_record.Run, row: Row) -> str:
  """Writes WORKDIR/best, and says what is in it."""
  path = run.workdir / best.FOLDER
  best.write(written, row, run.config, run.engine, run.pretrained, path)
  title = methods.DECLARED[row["method"]].title
  chosen_by = f"validation {criteria.of(run.config).title}"
  return f"{path} ({title}, seed {row['seed']}, chosen by {chosen_by})"


def grids_of(config: Any) -> dict[str, tuple[float, ...]]:
  """Method -> learning rates tried."""
  return {name: recipes.learning_rates(config, name) for name in config.methods}


def check(config: Any, num_classes: int = 2) -> None:
  """Raises what `run` would raise for the config, weights and methods, without reading data."""
  grids = grids_of(config)
  check_fields(config)
  check_methods(config, grids, *network.load_network(config, num_classes), None)


def check_fields(config: Any) -> None:
  """Raises what `run` would raise for the config, without weights and data."""
  if processes.count() > 1 and config.workers != executors.HERE:
    raise ValueError(
      f"workers is {config.workers!r} in a run of {processes.count()} processes, which share every "
      f"training; set workers={executors.HERE!r}, or leave out --coordinator"
    )
  recipes.check_run(config)
  recipes.check_sampling(config)
  if not config.methods or len(set(config.methods)) != len(config.methods):
    raise ValueError(f"methods is {tuple(config.methods)}; give at least one, each once")
  if config.backbone.weights == "random" and not config.backbone.preprocessing:
    raise ValueError(
      "backbone.weights is 'random' and backbone.preprocessing is ''; give one of "
      f"{', '.join(map(repr, preprocess.PRESETS))}"
    )
  if config.data.shift:
    choices.check("shift", config.data.shift, shifts.SHIFTS)
    allowed = (
      *examples.shift_of(config).ood_data,
      config.data.train,
    )  # of this one, corrupted copies
    for name in map(data.base_name, config.data.ood):
      choices.check(f"shifted set of {config.data.shift}", name, allowed)
    if config.data.label_map:
      raise ValueError(
        f"data.label_map is {tuple(config.data.label_map)} and data.shift {config.data.shift!r}, "
        "which has label maps of its own; give one of them"
      )
  names = [data.canonical(name) for name in config.data.ood]
  if data.canonical(config.data.train) in names:
    raise ValueError(f"data.ood holds data.train, {config.data.train!r}; name other sets there")
  if len(set(names)) != len(names):
    raise ValueError(f"data.ood is {tuple(config.data.ood)}; name each set once")
  for name in config.data.ood:
    if data.nested(config.data.train, name):
      raise ValueError(
        f"data.ood holds {name!r}, and data.train is {config.data.train!r}: one lies inside the "
        "other, so images that are trained on would be tested on; give folders apart"
      )


def check_methods(
  config: Any,
  grids: Mapping[str, tuple[float, ...]],
  engine: Any,
  pretrained: Any,
  class_names: Sequence[str] | None,
) -> None:
  """Every stage is applied to the network once, so that a bad block fails before anything runs.

  Without class names their weights are not looked at.
  """
  for name, rates in grids.items():
    own, start = network.prepared(name, config, engine, pretrained)
    method = recipes.make_method(config, name, rates[0], own.model.block_names)
    if class_names is not None:
      method = recipes.balanced(config, method, class_names)
    for stage in method:
      trainable_split.make_plan(own.model, start.variables, stage)


def _first_line(config, grids, engine, workdir) -> str:
  number = sum(len(rates) for rates in grids.values())
  return (
    f"{config.name}: {', '.join(grids)} on {config.data.train} at {config.data.image_size} px, "
    f"{number} learning rates and {len(config.seeds)} seeds, on "
    f"{provenance.devices(engine.mesh)}; results go to {workdir}"
  )


def _record(run: trainings.Run, chosen: Mapping[str, Row], command: str) -> compare_record.Record:
  """The record of the run, with the scores on the test sets."""
  config = run.config
  tests_read = run.tests
  tested = many.test_all(run, chosen, executors.of(config, 1))
  rows = []
  for name, result in chosen.items():
    tests = tested[name]
    own = criteria.fields(criteria.of(config))
    rows += [_training_row(row, own, tests[row["key"]]) for row in result["chosen"]]
    rows += [_training_row(row, own) for row in result["tried"] if row["key"] not in tests]
  compare_record.save_images(
    run.workdir, {t.name: t.images for t in tests_read}, {t.name: t.ids for t in tests_read}
  )
  return {
    **fields.header(config, command),
    **provenance.run_facts(run.engine.mesh),
    "config": workdir_lib.as_json(config),
    "backbone": network.backbone_row(config, run.engine.model, run.pretrained),
    "data": {
      "train": run.train.name, "id": run.train.name, "ood": [t.name for t in tests_read[1:]],
      "class_names": list(run.train.class_names), "num_train": len(run.train),
      "train_counts": np.bincount(
        run.train.labels, minlength=len(run.train.class_names)
      ).tolist(),
      "train_indices": run.train_indices if run.train_indices is None
      else run.train_indices.tolist(),
      "num_validation": len(run.validation), "num_test": {t.name: len(t) for t in tests_read},
      "attribution": "; ".join(filter(None, (data.attribution(t.name) for t in tests_read))),
    },
    "methods": [
      _method_row(run, name, result) for name, result in chosen.items()
    ],
    "trainings": rows,
  }  # fmt: skip


def _training_row(
  row: Row, scores: Sequence[str], test: Row | None = None
) -> compare_record.Training:
  """A training in the record; one that was chosen has been tested."""
  names = ("method", "seed", "learning_rate", "seconds", "compile_seconds", "moved", "history",
           "key", *(name for name in scores if name != "validation_loss"))  # fmt: skip
  out = {name: row[name] for name in names} | {"chosen": test is not None}
  out["step"] = _step_row(row["stages"])
  return out | ({} if test is None else {"test": test})


def _step_row(stages: Sequence[Row]) -> compare_record.Step | None:
  """Time and memory of a step of the stage that trains the most by steps; None without one."""
  took = [stage for stage in stages if stage.get("step", {}).get("number")]
  if not took:
    return None
  step = max(took, key=lambda stage: stage["trained_params"])["step"]
  each = 1e3 * step["seconds"] / step["number"]
  return {"milliseconds": round(each, 3), "bytes": step["bytes"]}


def _method_row(run: trainings.Run, name: str, result: Row) -> compare_record.Method:
  best, grid = result["chosen"][0], result["grid"]
  block_names = run.engine.model.block_names
  engine, pretrained = run.network_of(name)
  trained = {block for stage in best["stages"] for block in stage["blocks"]}
  stages = best.get("selection", best["stages"])
  setting, value = "learning_rate", result["learning_rate"]
  edge = choice.at_edge(grid, value)
  if "grid" in stages[-1]:  # the probe searched its strength itself
    setting, value = "l2", stages[-1]["l2"]
    grid = stages[-1]["grid"]
    edge = stages[-1]["grid_edge"]
  names = ("title", "blocks", "trained_params", "solver", "epochs")
  fork = forks.macs(engine.model, pretrained.variables, trained)
  return {
    "name": name, "title": methods.DECLARED[name].title, "setting": setting,
    "learning_rate": value, "grid": grid, "grid_edge": edge,
    "stages": [
      {k: stage[k] for k in names}
      | {"blocks": [b for b in stage["blocks"] if b in (*block_names, trainable_split.HEAD)]}
      for stage in stages
    ],  # of the backbone, not of what a method puts beside it
    "trained_params": max(stage["trained_params"] for stage in stages),
    **({} if fork is None else {"fork_macs": fork}),
    **({"selection": stages[-1]["selection"]} if "selection" in stages[-1] else {}),
  }  # fmt: skip
