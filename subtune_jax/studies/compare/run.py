"""Compares methods on one data set and its shifted siblings.

For each method: a training per learning rate on the first seed, the rate with the best validation
accuracy, a training per further seed at that rate; then the networks see the test sets, once. With
`data.retrain` the chosen setting is trained anew on training and validation images, for each seed.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import os
import pathlib
import shutil
import sys
from typing import Any, TextIO

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import data, files, masks, methods, models, weights
from subtune_jax.data import choices, classes, dataset, preprocess, shifts, splits
from subtune_jax.models import compile_cache, heads
from subtune_jax.report import document, explosion, terminal, words
from subtune_jax.studies import data_table, provenance, publish, writers
from subtune_jax.studies import progress as progress_lib
from subtune_jax.studies import workdir as workdir_lib
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.compare import page as compare_page
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import summary as summary_lib
from subtune_jax.training import (
  checkpoint,
  evaluate,
  export,
  loop,
  resume,
  stage_runner,
  trainable_split,
)
from subtune_jax.training import ledger as ledger_lib
from subtune_jax.training import step as step_lib

Row = dict[str, Any]
_NOT_ALLOWED = np.float32(-1e30)  # a logit; finite, as the report's reader asks


# watch(key) -> what `fit` calls after every epoch of the training of that key.
Watch = Callable[[str], loop.OnVariables]
# make(config, method, learning rate, block names) -> stages.
Make = Callable[[Any, str, float, Any], methods.Method]


@dataclasses.dataclass
class Run:
  """What every part of the run needs."""

  config: Any
  workdir: pathlib.Path
  train: data.Dataset
  validation: data.Dataset
  trainval: data.Dataset | None  # where methods are trained again after the choices
  tests: tuple[data.Dataset, ...]  # in the head's classes; read after the choices
  train_indices: np.ndarray | None  # of the training split, where only some of it is used
  engine: loop.Engine
  pretrained: weights.Pretrained
  ledger: ledger_lib.Ledger
  rows: dict[str, Row]
  writer: writers.MetricWriter
  progress: progress_lib.Progress
  watch: Watch | None = None
  make: Make = compare_config.make_method

  def network_of(self, name: str) -> tuple[loop.Engine, weights.Pretrained]:
    """The network that a method trains: the run's, or what the method makes of it."""
    return prepared(name, self.engine, self.pretrained)

  @functools.cached_property
  def network(self) -> str:
    """Digest of the variables that trainings start from; of the head only where it is kept."""
    variables, head = self.pretrained.variables, self.config.backbone.keep_head
    return export.backbone_digest(variables, head=head)

  @functools.cached_property
  def inputs(self) -> str:
    """Digest of the images and variables, which a workdir's config names but does not hold."""
    sets = (self.train, self.validation, self.trainval)
    return ledger_lib.key_of({"data": [s and s.fingerprint() for s in sets], "of": self.network})

  def resuming(self) -> str:
    """What an earlier start has left of this run."""
    of_these = [row.get("inputs", self.inputs) == self.inputs for row in self.rows.values()]
    known, others = sum(of_these), len(of_these) - sum(of_these)
    text = f"{words.count(known, 'training')} {words.verb(known)} finished and will not be repeated"
    if others:
      text += f"; {others} more in the ledger {words.verb(others)} of other images or weights"
    return f"resuming: {text}"


def run(
  config: Any, workdir: str | os.PathLike, *, command: str = "", stream: TextIO | None = None
) -> Row:
  """Runs a comparison, or goes on with one that was killed.

  Args:
    config: from `compare_config.default()`.
    workdir: where everything is written.
    command: how the run was started, for the report.
    stream: where progress and the final table go; standard output by default.

  Returns:
    The record, as written to WORKDIR/results.json.

  Raises:
    ValueError: a config that makes no sense, a workdir of another config, bad weights or data.
  """
  state = start(config, workdir, stream or sys.stdout)
  chosen = train_all(state)
  return finish(state, chosen, command)


