"""Searches for the layers to train, and trains what was found beside the other methods.

Every training is a line of the ledger, so a search that was killed goes on, and one search reads
what another has trained. The search sees labelled training images only; the test split is read
once, by the final comparison.
"""

from collections.abc import Sequence
import dataclasses
import os
import pathlib
import sys
import tempfile
from typing import Any, TextIO

import numpy as np

from subtune_jax import data, methods, weights
from subtune_jax.data import dataset, splits
from subtune_jax.report import terminal, words
from subtune_jax.runner import examples, executors, provenance
from subtune_jax.runner import network as network_lib
from subtune_jax.runner import progress as progress_lib
from subtune_jax.runner import workdir as workdir_lib
from subtune_jax.search import certificate, evaluator, greedy, racing, rules, scores
from subtune_jax.search import store as store_lib
from subtune_jax.search import units as units_lib
from subtune_jax.studies import data_table, fields, publish
from subtune_jax.studies.compare import run as compare
from subtune_jax.studies.search import config as search_config
from subtune_jax.studies.search import forecast, fork_time, predicting, rows
from subtune_jax.studies.search import page as search_page
from subtune_jax.studies.search import record as search_record
from subtune_jax.training import loop
from subtune_jax.training import trace as trace_lib

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Search:
  """What every part of a search needs."""

  config: Any
  evaluator: evaluator.Evaluator
  progress: progress_lib.SearchProgress
  races: list[racing.Race]
  fork_ms: dict[str, float]  # by first tuned unit; empty where it was not asked for
  budget: rules.Budget

  @property
  def problem(self) -> evaluator.Problem:
    return self.evaluator.problem

  @property
  def network(self) -> units_lib.Network:
    return self.problem.network


def run(
  config: Any, workdir: str | os.PathLike, *, command: str = "", stream: TextIO | None = None,
  forecasted: bool = True,
) -> Row:  # fmt: skip
  """Runs the searches, or goes on with those that were killed.

  Args:
    config: from `search_config.default()`.
    workdir: where everything is written.
    command: how the run was started, for the report.
    stream: where progress and the tables go; standard output by default.
    forecasted: say first what it will take.

  Returns:
    The record, as written to WORKDIR/results.json.

  Raises:
    ValueError: a config that makes no sense, a workdir of another config, bad weights or data.
  """
  stream = stream or sys.stdout
  problem, engine, pretrained, tables = _look(config)
  workdir, entered = workdir_lib.enter(workdir, config)
  store = store_lib.Store(config.search.store or workdir / "search")
  search = _make_search(config, problem, engine, store, stream, workdir)
  search.progress.line(_first_line(config, problem, engine, workdir))
  search.progress.line(tables)
  if entered or len(store):
    held = words.count(len(store), "training")
    search.progress.line(
      f"the ledger holds {held}; those of these images, weights and settings will not be repeated"
    )
  if forecasted:
    _forecast(search, workdir)
  prediction = None
  if predicting.PREDICTED in config.search.kinds:
    prediction = predicting.predict(
      config, problem, search.evaluator.engine, store.folder, search.progress.line, search.budget
    )
  found = _run_kinds(search, prediction)
  record = _record(search, found, prediction, pretrained, command)
  if record["certificate"]:
    search.progress.line(record["certificate"]["text"])
  search.evaluator.close()
  search.progress.close()
  if config.search.final:
    record["final"] = _run_final(config, workdir, problem, record["chosen"], command, stream)
  workdir_lib.write_json(workdir / fields.RESULTS, record)
  publish.publish(search_page.report(search_record.load(workdir), workdir), workdir, stream)
  return record


def dry_run(config: Any, workdir: str | os.PathLike, *, stream: TextIO | None = None) -> None:
  """Says what `run` would take; trains and writes nothing. Arguments and errors: see `run`."""
  workdir = pathlib.Path(workdir)
  problem, engine, _, tables = _look(config)
  with tempfile.TemporaryDirectory() as scratch:
    own = pathlib.Path(config.search.store or workdir / "search")
    store = store_lib.Store(own if own.is_dir() else scratch)
    search = _make_search(config, problem, engine, store, stream or sys.stdout)
    search.progress.line(_first_line(config, problem, engine, workdir))
    search.progress.line(tables)
    _forecast(search, workdir)
    search.progress.line("dry run, nothing was trained")
    search.evaluator.close()
    search.progress.close()


