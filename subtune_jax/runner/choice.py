"""A method of a run: a training per learning rate, the choice on validation, the other seeds."""

from collections.abc import Generator
from typing import Any

import numpy as np

from subtune_jax import methods
from subtune_jax.runner import trainings
from subtune_jax.statistics import criteria

Row = dict[str, Any]
_ACCURACY = criteria.CRITERIA[criteria.ACCURACY]
# Yields trainings that do not wait for each other, is sent their rows, and returns its own.
Plan = Generator[list[trainings.Asked], list[Row], Row]


def train_method(run: trainings.Run, name: str, rates: tuple[float, ...]) -> Plan:
  """Grid, choice on validation, the seeds that are left at the choice."""
  seeds = tuple(run.config.seeds)
  method = trainings.stages_of(run, name, rates[0])
  tried = seeds_tried(run.config, method)
  tried_rows = yield [trainings.Asked(name, rate, seed) for rate in rates for seed in tried]
  count = len(tried)
  trained = {rate: tried_rows[i * count : (i + 1) * count] for i, rate in enumerate(rates)}
  criterion = criteria.of(run.config)
  grid = [grid_row(rows, criterion) for rows in trained.values()]
  ranked = best_first(grid, criterion)
  if not ranked:
    raise ValueError(f"{name}: every learning rate of {rates} diverged; lower them{_kept(run)}")
  rate = ranked[0]
  rows = trained[rate]
  if run.trainval:
    rows = yield from _retrain(run, [(row, row["seed"]) for row in rows])
  if is_deterministic(method):
    chosen = [rows[0] | {"seed": seed} for seed in seeds]
  else:
    left = seeds[len(tried) :]
    if run.trainval:
      rows += yield from _retrain(run, [(rows[0], seed) for seed in left])
    else:
      rows += yield [trainings.Asked(name, rate, seed) for seed in left]
    chosen = rows
    bad = [row["seed"] for row in chosen if row["validation_accuracy"] is None]
    if bad:
      raise ValueError(
        f"{name}: learning rate {rate} diverged with seed {bad[0]}; lower the rates{_kept(run)}"
      )
  return {
    "name": name, "grid": grid, "chosen": chosen, "tried": tried_rows, "learning_rate": rate,
  }  # fmt: skip


def _kept(run: trainings.Run) -> str:
  """The end of an error after which other methods, rates or seeds may follow in the workdir."""
  if not run.changeable:
    return ""
  return (
    f". Finished trainings are kept: start again with --workdir={run.workdir} and other "
    "learning_rates, methods or seeds, and only what is new is trained"
  )


def _retrain(
  run: trainings.Run, wanted: list[tuple[Row, int]]
) -> Generator[list[trainings.Asked], list[Row], list[Row]]:
  """Chosen settings, each with a seed, on all labelled images; their scores stay with them."""
  again = yield [trainings.on_all_labels(best, seed) for best, seed in wanted]
  return [
    trainings.with_scores(run, row, best) for row, (best, _) in zip(again, wanted, strict=True)
  ]


def grid_row(rows: list[Row], criterion: criteria.Criterion = _ACCURACY) -> Row:
  """A learning rate's means over its seeds; None where a training diverged."""
  means = {
    key: None if any(row[key] is None for row in rows) else float(np.mean([r[key] for r in rows]))
    for key in criteria.fields(criterion)
  }
  return {"learning_rate": rows[0]["learning_rate"], **means}


def best_first(grid: list[Row], criterion: criteria.Criterion = _ACCURACY) -> list[float]:
  """The learning rates of a grid by the criterion, then validation loss; none that diverged."""
  finite = [row for row in grid if row["validation_accuracy"] is not None]
  finite.sort(key=lambda row: (-criterion.score(row), row["validation_loss"]))
  return [row["learning_rate"] for row in finite]


def at_edge(grid: list[Row], rate: float) -> bool:
  """Whether a rate is the first or last of several."""
  return len(grid) > 1 and rate in (grid[0]["learning_rate"], grid[-1]["learning_rate"])


def grid_seeds(config: Any) -> tuple[int, ...]:
  """Seeds on which every learning rate is tried."""
  seeds = tuple(config.seeds)
  return seeds if config.grid_seeds == "all" else seeds[:1]


def seeds_tried(config: Any, method: methods.Method) -> tuple[int, ...]:
  """Of a method: one where all give the same."""
  return grid_seeds(config)[:1] if is_deterministic(method) else grid_seeds(config)


def is_deterministic(method: methods.Method) -> bool:
  """Whether no stage depends on the seed."""
  return all(isinstance(stage.solver, methods.LBFGS) for stage in method)