def start(config: Any, workdir: str | os.PathLike, stream: TextIO) -> Run:
  """Checks everything and enters the workdir; nothing is trained yet. Errors: see `run`."""
  grids = grids_of(config)
  _check(config)
  train, validation, trainval, train_indices = _load_data(config)
  tests, notes = load_tests(config, train.class_names)
  engine, pretrained = load_network(config, len(train.class_names))
  _check_methods(config, grids, engine, pretrained)
  workdir, entered = workdir_lib.enter(workdir, config)
  ledger = ledger_lib.Ledger(workdir / "ledger.jsonl")
  rows = ledger.rows()
  blocks = engine.model.block_names
  progress = progress_lib.Progress(_total_epochs(config, grids, blocks), stream)
  progress.line(_first_line(config, grids, engine, workdir))
  training = (trainval,) if trainval else ()
  progress.line(terminal.render(data_table.report((train, validation, *training), tests, notes)))
  writer = writers.MetricWriter(workdir, tensorboard=config.tensorboard)
  state = Run(
    config, workdir, train, validation, trainval, tests, train_indices, engine, pretrained, ledger,
    rows, writer, progress,
  )  # fmt: skip
  if entered:
    progress.line(state.resuming())
  examples = {"labels": validation.labels, "groups": validation.groups, "ids": validation.ids}
  files.write_npz(workdir / "logits/validation/examples.npz", examples)
  return state


def train_all(run: Run) -> dict[str, Row]:
  """Method -> {"name", "grid", "chosen", "tried", "learning_rate"}: every training of the run."""
  return {name: _train_method(run, name, rates) for name, rates in grids_of(run.config).items()}