def _forecast(search: _Search, workdir: pathlib.Path) -> None:
  """Says what the search will take, where that can be timed on this machine."""
  if search.config.workers == executors.HERE:
    forecast.say(search.config, search.evaluator, workdir, search.progress.line)
  else:
    search.progress.line(executors.NO_FORECAST)


def _look(config: Any) -> tuple[evaluator.Problem, loop.Engine, weights.Pretrained, str]:
  """What is searched, and the table of its sets; everything is checked, nothing is written."""
  search_config.check(config)
  train = _load_train(config)
  search_config.make_recipe(config, train.class_names).method(("block",))  # raises early
  tests, notes = examples.load_tests(config, train.class_names) if config.search.final else ((), [])
  engine, pretrained = network_lib.load_network(config, len(train.class_names))
  engine = dataclasses.replace(engine, in_pieces=config.search.in_pieces)
  problem = make_problem(config, train, engine, pretrained)
  if config.search.final:
    final = search_config.final_of(config, problem.network, problem.network.names[:1])
    compare.check(final, len(train.class_names))
  return problem, engine, pretrained, terminal.render(data_table.report((train,), tests, notes))


def _load_train(config: Any) -> dataset.Dataset:
  """All labelled images that the search sees; with one fold, training then validation images."""
  single = config.search.folds == 1
  train = examples.load_split(config, config.data.train, "train" if single else config.search.split)
  indices = examples.train_indices(config, train)
  if indices is not None:
    train = train.subset(indices)
  if not single:
    return train
  validation = examples.load_split(config, config.data.train, "validation")
  return dataset.concatenate([train, validation], "trainval")


def make_problem(
  config: Any, train: dataset.Dataset, engine: loop.Engine, pretrained: weights.Pretrained
) -> evaluator.Problem:
  """The candidates, the folds and the pretrained network of a search."""
  search = config.search
  if search.folds == 1:
    held = len(examples.load_split(config, config.data.train, "validation"))
    rest = np.arange(len(train) - held)
    folds = ((rest, np.arange(len(rest), len(train))),)
  else:
    folds = tuple(splits.fold_indices(train.labels, train.groups, search.folds, search.fold_seed))
  network = search_config.network_of(config, engine.model)
  return evaluator.Problem(
    network, pretrained.variables, pretrained.sha256, train, folds, tuple(search.seeds)
  )


def _make_search(config, problem, engine, store, stream, workdir=None) -> _Search:
  progress = progress_lib.SearchProgress(len(problem.folds) * len(problem.seeds), stream)
  trainer = evaluator.Evaluator(
    problem, search_config.make_recipe(config, problem.train.class_names, problem.network), engine,
    store,
    prefix_bytes=config.search.prefix_bytes, prefix_disk_bytes=config.search.prefix_disk_bytes,
    on_done=progress.done, on_plan=progress.plan, executor=executors.of(config, engine.mesh.size),
    trace=trace_lib.asked(config, workdir, progress.line) if workdir else None,
  )  # fmt: skip
  fork_ms, macs = {}, None
  if config.search.fork_batch:
    batch = config.search.fork_batch
    fork_ms = fork_time.measure(engine.model, problem.network, batch, store.folder)
  if config.search.max_fork_ms:
    macs = fork_time.most_macs(problem.network, fork_ms, config.search.max_fork_ms)
  return _Search(
    config, trainer, progress, [], fork_ms, search_config.make_budget(config, macs)
  )  # fmt: skip


def _first_line(config, problem, engine, workdir) -> str:
  n, search = len(problem.train), config.search
  folds = f"{search.folds} folds" if search.folds > 1 else "held-out validation images"
  return (
    f"{config.name}: {', '.join(search.kinds)} over {len(problem.network.names)} units of "
    f"{config.backbone.name}, {n} images of {problem.train.name} at {config.data.image_size} px, "
    f"{folds}, {len(problem.seeds)} seeds, {search.epochs} epochs, on "
    f"{provenance.devices(engine.mesh)}; results go to {workdir}"
  )


