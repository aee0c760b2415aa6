"""Entries of a search's record: sets, certificates, and what it all cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subtune_jax.search import certificate, cost, evaluator, racing, ranks, scores, significance
from subtune_jax.search import units as units_lib
from subtune_jax.studies.search import checks
from subtune_jax.studies.search import record as search_record


def set_row(
  network: units_lib.Network,
  overlap: float,
  score: scores.Score,
  trainings: Sequence[Mapping[str, Any]] = (),
) -> search_record.TriedSet:
  """The entry of a set.

  Args:
    network: what sets cost.
    overlap: of the folds.
    score: trained or predicted.
    trainings: its lines of the ledger; none where it was predicted.
  """
  # Over folds, and no narrower than the held-out images allow.
  low = high = 0.0
  if not score.diverged:
    low, high = significance.interval(score, overlap, images=True)
  return {
    "units": list(score.units),
    "by_fold": [
      None if cell is None else 0.0 if score.diverged else float(np.mean(cell))
      for cell in score.cells
    ],
    "diverged": score.diverged,
    "learning_rates": sorted({row["learning_rate"] for row in trainings if "learning_rate" in row}),
    "exploded": sorted({row["exploded"] for row in trainings if "exploded" in row}),
    "mean": score.mean, "low": low, "high": high, "complete": score.complete,
    "trained_params": network.trained_params(score.units),
    "fork_macs": network.fork_macs(score.units), "trainings": len(trainings),
    "seconds": round(sum(row["seconds"] for row in trainings), 3),
    "compile_seconds": round(sum(row["compile_seconds"] for row in trainings), 3),
  }  # fmt: skip


def lora_row(network: units_lib.Network, units: scores.Units) -> dict[str, Any] | None:
  """A set of ranks as fields of the method `lora`; None where units are trained themselves."""
  if not isinstance(network, ranks.Ranks):
    return None
  own = ranks.options({}, network.pattern(units))
  return {"where": list(own["where"]), "rank_pattern": own["rank_pattern"]}


def certificate_row(sure: certificate.Certificate) -> checks.Certificate:
  """The entry of a certificate."""
  return {
    "chosen": list(sure.chosen), "probability_best": sure.probability_best,
    "expected_regret": sure.expected_regret, "level": sure.level,
    "undecided": [{"units": list(u), "probability": p} for u, p in sure.undecided],
    "text": certificate.describe(sure),
  }  # fmt: skip


def cost_row(
  config: Any, trainer: evaluator.Evaluator, races: Sequence[racing.Race]
) -> search_record.Cost:
  """What the trainings took, and what they would have taken without sharing and racing."""
  problem, network = trainer.problem, trainer.problem.network
  shared = config.search.prefix_bytes > 0
  flops = plain = 0
  for row in trainer.used.values():
    units = tuple(row["units"])
    for rest, held in trainer.parts(units, row["fold"]):
      macs = [
        cost.training_macs(
          network, units, num_train=len(rest), num_held_out=len(held),
          epochs=config.search.epochs if units else 1, shared_prefix=share,
        )
        for share in (shared, False)
      ]  # fmt: skip
      flops, plain = flops + 2 * macs[0], plain + 2 * macs[1]
  saved = sum(race.saved for race in races) * len(problem.seeds)
  used = len(trainer.used)
  if shared and used:
    flops += 2 * cost.prefix_macs(network, len(problem.train))
  notes = [note for prefix in trainer.prefixes for note in prefix.notes.values()]
  return {
    "trainings": used, "dropped_by_race": saved,
    "seconds": round(sum(row["seconds"] for row in trainer.used.values()), 2),
    "compile_seconds": round(sum(row["compile_seconds"] for row in trainer.used.values()), 2),
    "flops": float(flops), "plain_trainings": used + saved,
    "plain_flops": float(plain) * (used + saved) / max(used, 1),
    "prefix_peak_bytes": max((prefix.peak_bytes for prefix in trainer.prefixes), default=0),
    "prefix_budget_bytes": config.search.prefix_bytes, "notes": sorted(set(notes)),
  }  # fmt: skip