def finish(
  run: Run,
  chosen: Mapping[str, Row],
  command: str,
  *,
  more: Callable[[], Mapping[str, Any]] = dict,
  report: Callable[
    [compare_record.Run, summary_lib.Summary], document.Document
  ] = compare_page.report,
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
  run.writer.close()
  workdir_lib.write_json(run.workdir / compare_record.RESULTS, record)
  written = compare_record.load(run.workdir)
  made = report(written, summary_lib.summarize(written))
  run.progress.close()
  publish.publish(made, run.workdir, run.progress.stream)
  return record


def grids_of(config: Any) -> dict[str, tuple[float, ...]]:
  """Method -> learning rates tried."""
  return {name: compare_config.learning_rates(config, name) for name in config.methods}


def check(config: Any, num_classes: int = 2) -> None:
  """Raises what `run` would raise for the config, weights and methods, without reading data."""
  grids = grids_of(config)
  _check(config)
  _check_methods(config, grids, *load_network(config, num_classes))


def _check(config: Any) -> None:
  compare_config.check_run(config)
  if not config.methods or len(set(config.methods)) != len(config.methods):
    raise ValueError(f"methods is {tuple(config.methods)}; give at least one, each once")
  if config.backbone.weights == "random" and not config.backbone.preprocessing:
    raise ValueError(
      "backbone.weights is 'random' and backbone.preprocessing is ''; give one of "
      f"{', '.join(map(repr, preprocess.PRESETS))}"
    )
  if config.data.shift:
    choices.check("shift", config.data.shift, shifts.SHIFTS)
    allowed = (*_shift(config).ood_data, config.data.train)  # of this one, corrupted copies
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


def _load_data(config: Any):
  """(train, validation and trainval split, indices of the images that are used of the first)."""
  train, validation = (load_split(config, config.data.train, s) for s in ("train", "validation"))
  trainval = load_split(config, config.data.train, "trainval") if config.data.retrain else None
  indices = train_indices(config, train)
  if indices is not None:
    if trainval:  # train comes first in it
      rest = np.arange(len(train), len(trainval))
      trainval = trainval.subset(np.concatenate([indices, rest]))
    train = train.subset(indices)
  return train, validation, trainval, indices


def train_indices(config: Any, train: data.Dataset) -> np.ndarray | None:
  """Sorted positions of the nested subset of `data.num_train` images; None for all."""
  number = config.data.num_train
  if not 0 <= number <= len(train):
    raise ValueError(
      f"data.num_train is {number}; {train.name} has {len(train)} training images: give 1 to "
      f"{len(train)}, or 0 for all"
    )
  if not number:
    return None
  return splits.nested_subsets(train.labels, [number], config.data.subset_seed, train.groups)[0]


def load_network(config: Any, num_classes: int) -> tuple[loop.Engine, weights.Pretrained]:
  """(engine, pretrained weights with a fresh head); keeps compiled programs from here on."""
  compile_cache.enable()
  model = models.create(
    config.backbone.name,
    num_classes=num_classes,
    dtype=jnp.dtype(config.backbone.dtype),
    image_size=config.data.image_size,
  )
  preprocessing = config.backbone.preprocessing or None
  if config.backbone.weights == "random":
    pretrained = weights.random_weights(model, preprocessing=preprocessing)
  else:
    pretrained = weights.load_pretrained(
      config.backbone.weights, model, preprocessing=preprocessing
    )
  if config.backbone.keep_head and pretrained.not_loaded:
    raise ValueError(
      f"backbone.keep_head is True, but {config.backbone.weights} has no head of {num_classes} "
      f"classes (not loaded: {', '.join(pretrained.not_loaded)}); set it to False"
    )
  augmentation = None
  if config.augment.kind != "none":
    options = config.augment.to_dict()
    augmentation = step_lib.Augmentation(**options | {"color": tuple(options["color"])})
  engine = loop.Engine(
    model, pretrained.preprocessing, batch_size=config.batch_size, augmentation=augmentation
  )
  return engine, pretrained


def prepared(
  name: str, engine: loop.Engine, pretrained: weights.Pretrained
) -> tuple[loop.Engine, weights.Pretrained]:
  """The network and its variables as a method's declaration changes them, if it does."""
  declared = methods.DECLARED.get(name)
  if declared is None or declared.prepare is None:
    return engine, pretrained
  model, variables = declared.prepare(engine.model, pretrained.variables, jax.random.key(0))
  return (
    dataclasses.replace(engine, model=model),
    pretrained._replace(variables=variables),
  )


def load_split(config: Any, name: str, split: str) -> data.Dataset:
  """A split of a data set, resized as the config says."""
  size, interpolation = config.data.image_size, config.data.interpolation
  loaded = data.load(name, split, size, interpolation=interpolation)
  flip = config.data.flip_labels and name == config.data.train
  return dataset.flip_labels(loaded) if flip else loaded


def _shift(config: Any) -> shifts.Shift:
  return shifts.SHIFTS[config.data.shift]


def _check_methods(config, grids, engine, pretrained) -> None:
  """Every stage is applied to the network once, so that a bad block fails before anything runs."""
  for name, rates in grids.items():
    own, start = prepared(name, engine, pretrained)
    for stage in compare_config.make_method(config, name, rates[0], own.model.block_names):
      trainable_split.make_plan(own.model, start.variables, stage)


def _epochs(method: methods.Method) -> int:
  return sum(getattr(stage.solver, "epochs", 1) for stage in method)


def _is_deterministic(method: methods.Method) -> bool:
  """Whether no stage depends on the seed."""
  return all(isinstance(stage.solver, methods.LBFGS) for stage in method)


def _total_epochs(config: Any, grids: Mapping[str, tuple[float, ...]], blocks: Any) -> int:
  total = 0
  for name, rates in grids.items():
    method = compare_config.make_method(config, name, rates[0], blocks)
    seeds = 1 if _is_deterministic(method) else len(config.seeds)
    tried = len(_seeds_tried(config, method))
    more = seeds if config.data.retrain else seeds - tried
    total += _epochs(method) * (len(rates) * tried + more)
  return total


def grid_seeds(config: Any) -> tuple[int, ...]:
  """Seeds on which every learning rate is tried."""
  seeds = tuple(config.seeds)
  return seeds if config.grid_seeds == "all" else seeds[:1]


def _seeds_tried(config: Any, method: methods.Method) -> tuple[int, ...]:
  """Of a method: one where all give the same."""
  return grid_seeds(config)[:1] if _is_deterministic(method) else grid_seeds(config)


def _first_line(config, grids, engine, workdir) -> str:
  trainings = sum(len(rates) for rates in grids.values())
  return (
    f"{config.name}: {', '.join(grids)} on {config.data.train} at {config.data.image_size} px, "
    f"{trainings} learning rates and {len(config.seeds)} seeds, on "
    f"{provenance.devices(engine.mesh)}; results go to {workdir}"
  )


def _train_method(run: Run, name: str, rates: tuple[float, ...]) -> Row:
  """Grid, choice on validation, the seeds that are left at the choice."""
  seeds = tuple(run.config.seeds)
  method = _make(run, name, rates[0])
  tried = _seeds_tried(run.config, method)
  trained = {rate: [train_once(run, name, rate, seed) for seed in tried] for rate in rates}
  grid = [grid_row(rows) for rows in trained.values()]
  ranked = best_first(grid)
  if not ranked:
    raise ValueError(f"{name}: every learning rate of {rates} diverged; lower them")
  rate = ranked[0]
  rows = [_retrain(run, row, row["seed"]) if run.trainval else row for row in trained[rate]]
  if _is_deterministic(method):
    chosen = [rows[0] | {"seed": seed} for seed in seeds]
  else:
    for seed in seeds[len(tried) :]:
      again = _retrain(run, rows[0], seed) if run.trainval else train_once(run, name, rate, seed)
      rows.append(again)
    chosen = rows
    bad = [row["seed"] for row in chosen if row["validation_accuracy"] is None]
    if bad:
      raise ValueError(f"{name}: learning rate {rate} diverged with seed {bad[0]}; lower the rates")
  tried_rows = [row for rows in trained.values() for row in rows]
  return {
    "name": name, "grid": grid, "chosen": chosen, "tried": tried_rows, "learning_rate": rate,
  }  # fmt: skip


def grid_row(rows: list[Row]) -> Row:
  """A learning rate's means over its seeds; None where a training diverged."""
  means = {
    key: None if any(row[key] is None for row in rows) else float(np.mean([r[key] for r in rows]))
    for key in ("validation_accuracy", "validation_loss")
  }
  return {"learning_rate": rows[0]["learning_rate"], **means}


def best_first(grid: list[Row]) -> list[float]:
  """The learning rates of a grid by validation accuracy, then loss; none that diverged."""
  finite = [row for row in grid if row["validation_accuracy"] is not None]
  finite.sort(key=lambda row: (-row["validation_accuracy"], row["validation_loss"]))
  return [row["learning_rate"] for row in finite]


def at_edge(grid: list[Row], rate: float) -> bool:
  """Whether a rate is the first or last of several."""
  return len(grid) > 1 and rate in (grid[0]["learning_rate"], grid[-1]["learning_rate"])


def train_with_probe_steps(run: Run, result: Row, steps: int) -> Row:
  """LP-FT at its chosen rate and strength on the first seed, from a probe of so many steps."""
  first = result["chosen"][0]
  probe, *rest = _fixed(
    _make(run, result["name"], result["learning_rate"]), [s.get("l2") for s in first["stages"]]
  )
  solver = dataclasses.replace(probe.solver, max_steps=steps)
  method = (dataclasses.replace(probe, solver=solver), *rest)
  what = f"{result['name']} lr={result['learning_rate']:g} from {steps} steps of the probe"
  return _train_method_on(
    run, result["name"], result["learning_rate"], first["seed"], method,
    (run.train, run.validation), what,
  )  # fmt: skip


def _make(run: Run, name: str, rate: float) -> methods.Method:
  return run.make(run.config, name, rate, run.network_of(name)[0].model.block_names)


def _retrain(run: Run, best: Row, seed: int) -> Row:
  """The chosen setting on all labelled images; the score that it was chosen by stays with it."""
  strengths = [stage.get("l2") for stage in best["stages"]]
  row = train_once(run, best["method"], best["learning_rate"], seed, strengths=strengths)
  scores = ("validation_accuracy", "validation_loss") if row["history"] else ()
  return row | {name: best[name] for name in scores} | {"selection": best["stages"]}


def _fixed(method: methods.Method, strengths: list[float | None]) -> methods.Method:
  """The method with each probe's strength fixed."""
  return tuple(
    stage if l2 is None
    else dataclasses.replace(stage, solver=dataclasses.replace(stage.solver, l2=(l2,)))
    for stage, l2 in zip(method, strengths, strict=True)
  )  # fmt: skip


def _describe(
  run: Run, name: str, method: methods.Method, seed: int, train: Any, validation: Any
) -> Row:
  """Everything that the result of a training depends on."""
  config = run.config
  used = {"data", "backbone", "augment", "batch_size"}
  described = {k: v for k, v in workdir_lib.as_json(config).items() if k in used}
  described["data"].pop("label_map", None)  # of test sets
  return {
    "config": described,
    "train": train.fingerprint(),
    "validation": validation.fingerprint() if validation else None,
    "weights": run.pretrained.sha256,
    "variables": run.network,
    "preprocessing": ledger_lib.plain(run.engine.preprocessing),
    "head": "kept" if config.backbone.keep_head else heads.DRAW,
    "method": name,
    "stages": [ledger_lib.plain(stage) for stage in method],
    "seed": seed,
  }


def train_once(
  run: Run, name: str, rate: float, seed: int, strengths: list[float | None] | None = None
) -> Row:
  """One training: from the ledger, from its checkpoint, or from the pretrained weights.

  With the strengths of its probes given it is trained on `run.trainval`.
  """
  method = _make(run, name, rate)
  sets = (run.train, run.validation)
  what = f"{name} lr={rate:g} seed={seed}" if rate else name
  if strengths:
    method, sets = _fixed(method, strengths), (run.trainval, None)
    what += " on all labels"
  return _train_method_on(run, name, rate, seed, method, sets, what)


def _train_method_on(
  run: Run, name: str, rate: float, seed: int, method: methods.Method, sets: Any, what: str
) -> Row:
  """One training of a method whose stages are fixed; `sets` are training and validation set."""
  key = ledger_lib.key_of(_describe(run, name, method, seed, *sets))
  if key in run.rows:
    run.progress.skip(_epochs(method))
    return run.rows[key]
  checkpoints = checkpoint.Checkpoints(run.workdir / "checkpoints" / key)
  saver = resume.Saver(
    checkpoints, key, every_seconds=run.config.checkpoint_seconds,
    last_good=run.config.resume == "last_good",
  )  # fmt: skip
  row = {"key": key, "method": name, "learning_rate": rate, "seed": seed, "inputs": run.inputs}
  row |= _fit(run, name, method, seed, saver, what, key, *sets)
  run.ledger.append(row)
  run.rows[key] = row
  checkpoints.clear()
  outcome = "done" if row["history"] else "diverged"
  if row["validation_accuracy"] is not None:
    outcome = f"validation {row['validation_accuracy']:.3f}"
  exploded = explosion.explosion(row["history"], row["moved"], run.engine.model.num_classes)
  outcome += f" (exploded: {exploded})" if exploded else ""
  waits = [epoch["data_wait"] for epoch in row["history"] if "data_wait" in epoch]
  waited = f", {100 * np.mean(waits):.0f} % of the steps' time waiting for data" if waits else ""
  run.progress.line(
    f"{what}: {outcome}, {row['seconds']:.1f} s + {row['compile_seconds']:.1f} s compiling{waited}"
  )
  return row


def _fit(run: Run, name, method, seed, saver, what, key, train, validation) -> Row:
  """The figures of one training; its tuned leaves go to WORKDIR/tasks/<key>."""
  engine, pretrained = run.network_of(name)
  variables = pretrained.variables
  if not run.config.backbone.keep_head:
    variables = heads.init_head(engine.model, variables, seed, pretrained.sha256)
  steps = iter(range(1, 1 << 30))

  def on_epoch(row, logits):
    path = run.workdir / f"logits/validation/{key}/{row['stage']}-{row['epoch']}.npz"
    if logits is not None:
      files.write_npz(path, {"logits": np.asarray(logits, np.float32)})
    run.writer.write(next(steps), what.replace(" ", "/"), row)
    run.progress.epoch(what, row)

  try:
    result = loop.fit(
      engine, variables, method, train, validation, seed=seed, on_epoch=on_epoch,
      saver=saver, on_resume=lambda text: run.progress.line(f"{what}: {text}"),
      on_variables=run.watch(key) if run.watch else None,
    )  # fmt: skip
  except stage_runner.NonFiniteLossError as e:
    logging.warning("%s: %s", what, e)
    run.progress.line(f"{what}: {e}")
    return {"validation_accuracy": None, "validation_loss": None, "history": [], "stages": [],
            "seconds": 0.0, "compile_seconds": 0.0, "moved": None}  # fmt: skip
  note = {"backbone": run.config.backbone.weights, "class_names": list(run.train.class_names)}
  export.save_task(
    run.workdir / "tasks" / key, result.variables, result.touched, pretrained.variables, note
  )
  last = result.history[-1]
  return {
    "validation_accuracy": last["validation_accuracy"],
    "validation_loss": last["validation_loss"],
    "history": result.history, "stages": result.stages, "seconds": round(result.seconds, 3),
    "compile_seconds": round(result.compile_seconds, 3), "moved": result.moved,
  }  # fmt: skip


def load_tests(
  config: Any, class_names: tuple[str, ...]
) -> tuple[tuple[data.Dataset, ...], list[str]]:
  """The test sets in the head's classes, that of `data.train` first.

  A further set is read whole, unless it gives splits or holds the images of `data.train`.

  Args:
    config: of a comparison, or of anything with its section `data`.
    class_names: of the head.

  Returns:
    The sets, and what to say of how their classes were matched.

  Raises:
    ValueError: a set has a class that the head lacks and `data.label_map` does not name, or the map
      names one that no set has.
  """
  for name in config.data.ood:  # all, before any of them is read
    data.require(name)
  tests, notes = [load_split(config, config.data.train, "test")], []
  trained = _images_of(config.data.train)
  others = [
    load_split(config, name, "test" if _images_of(name) == trained else data.tested_split(name))
    for name in config.data.ood
  ]
  named = list(zip(config.data.ood, others, strict=True))
  matched = [test for name, test in named if _images_of(name) != trained]
  pairs = classes.parse(config.data.label_map, class_names, matched)
  for name, test in named:
    base = data.base_name(name)
    if config.data.shift and base != config.data.train:
      test = _shift(config).map_labels(base, test, class_names)
    elif _images_of(name) != trained:
      test, own = classes.by_name(test, class_names, pairs)
      notes += own
    _class_mask(config, test, len(class_names))
    tests.append(test)
  names = [test.name for test in tests]
  if len(set(names)) < len(names):
    raise ValueError(f"test sets have one name: {', '.join(names)}; give each loader's set its own")
  return tuple(tests), notes


def _images_of(name: str) -> str:
  """The data set whose images a set holds, as they are or corrupted."""
  return data.base_name(data.canonical(name))


def masked(config: Any, test: data.Dataset, logits: np.ndarray) -> np.ndarray:
  """The logits, with classes that the benchmark does not allow on this set out of reach."""
  mask = _class_mask(config, test, logits.shape[-1])
  return logits if mask is None else np.where(mask, logits, _NOT_ALLOWED)


def _class_mask(config: Any, test: data.Dataset, num_classes: int) -> np.ndarray | None:
  base = data.base_name(test.name)
  if not config.data.shift or base == config.data.train:
    return None
  return _shift(config).class_mask(base, test.labels, num_classes)


def _test(run: Run, name: str, rows: list[Row]) -> dict[str, Any]:
  """Logits of every chosen training of a method on every test set, written and scored."""
  tests: dict[str, Any] = {}
  engine, pretrained = run.network_of(name)
  for row in rows:
    key = row["key"]
    if key in tests:
      continue
    variables, _ = export.load_task(run.workdir / "tasks" / key, pretrained.variables)
    tests[key] = {}
    for test in run.tests:
      try:
        logits = engine.predict(variables, test.images)
      except stage_runner.NonFiniteLossError as e:
        raise stage_runner.NonFiniteLossError(
          f"{name}, learning rate {row['learning_rate']:g}, seed {row['seed']}, on {test.name}: {e}"
        ) from e
      logits = masked(run.config, test, logits)
      path = f"logits/{name}-seed{row['seed']}-{test.name.replace('/', '-')}.npz"
      arrays = {"labels": test.labels, "groups": test.groups, "ids": test.ids}
      files.write_npz(run.workdir / path, {"logits": logits, **arrays})
      tests[key][test.name] = {
        "accuracy": evaluate.accuracy(logits, test.labels),
        "loss": evaluate.cross_entropy(logits, test.labels),
        "logits": path,
      }
  return tests


def _record(run: Run, chosen: Mapping[str, Row], command: str) -> Row:
  """The record of the run, with the scores on the test sets."""
  config = run.config
  tests_read = run.tests
  trainings = []
  keep = set()
  for name, result in chosen.items():
    tests = _test(run, name, result["chosen"])
    keep |= set(tests)
    trainings += [_training_row(row, True, tests[row["key"]]) for row in result["chosen"]]
    trainings += [_training_row(row, False) for row in result["tried"] if row["key"] not in tests]
  for folder in (run.workdir / "tasks").iterdir():
    if folder.name not in keep:  # learning rates that were not chosen
      shutil.rmtree(folder)
  compare_record.save_images(
    run.workdir, {t.name: t.images for t in tests_read}, {t.name: t.ids for t in tests_read}
  )
  return {
    "name": config.name,
    "title": config.title,
    "command": command,
    **provenance.run_facts(run.engine.mesh),
    "config": workdir_lib.as_json(config),
    "backbone": backbone_row(config, run.engine.model, run.pretrained),
    "data": {
      "train": run.train.name, "id": run.train.name, "ood": [t.name for t in tests_read[1:]],
      "class_names": list(run.train.class_names), "num_train": len(run.train),
      "train_indices": run.train_indices if run.train_indices is None
      else run.train_indices.tolist(),
      "num_validation": len(run.validation), "num_test": {t.name: len(t) for t in tests_read},
      "attribution": "; ".join(filter(None, (data.attribution(t.name) for t in tests_read))),
    },
    "methods": [
      _method_row(name, result, run.engine.model.block_names) for name, result in chosen.items()
    ],
    "trainings": trainings,
  }  # fmt: skip


def _training_row(row: Row, chosen: bool, test: Row | None = None) -> Row:
  names = ("method", "seed", "learning_rate", "seconds", "compile_seconds", "validation_accuracy",
           "moved", "history", "key")  # fmt: skip
  out = {name: row[name] for name in names} | {"chosen": chosen}
  return out | ({"test": test} if chosen else {})


def _method_row(name: str, result: Row, block_names: Sequence[str]) -> Row:
  best, grid = result["chosen"][0], result["grid"]
  stages = best.get("selection", best["stages"])
  setting, value = "learning_rate", result["learning_rate"]
  edge = at_edge(grid, value)
  if "grid" in stages[-1]:  # the probe searched its strength itself
    setting, value = "l2", stages[-1]["l2"]
    grid = stages[-1]["grid"]
    edge = stages[-1]["grid_edge"]
  names = ("title", "blocks", "trained_params", "solver", "epochs")
  return {
    "name": name, "title": methods.DECLARED[name].title, "setting": setting,
    "learning_rate": value, "grid": grid, "grid_edge": edge,
    "stages": [
      {k: stage[k] for k in names}
      | {"blocks": [b for b in stage["blocks"] if b in (*block_names, trainable_split.HEAD)]}
      for stage in stages
    ],  # of the backbone, not of what a method puts beside it
    "trained_params": max(stage["trained_params"] for stage in stages),
  }  # fmt: skip


def backbone_row(config: Any, model: Any, pretrained: weights.Pretrained) -> Row:
  """What a record says of the network."""
  params = pretrained.variables["params"]
  counts = dict.fromkeys((*model.block_names, trainable_split.HEAD), 0)
  for path, leaf in zip(masks.paths(params), jax.tree.leaves(params), strict=True):
    counts[trainable_split.unit_of(path, tuple(counts))] += int(np.size(leaf))
  head = counts.pop(trainable_split.HEAD)
  return {
    "name": config.backbone.name, "weights": config.backbone.weights,
    "sha256": pretrained.sha256, "image_size": config.data.image_size,
    "block_names": list(model.block_names), "block_params": counts, "head_params": head,
    "num_params": sum(counts.values()) + head,
  }  # fmt: skip