def _run_kinds(search: _Search, prediction: predicting.Prediction | None) -> list[Row]:
  """Every kind of search asked for, as the record has it."""
  found = []
  if search.config.search.references and search_config.trains(search.config):
    search.progress.what = progress_lib.REFERENCES
    search.evaluator.evaluate(search.network.references)
  for kind in search.config.search.kinds:
    search.progress.what = kind
    if kind == "greedy":
      found += _greedy(search)
      continue
    if kind == predicting.PREDICTED:
      found.append(_verify(search, prediction))
      continue
    sets = {
      "profile": greedy.profile, "pairs": greedy.pairs,
      "uniform": lambda network: network.uniform(),
      "windows2": lambda network: greedy.windows(network, 2),
      "windows3": lambda network: greedy.windows(network, 3),
    }[kind](search.network)  # fmt: skip
    search.evaluator.evaluate(sets)
    width = {"windows2": 2, "windows3": 3}.get(kind)
    found.append({"kind": "windows", "width": width} if width else {"kind": kind})
  return found


def _verify(search: _Search, prediction: predicting.Prediction) -> Row:
  """Races the sets of the highest predicted accuracy, if that is asked for."""
  options = search.config.search
  sets = prediction.proposed(search.problem, search.budget, options.propose)
  if sets:
    _race(search)(sets, None)
  return {"kind": predicting.PREDICTED, "proposed": [list(units) for units in sets]}


def _pick(search: _Search) -> greedy.Pick:
  """How the best of a step is found: exactly, or by a race."""
  if search.config.search.racing:
    return _race(search)
  return greedy.exact(search.network, search.evaluator.evaluate)


def _race(search: _Search) -> greedy.Pick:
  """Finds the best of some sets by a race."""

  def pick(sets: Sequence[scores.Units], incumbent: scores.Score | None) -> greedy.Picked:
    del incumbent
    race = racing.race(
      sets, search.evaluator.cells, len(search.problem.folds),
      regret=search.config.search.regret, overlap=search.problem.overlap,
      known=list(tried_scores(search.evaluator).values()),
    )  # fmt: skip
    search.races.append(race)
    return greedy.Picked(race.scores[race.winner], race.scores)

  return pick


def _greedy(search: _Search) -> list[Row]:
  """Greedy selection from each start asked for."""
  options = search.config.search
  rule = search_config.make_rule(search.config, search.problem.overlap)
  before, budget = search.evaluator.seconds, search.budget
  common = {"budget": budget, "clock": lambda: search.evaluator.seconds - before}
  paths = []
  if options.start in ("none", "both"):
    baseline = search.evaluator.evaluate([()])[()] if options.baseline == "head" else None
    search.progress.what = "greedy forward"
    paths.append(greedy.forward(search.network, _pick(search), rule, baseline=baseline, **common))
  if options.start in ("all", "both"):
    search.progress.what = "greedy backward"
    whole = search.network.everything
    everything = search.evaluator.evaluate([whole])[whole]
    paths.append(greedy.backward(search.network, _pick(search), rule, everything, **common))
  return [_path_row(path, rule, budget, options.racing) for path in paths]


def _path_row(path: greedy.Path, rule, budget, racing_on: bool) -> search_record.Greedy:
  steps = [
    dataclasses.asdict(step)
    | {"base": list(step.base), "chosen": list(step.chosen)}
    | {"tried": [{"units": list(units), "mean": mean} for units, mean in step.tried]}
    for step in path.steps
  ]
  return {
    "kind": "greedy", "start": path.start, "rule": dataclasses.asdict(rule),
    "budget": dataclasses.asdict(budget), "racing": racing_on, "steps": steps,
    "chosen": list(path.chosen), "score": path.score.mean if path.score else None,
    "stopped": path.stopped,
  }  # fmt: skip


