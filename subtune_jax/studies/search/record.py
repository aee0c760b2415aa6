"""The record of a search for the units to train: read, checked, and asked for what a page needs.

Studies made of searches ask it too.
"""

from collections.abc import Iterable, Sequence
import math
import os
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np

from subtune_jax.report import estimate as estimate_lib
from subtune_jax.report import words
from subtune_jax.statistics import intervals
from subtune_jax.studies import fields
from subtune_jax.studies.search import checks

Row = checks.Row
Units = checks.Units

WINDOWS, PAIRS, GREEDY, PREDICTED = "windows", "pairs", "greedy", "predicted"  # kinds of searches
FORWARD = "none"  # what a greedy search starts from


class TriedSet(checks.Mean):
  units: list[str]
  by_fold: list[fields.Fraction | None]  # null: not trained, a race dropped the set
  complete: bool  # trained on every fold, and converged
  diverged: NotRequired[bool]
  learning_rates: NotRequired[list[float]]  # chosen by its trainings
  exploded: NotRequired[list[str]]  # how, see `report.explosion`
  trained_params: int
  fork_macs: float  # multiply-adds of one more such task, an image
  trainings: int
  seconds: float
  compile_seconds: float


class TriedInStep(TypedDict):
  units: list[str]
  mean: fields.Fraction


class Step(TypedDict):  # a step of a greedy search: sets that differ from `base` by a unit
  base: list[str]
  tried: list[TriedInStep]
  chosen: list[str]
  score: fields.Fraction
  taken: bool
  reason: str


class Rule(TypedDict):  # when a unit earns its place; fields of `search.rules`
  kind: Literal["gain", "significance", "tolerant", "size"]


class Greedy(TypedDict):
  start: Literal["none", "all"]
  rule: Rule
  budget: dict[str, float | None] | None
  racing: bool
  steps: list[Step]
  chosen: list[str]
  score: fields.Fraction | None
  stopped: str


class Windows(TypedDict):
  width: int  # units in a row


class Search(TypedDict):
  """With the fields of `Greedy` or `Windows`, or "proposed": the predicted sets to train."""

  kind: Literal["profile", "windows", "pairs", "greedy", "predicted", "uniform"]
  proposed: NotRequired[list[list[str]]]


class Cost(TypedDict):
  trainings: int
  dropped_by_race: int
  seconds: float
  compile_seconds: float
  flops: float
  plain_trainings: int  # plain: without sharing the frozen prefix and without races
  plain_flops: float
  prefix_peak_bytes: float
  prefix_budget_bytes: float
  notes: list[str]


class Predicted(TypedDict):  # what was predicted from gradients, nothing trained
  sets: list[TriedSet]
  chosen: list[str]
  stopped: NotRequired[str]
  certificate: checks.Certificate | None
  probes: int
  statistics: str
  kernel_seconds: float
  compile_seconds: float
  fit_seconds: float


class Final(TypedDict):
  folder: str  # of the comparison


class Record(fields.Record):
  data: checks.FoldedData
  units: list[checks.Unit]
  head_params: int
  head_macs: float  # multiply-adds of an image
  sets: list[TriedSet]
  searches: list[Search]
  chosen: list[str]
  chosen_by: str
  lora: NotRequired[dict[str, Any] | None]  # the chosen ranks as options of the method `lora`
  certificate: checks.Certificate | None
  fork_ms: NotRequired[dict[str, float]]  # milliseconds by first unit, and of the head
  predicted: NotRequired[Predicted | None]
  cost: Cost
  final: Final | None


def load(workdir: str | os.PathLike) -> Record:
  """The record of a finished search; see `fields.load`."""
  return fields.load(workdir, check)


def check(record: Any, where: str = "record") -> None:
  """Raises ValueError unless `record` is a whole one of a search."""
  fields.check_record(record, Record, where, "search")
  units, num_folds = checks.check_candidates(record, where), record["data"]["num_folds"]
  if record.get("fork_ms"):
    fields.check_has(record["fork_ms"], (*units, "head"), f"{where}: fork_ms")
  predicted = record.get("predicted")
  _check_sets(record["sets"], units, num_folds, f"{where}: sets", least=0 if predicted else 1)
  if predicted is not None:
    _check_predicted(predicted, units, num_folds, f"{where}: predicted")
  for i, search in enumerate(record["searches"]):
    _check_one_search(search, units, where, f"searches[{i}]")
  checks.check_units(record["chosen"], units, f"{where}: chosen")
  checks.check_certificate(record["certificate"], units, f"{where}: certificate")
  if record["final"] is not None:
    checks.check_folder(record["final"]["folder"], f"{where}: final")


