"""What a run will take, before it trains: trainings, epochs, time and memory.

Nothing is taken from a table: a few steps of every stage are timed, on the programs and shapes that
the run will use (`training.stage_cost`).
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from subtune_jax import methods
from subtune_jax.report import words
from subtune_jax.runner import choice, recipes, trainings
from subtune_jax.training import ledger as ledger_lib
from subtune_jax.training import stage_cost, timing


@dataclasses.dataclass(frozen=True)
class Forecast:
  """What is left of a run.

  Attributes:
    trainings: their number.
    epochs: of them all.
    seconds: of the trainings, without compiling.
    reading: seconds of reading the test sets with the chosen networks.
    compiling: seconds that the measuring took to compile; the run does not repeat them in the same
      process, nor where compiled programs are kept on disk.
    spent: further seconds that the measuring took.
    nbytes: of the largest step, by the compiler's count; None where it does not say.
    costs: method -> what each stage of one training takes.
  """

  trainings: int
  epochs: int
  seconds: float
  reading: float
  compiling: float
  spent: float
  nbytes: int | None
  costs: Mapping[str, tuple[stage_cost.StageCost, ...]]

  @property
  def whole(self) -> float:
    """Seconds that the run takes from here on."""
    return self.seconds + self.reading

  def epoch(self, name: str, stage: int) -> float:
    """Seconds of an epoch of a method's stage, with its share of what comes before the first."""
    own = self.costs[name][stage]
    return own.seconds / own.epochs

  def text(self) -> str:
    """One line for a person."""
    memory = (
      f"; the largest step takes {words.num_bytes(self.nbytes)} of memory" if self.nbytes else ""
    )
    return (
      f"to do: {words.count(self.trainings, 'training')}, {words.count(self.epochs, 'epoch')}, "
      f"about {words.duration(self.whole)}{memory} (measured in {words.duration(self.spent)} and "
      f"{words.duration(self.compiling)} of compiling)"
    )


def measure(run: trainings.Run) -> Forecast | None:
  """Times a few steps of each method that has something left to train; None where none has.

  Errors: what the trainings would raise.
  """
  left = {name: _left(run, name) for name in run.config.methods}
  if not any(sum(own) for own in left.values()):
    return None
  watch = timing.Watch()
  meters: dict[Any, stage_cost.Meter] = {}
  costs = {name: _meter(run, name, meters).stages(_method(run, name)) for name in left}
  number = epochs = 0
  seconds = reading = 0.0
  for name, (plain, on_all) in left.items():
    count = trainings.num_epochs(_method(run, name))
    own = sum(stage.seconds for stage in costs[name])
    seconds += own * (plain + on_all * _share(run))
    number, epochs = number + plain + on_all, epochs + (plain + on_all) * count
    meter = _meter(run, name, meters)
    reading += _networks(run, name) * sum(meter.forward(test.images) for test in run.tests)
  spent, compiling = watch.lap()
  sizes = [own.nbytes for stages in costs.values() for own in stages if own.nbytes]
  return Forecast(
    number, epochs, seconds, reading, compiling, spent, max(sizes, default=None), costs
  )


def num_epochs(run: trainings.Run) -> int:
  """Epochs of all trainings of a run, those of earlier starts too."""
  return sum(
    trainings.num_epochs(_method(run, name)) * sum(_planned(run, name))
    for name in run.config.methods
  )


def _rates(run: trainings.Run, name: str) -> tuple[float, ...]:
  return recipes.learning_rates(run.config, name)


def _method(run: trainings.Run, name: str) -> methods.Method:
  return trainings.stages_of(run, name, _rates(run, name)[0])


def _networks(run: trainings.Run, name: str) -> int:
  """Trained networks that see the test sets."""
  return 1 if choice.is_deterministic(_method(run, name)) else len(run.config.seeds)


def _planned(run: trainings.Run, name: str) -> tuple[int, int]:
  """(trainings of the grid, further ones) of a method."""
  tried = len(choice.seeds_tried(run.config, _method(run, name)))
  networks = _networks(run, name)
  return len(_rates(run, name)) * tried, networks if run.config.data.retrain else networks - tried


def _left(run: trainings.Run, name: str) -> tuple[int, int]:
  """(trainings on the training split, trainings on all labels) that are not in the ledger."""
  grid, more = _planned(run, name)
  keys = {
    ledger_lib.key_of(
      trainings.describe(
        run, name, trainings.stages_of(run, name, rate), seed, run.train, run.validation
      )
    )
    for rate in _rates(run, name) for seed in choice.seeds_tried(run.config, _method(run, name))
  }  # fmt: skip
  of_these = [r for r in run.rows.values() if (r["method"], r.get("inputs")) == (name, run.inputs)]
  done = sum(row["key"] in keys for row in of_these)
  further = max(more - (len(of_these) - done), 0)
  return (grid - done, further) if run.config.data.retrain else (grid - done + further, 0)


def _share(run: trainings.Run) -> float:
  """What a training on all labels takes, of one on the training split."""
  return len(run.trainval) / len(run.train) if run.trainval else 1.0


def _meter(run: trainings.Run, name: str, meters: dict[Any, stage_cost.Meter]) -> stage_cost.Meter:
  """One for all methods that train the run's own network."""
  key = name if recipes.changes_network(run.config, name) else None
  if key not in meters:
    engine, pretrained = run.network_of(name)
    meters[key] = stage_cost.Meter(engine, pretrained.variables, run.train, run.validation)
  return meters[key]
