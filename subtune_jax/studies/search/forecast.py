"""What a search and its final comparison will take, before either is run."""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np

from subtune_jax.report import words
from subtune_jax.search import cost, evaluator, greedy, scores
from subtune_jax.search import units as units_lib
from subtune_jax.studies.compare import run as compare
from subtune_jax.studies.search import config as search_config
from subtune_jax.training import prefix as prefix_lib
from subtune_jax.training import stage_cost, timing

_MEASURED = 4  # units, evenly spaced in the network; the others lie between them


@dataclasses.dataclass(frozen=True)
class Forecast:
  """What is left of a search.

  Attributes:
    trainings: their number; at most, where `bound`.
    epochs: of them all.
    seconds: without compiling.
    bound: sets may be dropped by a race.
    more: a greedy rule may go on after what is counted.
    compiling: seconds that the measuring took to compile.
    spent: further seconds that the measuring took.
  """

  trainings: int
  epochs: int
  seconds: float
  bound: bool
  more: bool
  compiling: float
  spent: float

  @property
  def bounds(self) -> str:
    """ "at most " or "at least ", where it is not the number itself."""
    return "" if self.bound == self.more else "at most " if self.bound else "at least "

  def text(self) -> str:
    """One line for a person."""
    most = self.bounds
    return (
      f"the search: {most}{words.count(self.trainings, 'training')}, "
      f"{words.count(self.epochs, 'epoch')}, {most}about {words.duration(self.seconds)}"
      f"{', and each further unit that greedy takes' if self.more else ''} (measured in "
      f"{words.duration(self.spent)} and {words.duration(self.compiling)} of compiling)"
    )


def measure(config: Any, trainer: evaluator.Evaluator) -> Forecast:
  """Times a step of a few units, and counts what the store lacks.

  Args:
    config: of the search.
    trainer: its evaluator; its store is read.
  """
  watch = timing.Watch()
  problem = trainer.problem
  sets, more = planned(config, trainer)
  jobs = [
    (units, fold, seed)
    for units in sets
    for fold in range(len(problem.folds))
    for seed in (problem.seeds if units else problem.seeds[:1])
    if not trainer.stored(units, fold, seed)
  ]
  wholes = [_wholes(trainer, units, fold) for units, fold, _ in jobs]
  each = [config.search.epochs if units else 1 for units, *_ in jobs]
  epochs = round(sum(np.multiply(each, wholes)))
  seconds = 0.0
  if jobs:
    shared, curve = _curve(trainer, [units for units, *_ in jobs])
    seconds = shared + sum(curve(job[0]) * own for job, own in zip(jobs, wholes, strict=True))
  spent, compiling = watch.lap()
  bound = config.search.racing and "greedy" in config.search.kinds
  bound = bound or config.search.propose > 0
  seconds /= trainer.num_workers
  return Forecast(len(jobs), epochs, seconds, bound, more, compiling, spent)


def _wholes(trainer: evaluator.Evaluator, units: scores.Units, fold: int) -> float:
  """What one training reads, in passes over the training part of its fold for each epoch."""
  parts = trainer.parts(units, fold)
  return sum(len(rest) for rest, _ in parts) / len(parts[-1][0])


def planned(config: Any, trainer: evaluator.Evaluator) -> tuple[list[scores.Units], bool]:
  """The sets that a search is sure to score, and whether greedy may score more.

  Sets of greedy's later steps are stood for by the first ones in the network: what is chosen on the
  way is not known.
  """
  options, network = config.search, trainer.problem.network
  references = options.references and search_config.trains(config)
  found: list[scores.Units] = network.references if references else []
  more = False
  for kind in options.kinds:
    if kind == "greedy":
      own, more = _greedy_sets(options, network)
      found += own
    elif kind == "predicted":  # which sets, is not known
      found += [*greedy.profile(network), *greedy.pairs(network)][: options.propose]
    elif kind == "uniform":
      found += network.uniform()
    elif kind == "profile":
      found += greedy.profile(network)
    elif kind == "pairs":
      found += greedy.pairs(network)
    else:
      found += greedy.windows(network, int(kind.removeprefix("windows")))
  return list(dict.fromkeys(found)), more


def _greedy_sets(options: Any, network: units_lib.Network) -> tuple[list[scores.Units], bool]:
  found: list[scores.Units] = []
  names = network.names
  fixed = options.rule == "size"
  if options.start in ("none", "both"):
    found += [()] if options.baseline == "head" else []
    for size in range(min(options.size, len(names)) if fixed else 1):
      found += network.larger(names[:size])
  if options.start in ("all", "both"):
    found.append(network.everything)
    steps = len(names) - options.size if fixed else 1
    for gone in range(max(steps, 0)):
      found += network.smaller(names[gone:] if fixed else network.everything)
  return found, not fixed


def _curve(trainer: evaluator.Evaluator, sets: Sequence[scores.Units]):
  """(seconds of what is shared, units -> seconds of a training on a fold).

  Measured for a few sets; the others lie between them by their multiply-adds.
  """
  problem, engine = trainer.problem, trainer.engine
  rest, held = problem.folds[0]
  labels = np.asarray(problem.train.labels)
  rows = [prefix_lib.Rows(trainer.prefix, labels, part) for part in (rest, held)]
  meter = stage_cost.Meter(engine, problem.variables, *rows, validate="end")

  def meter_of(units: scores.Units) -> stage_cost.Meter:
    own, variables = trainer.prepared(units)
    if own is engine:
      return meter
    return stage_cost.Meter(own, variables, *rows, validate="end")

  def macs(units: scores.Units) -> int:
    return cost.training_macs(
      problem.network, units, num_train=len(rest), num_held_out=len(held), epochs=1,
      shared_prefix=True,
    )  # fmt: skip

  def seconds(units: scores.Units) -> float:
    stages = meter_of(units).stages(trainer.method(units))
    return sum(stage.seconds - stage.prefix for stage in stages)

  single = sorted({units for units in sets if units}, key=macs)
  places = np.linspace(0, len(single) - 1, min(_MEASURED, len(single)))
  measured = [single[round(place)] for place in places]
  x = [macs(units) for units in measured]
  y = [seconds(units) for units in measured]
  shared, head = meter.forward(problem.train.images), 0.0
  if () in sets or trainer.recipe.head == "probe":
    head = seconds(())
  if trainer.recipe.head == "probe":
    shared += head * len(problem.folds)
  return shared, lambda units: float(np.interp(macs(units), x, y)) if units else head


def say(
  config: Any, trainer: evaluator.Evaluator, workdir: pathlib.Path, line: Callable[[str], None]
) -> None:
  """Lines on what a search will take, and the comparison after it, for which the first unit stands
  in.

  Args:
    config: of the search.
    trainer: its evaluator.
    workdir: of the search; nothing is written.
    line: takes a line.
  """
  if not search_config.trains(config) and not config.search.final:
    return
  found = measure(config, trainer)
  line(found.text())
  if not config.search.final:
    return
  network = trainer.problem.network
  final = search_config.final_of(config, network, network.names[:1])
  after = compare.forecast_of(final, workdir / search_config.FINAL)
  if after:
    whole = words.duration(found.seconds + after.whole)
    line(f"the comparison after it: {after.text()}")
    line(f"the whole run: {found.bounds}about {whole}")