def _check_sets(
  sets: list[TriedSet], units: Units, num_folds: int, where: str, least: int = 1
) -> None:
  """Raises unless every entry is a set of units with its accuracies, each set once."""
  for i, tried in enumerate(sets):
    place = f"{where}[{i}]"
    checks.check_units(tried["units"], units, f"{place}: units")
    checks.check_folds(tried, num_folds, place)
    whole = None not in tried["by_fold"] and not tried.get("diverged")
    if tried["complete"] != whole:
      raise ValueError(f"{place}: complete is {tried['complete']}, by_fold {tried['by_fold']}.")
  names = [tuple(tried["units"]) for tried in sets]
  twice = next((name for name in names if names.count(name) > 1), None)
  if len(names) < least or twice is not None:
    what = "are none" if twice is None else f"hold {list(twice)} twice"
    raise ValueError(f"{where} {what}; at least one set is needed, each once.")


def _check_predicted(entry: Predicted, units: Units, num_folds: int, where: str) -> None:
  _check_sets(entry["sets"], units, num_folds, f"{where}: sets")
  checks.check_units(entry["chosen"], units, f"{where}: chosen")
  checks.check_certificate(entry["certificate"], units, f"{where}: certificate")
  known = [tried["units"] for tried in entry["sets"]]
  for needed in ([], entry["chosen"]):
    if needed not in known:
      raise ValueError(
        f"{where}: sets lack {needed}; the head alone and the chosen set are needed."
      )


def _check_one_search(search: Any, units: Units, where: str, path: str) -> None:
  """Checks what only searches of its kind have."""
  place = f"{where}: {path}"
  if search["kind"] == WINDOWS:
    fields.check(search, Windows, where, path)
    if not 1 <= search["width"] <= len(units):
      raise ValueError(f"{place}: width is {search['width']}; allowed: 1 to {len(units)}.")
  if search["kind"] != GREEDY:
    return
  fields.check(search, Greedy, where, path)
  checks.check_units(search["chosen"], units, f"{place}: chosen")
  for i, step in enumerate(search["steps"]):
    sets = {"base": step["base"], "chosen": step["chosen"]}
    sets |= {f"tried[{j}].units": tried["units"] for j, tried in enumerate(step["tried"])}
    for name, own in sets.items():
      checks.check_units(own, units, f"{place}: steps[{i}]: {name}")


def unit_names(record: Row) -> Units:
  """The units of a search or of a study of corruptions, in the order of the network."""
  return tuple(unit["name"] for unit in record["units"])


def by_units(record: Row) -> dict[Units, Row]:
  """The sets of a search by their units, in the order of the record."""
  return {tuple(tried["units"]): tried for tried in record["sets"]}


def searches(record: Row, kind: str) -> list[Row]:
  return [search for search in record["searches"] if search["kind"] == kind]


def folds(entry: Row) -> np.ndarray:
  """[num_folds] accuracies of an entry, NaN for a fold that was not trained."""
  return np.array([fields.number(value) for value in entry["by_fold"]])


def difference(first: Row, second: Row) -> estimate_lib.Estimate:
  """Accuracy of the first minus that of the second over the folds that both were trained on.

  The interval is that of `intervals.fold_difference`; NaN with fewer than two such folds.
  """
  found = intervals.fold_difference(folds(first), folds(second))
  if found is not None:
    return estimate_lib.Estimate(*found)
  shared = folds(first) - folds(second)
  shared = shared[np.isfinite(shared)]
  return estimate_lib.Estimate(
    float(shared.mean()) if len(shared) else math.nan, math.nan, math.nan
  )


def undecided(first: Row, second: Row) -> bool:
  """Whether the interval of the difference is known and includes 0."""
  found = difference(first, second)
  return found.known and found.verdict == estimate_lib.UNDECIDED


def told_apart(first: Row, second: Row) -> bool:
  """Whether the interval of the difference is known and excludes 0."""
  found = difference(first, second)
  return found.known and found.verdict != estimate_lib.UNDECIDED


