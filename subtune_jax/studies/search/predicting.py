"""The part of a search that trains nothing: kernels, predicted scores, and which sets to verify."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
from typing import Any

from subtune_jax.search import (
  certificate,
  evaluator,
  greedy,
  kernel_store,
  predicted,
  rules,
  scores,
)
from subtune_jax.studies.search import config as search_config
from subtune_jax.studies.search import record as search_record
from subtune_jax.studies.search import rows
from subtune_jax.training import loop

PREDICTED = "predicted"


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What was predicted.

  Attributes:
    scored: the predicted score of every set that was asked for.
    row: for the record.
  """

  scored: Mapping[scores.Units, scores.Score]
  row: search_record.Predicted

  def proposed(
    self, problem: evaluator.Problem, budget: rules.Budget, number: int
  ) -> list[scores.Units]:
    """The sets of the highest predicted accuracy within the budget, at most so many."""
    network = problem.network
    sets = [s for s in self.scored.values() if s.units and budget.allows(network, s.units)]
    sets.sort(key=lambda s: (-round(s.mean, 9), network.trained_params(s.units)))
    return [score.units for score in sets[:number]]


def predict(
  config: Any,
  problem: evaluator.Problem,
  engine: loop.Engine,
  folder: str | os.PathLike,
  line: Callable[[str], None],
  budget: rules.Budget,
) -> Prediction:
  """Predicts single units, two and three in a row, and a greedy search.

  Args:
    config: of the search.
    problem: the images, the folds and the network.
    engine: how the network is run.
    folder: of the search's store, where the kernels are kept.
    line: takes a line for a person.
    budget: of the greedy search.
  """
  search = config.search
  options = kernel_store.Options(
    search.probes, statistics=_statistics(search), batch_size=engine.batch_size,
    landmarks=search.landmarks,
  )  # fmt: skip
  line(
    f"gradients of {len(problem.train):,} images by {search.probes} random probes, for "
    f"{len(problem.network.names)} units; nothing is trained"
  )
  kernels = kernel_store.unit_kernels(problem, engine, options, folder)
  start = kernel_store.start_outputs(problem, engine) if config.backbone.keep_head else None
  train = problem.train
  predictor = predicted.Predictor(
    kernels, train.labels, problem.folds, groups=train.groups, start=start,
    rates=tuple(search.eta),
  )  # fmt: skip
  return _predict(config, problem, predictor, line, budget)


def _statistics(search: Any) -> str:
  """As the trainings that are predicted have it, where the config does not say."""
  return search.statistics or ("candidate" if search.norm_mode == "batch" else "running")


def _predict(
  config: Any, problem: evaluator.Problem, predictor: predicted.Predictor, line,
  budget: rules.Budget,
) -> Prediction:  # fmt: skip
  network = problem.network
  scored: dict[scores.Units, scores.Score] = {}

  def evaluate(sets: Sequence[scores.Units]) -> dict[scores.Units, scores.Score]:
    found = predictor.evaluate(sets)
    scored.update(found)
    return found

  head = evaluate([()])[()]
  for width in range(1, min(3, len(network.names)) + 1):
    evaluate(greedy.windows(network, width))
  budget = dataclasses.replace(budget, seconds=None)  # those are of training
  path = greedy.forward(
    network, greedy.exact(network, evaluate), search_config.make_rule(config, problem.overlap),
    budget=budget, baseline=head,
  )  # fmt: skip
  order = sorted(scored, key=lambda units: (len(units), [network.names.index(u) for u in units]))
  tried = [scored[units] for units in order]
  sure = certificate.certify(
    tried, path.chosen, overlap=problem.overlap, level=config.search.level
  )  # fmt: skip
  kernels = predictor.kernels
  row: search_record.Predicted = {
    "sets": [rows.set_row(network, problem.overlap, score) for score in tried],
    "chosen": list(path.chosen),
    "stopped": path.stopped,
    "certificate": rows.certificate_row(sure),
    "probes": config.search.probes,
    "statistics": "candidate" if kernels.features else _statistics(config.search),
    "kernel_seconds": kernels.seconds,
    "compile_seconds": kernels.compile_seconds,
    "fit_seconds": round(predictor.seconds, 2),
  }
  chosen = certificate.label(path.chosen)
  line(
    f"predicted: {chosen} {100 * scored[path.chosen].mean:.1f} %, the head alone "
    f"{100 * head.mean:.1f} %; {len(tried)} sets in {predictor.seconds:.0f} seconds, after "
    f"{kernels.seconds + kernels.compile_seconds:.0f} seconds of gradients"
  )
  return Prediction(scored, row)