def tried_scores(trainer: evaluator.Evaluator) -> dict[scores.Units, scores.Score]:
  """The score of every set that was asked for, with the folds that were trained.

  In the order of the network: trainings end in any order, and draws from posteriors follow that of
  the scores.
  """
  folds = range(len(trainer.problem.folds))
  cells: dict[scores.Units, set[int]] = {}
  for row in trainer.used.values():
    cells.setdefault(tuple(row["units"]), set()).add(row["fold"])
  names = trainer.problem.network.names
  order = sorted(cells, key=lambda units: (len(units), [names.index(unit) for unit in units]))
  return {
    units: scores.Score(
      units,
      tuple(trainer.cells([units], f)[0] if f in cells[units] else None for f in folds),
    )
    for units in order
  }


def _choose(search: _Search, found: Sequence[Row], prediction, tried) -> tuple[scores.Units, str]:
  """The set that the run stands for: greedy's, or the best of those that were tried.

  Where nothing was trained, that which was predicted.
  """
  if not tried:
    return tuple(prediction.row["chosen"]), "predicted, nothing was trained"
  paths = [row for row in found if row["kind"] == "greedy"]
  if paths:
    ends = {tuple(row["chosen"]): row for row in paths if row["score"] is not None}
    if not ends:
      return (), "greedy: no unit earned its place"
    units = greedy.best(search.network, [tried[units] for units in ends]).units
    words = {"none": "forward", "all": "backward"}[ends[units]["start"]]
    return units, f"greedy {words}, rule {ends[units]['rule']['kind']!r}"
  whole = search.network.references[-1]
  candidates = [s for s in tried.values() if s.units and s.complete and s.units != whole]
  candidates = candidates or [tried[whole]]
  within = [s for s in candidates if search.budget.allows(search.network, s.units)]
  if not within:
    return (), "the budget: no set that was tried is within it"
  return greedy.best(search.network, within).units, "the highest mean"


def _record(
  search: _Search, found: list[Row], prediction: predicting.Prediction | None,
  pretrained: weights.Pretrained, command: str,
) -> search_record.Record:  # fmt: skip
  config, problem, network = search.config, search.problem, search.network
  tried = tried_scores(search.evaluator)
  chosen, why = _choose(search, found, prediction, tried)
  sound = [score for score in tried.values() if not score.diverged]
  overlap, trainer = problem.overlap, search.evaluator
  sure = None
  if chosen in tried:
    sure = certificate.certify(sound, chosen, overlap=overlap, level=config.search.level)
  train, engine = problem.train, search.evaluator.engine
  return {
    **fields.header(config, command), **provenance.run_facts(engine.mesh),
    "config": workdir_lib.as_json(config),
    "backbone": network_lib.backbone_row(config, engine.model, pretrained),
    "data": {
      "train": train.name, "split": train.split, "class_names": list(train.class_names),
      "num_examples": len(train), "num_folds": len(problem.folds),
      "fold_sizes": [len(held) for _, held in problem.folds],
      "fold_seed": config.search.fold_seed, "seeds": list(problem.seeds),
      "attribution": data.attribution(train.name),
    },
    "units": [
      {"name": unit.name, "blocks": list(unit.blocks), "params": network.unit_params(unit.name),
       "macs": network.unit_macs(unit.name)} for unit in network.units.values()
    ],
    "head_params": network.head_params, "head_macs": network.head_macs,
    "sets": [
      rows.set_row(network, overlap, score, trainer.rows(units)) for units, score in tried.items()
    ],
    "searches": found, "chosen": list(chosen), "chosen_by": why,
    "lora": rows.lora_row(network, chosen),
    "certificate": rows.certificate_row(sure) if sure else None,
    "fork_ms": search.fork_ms,
    "predicted": prediction.row if prediction else None,
    "cost": rows.cost_row(config, trainer, search.races),
    "final": None,
  }  # fmt: skip


def _run_final(
  config, workdir: pathlib.Path, problem, chosen, command, stream
) -> search_record.Final:
  """The chosen set retrained on all training images, beside the other methods; reads the test."""
  final = search_config.final_of(config, problem.network, tuple(chosen))
  if not problem.network.blocks(tuple(chosen)):
    name = methods.DECLARED[search_config.searched(config)].title
    stream.write(f"no unit was chosen, so {name} is linear probing in the final comparison\n")
  workdir /= search_config.FINAL
  compare.run(final, workdir, command=command, stream=stream, changeable=False)
  return {"folder": search_config.FINAL}