def best_of(entries: Iterable[Row]) -> tuple[Row | None, list[Row]]:
  """The entry of the highest mean, and those that are not told apart from it."""
  entries = list(entries)
  best = max(entries, key=lambda entry: entry["mean"], default=None)
  if best is None:
    return None, []
  return best, [entry for entry in entries if entry is not best and undecided(entry, best)]


def gains(profile: Iterable[Row], head: Row, units: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """A row of a map: what each unit gains over the head alone.

  Args:
    profile: entries with the fields `unit`, `mean` and `by_fold`.
    head: the entry of the head alone.
    units: of the columns.

  Returns:
    [units] gain in points, NaN where a unit was not tried; [units] whether it is not told apart
    from the best.
  """
  found = {entry["unit"]: entry for entry in profile}
  near = [entry["unit"] for entry in best_of(found.values())[1]]
  values = [100 * (found[u]["mean"] - head["mean"]) if u in found else math.nan for u in units]
  return np.array(values), np.isin(units, near)


def total_macs(record: Row) -> float:
  """Multiply-adds of the whole network for one image; units that leave blocks out leave them out.

  The set of all units, where it was tried, forks at its first block and so knows better.
  """
  macs = {tuple(unit["blocks"]): unit["macs"] for unit in record["units"]}  # once at all its ranks
  known = record["head_macs"] + sum(macs.values())
  return max([known, *(tried["fork_macs"] for tried in record["sets"])])


def blocks(record: Row, units: Sequence[str]) -> frozenset[str]:
  """The blocks of a set of units."""
  return frozenset(
    block for unit in record["units"] if unit["name"] in set(units) for block in unit["blocks"]
  )


def in_doubt(certificate: checks.Certificate | None) -> list[checks.Probable]:
  """The sets beside the certified one that may be the best, the most probable first.

  None: it is decided.
  """
  if certificate is None:
    return []
  others = [own for own in certificate["undecided"] if own["units"] != certificate["chosen"]]
  return sorted(others, key=lambda other: -other["probability"])


def set_name(units: Sequence[str], all_units: Sequence[str]) -> str:
  """A set in words: "block9 + block14", "head alone", "all units", "all but block3"."""
  if not units:
    return "head alone"
  rank = _rank_of_all(units, all_units)
  if rank:
    return f"rank {rank} everywhere"
  left_out = [name for name in all_units if name not in set(units)]
  if not left_out:
    return "all units"
  if len(left_out) < len(units) and len(units) > 3:
    return f"all but {' + '.join(left_out)}"
  return " + ".join(units)


def _rank_of_all(units: Sequence[str], all_units: Sequence[str]) -> str:
  """The one rank at which all units are in a set of ranks ("block9=4"); "" of another set."""
  pairs = [unit_and_rank(name) for name in units]
  names, ranks = {unit for unit, _ in pairs}, {rank for _, rank in pairs}
  every = {unit_and_rank(name)[0] for name in all_units}
  return ranks.pop() if len(ranks) == 1 and names == every else ""


def unit_and_rank(name: str) -> tuple[str, str]:
  """("block9", "4") of a unit at a rank, "block9=4"; ("block9", "") of a unit."""
  unit, equals, rank = name.rpartition("=")
  return (unit, rank) if equals else (name, "")


def chance_text(probability: float | None) -> str:
  """A probability in per cent; a small one is not rounded to none, a large one not to all."""
  if probability is None:
    return ""
  if 0 < probability < 0.005:
    return "< 1 %"
  return "> 99 %" if 0.995 <= probability < 1 else f"{words.percent(probability, 0)} %"


def ranked_pairs(record: Row) -> list[Row]:
  """All pairs that were tried on every fold, the best first."""
  found = [tried for tried in record["sets"] if len(tried["units"]) == 2 and tried["complete"]]
  return sorted(found, key=lambda tried: -tried["mean"])


def flop_ratio(record: Row) -> float | None:
  """Operations of the plain search over those of this one; None where they are not known."""
  spent = record["cost"]
  return spent["plain_flops"] / spent["flops"] if spent["flops"] > 0 else None


def flop_unit(record: Row) -> tuple[float, str]:
  """The unit that shows the floating-point operations of a search in few digits."""
  most = max(record["cost"]["flops"], record["cost"]["plain_flops"])
  for scale, unit in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
    if most >= scale:
      return scale, unit
  return 1e6, "MFLOP"
