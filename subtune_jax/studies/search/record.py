"""Records of SubTuning searches: read, checked, and asked for what tables and figures need.

There are three kinds: a "search" (which units to train beside the head), a study of the
"dataset_size" and one of "corruption". They are plain JSON in WORKDIR/results.json. Accuracies are
fractions, intervals 95 %.
"""

from collections.abc import Callable, Mapping, Sequence
import itertools
import math
import os
import pathlib
from typing import Any

import numpy as np

from subtune_jax import files
from subtune_jax.report import estimate as estimate_lib
from subtune_jax.report import words
from subtune_jax.statistics import intervals
from subtune_jax.studies import fields as fields_lib
from subtune_jax.studies.compare import record as compare_record

Row = Mapping[str, Any]
Units = tuple[str, ...]

SEARCH, DATASET_SIZE, CORRUPTION = KINDS = ("search", "dataset_size", "corruption")
PROFILE, WINDOWS, PAIRS, GREEDY = SEARCHES = ("profile", "windows", "pairs", "greedy")
FORWARD, BACKWARD = STARTS = ("none", "all")
RULES = ("gain", "significance", "tolerant", "size")
METHODS = {
  "lp": "Linear probing",
  "ft": "Full fine-tuning",
  "lp_ft": "LP-FT",
  "subtuning": "SubTuning",
}

_COUNT = (int, float)
_HEADER = {
  "kind": str,
  "name": str,
  "title": str,
  "command": str,
  "created": str,
  "versions": dict,
  "devices": str,
  "config": dict,
  "backbone": dict,
  "data": dict,
}
_FOLDED_DATA = {"train": str, "class_names": list, "num_examples": int, "num_folds": int}
_UNIT = {"name": str, "blocks": list, "params": int, "macs": _COUNT}
_SET = {
  "units": list,
  "by_fold": list,
  "mean": fields_lib.NUMBER,
  "complete": bool,
  "trained_params": int,
  "fork_macs": _COUNT,
  "trainings": int,
  "seconds": fields_lib.NUMBER,
  "compile_seconds": fields_lib.NUMBER,
}
_GREEDY = {
  "start": str,
  "rule": dict,
  "budget": (dict, type(None)),
  "racing": bool,
  "steps": list,
  "chosen": list,
  "stopped": str,
}
_STEP = {
  "base": list,
  "tried": list,
  "chosen": list,
  "score": fields_lib.NUMBER,
  "taken": bool,
  "reason": str,
}
_CERTIFICATE = {
  "chosen": list,
  "probability_best": fields_lib.NUMBER,
  "expected_regret": fields_lib.NUMBER,
  "undecided": list,
  "level": fields_lib.NUMBER,
  "text": str,
}
_COST = {
  "trainings": int,
  "dropped_by_race": int,
  "seconds": fields_lib.NUMBER,
  "compile_seconds": fields_lib.NUMBER,
  "flops": fields_lib.NUMBER,
  "plain_trainings": int,
  "plain_flops": fields_lib.NUMBER,
  "prefix_peak_bytes": _COUNT,
  "prefix_budget_bytes": _COUNT,
  "notes": list,
}
_SIZE = {"asked": int, "size": int, "folder": str, "methods": list, "against_ft": dict}
_SIZE_METHOD = {"name": str, "title": str, "by_seed": list, "setting": str}
_ROW = {
  "corruption": str,
  "severity": int,
  "title": str,
  "name": str,
  "folder": str,
  "order": list,
  "chosen": list,
  "profile": list,
}


def load(workdir: str | os.PathLike, kind: str | None = None) -> dict[str, Any]:
  """Reads WORKDIR/results.json and checks it.

  Args:
    workdir: of a finished search or study.
    kind: the kind that it has to be; None allows every kind.

  Raises:
    FileNotFoundError: there is no results.json.
    ValueError: it is damaged, of another kind, or contradicts itself; the message names the field
      and what is allowed.
  """
  path = pathlib.Path(workdir) / compare_record.RESULTS
  record = files.read_record(path)
  check(record, str(path))
  if kind is not None and record["kind"] != kind:
    raise ValueError(f"{path}: kind is {record['kind']!r}, wanted {kind!r}.")
  return record


def check(record: Any, where: str = "record") -> None:
  """Raises ValueError unless `record` is a whole record of one of `KINDS`.

  Args:
    record: the content of results.json.
    where: names it in the message.
  """
  fields_lib.check_fields(record, {"kind": str}, where)
  fields_lib.check_one_of(record["kind"], KINDS, f"{where}: kind")
  fields_lib.check_fields(record, _HEADER, where)
  fields_lib.check_fields(record["backbone"], fields_lib.BACKBONE, f"{where}: backbone")
  checks = {SEARCH: _check_search, DATASET_SIZE: _check_sizes, CORRUPTION: _check_corruptions}
  checks[record["kind"]](record, where)


def unit_names(record: Row) -> Units:
  """The units of a search or of a study of corruptions, in the order of the network."""
  return tuple(unit["name"] for unit in record["units"])


def by_units(record: Row) -> dict[Units, Row]:
  """The sets of a search by their units, in the order of the record."""
  return {tuple(tried["units"]): tried for tried in record["sets"]}


def searches(record: Row, kind: str) -> list[Row]:
  return [search for search in record["searches"] if search["kind"] == kind]


def estimate(entry: Row, key: str = "mean") -> estimate_lib.Estimate:
  """The accuracy of an entry and its interval, NaN where the record has none."""
  return estimate_lib.Estimate(
    fields_lib.number(entry[key]),
    fields_lib.number(entry.get("low")),
    fields_lib.number(entry.get("high")),
  )


def has_interval(value: estimate_lib.Estimate) -> bool:
  return not (math.isnan(value.low) or math.isnan(value.high))


def folds(entry: Row) -> np.ndarray:
  """[num_folds] accuracies of an entry, NaN for a fold that was not trained."""
  return np.array([fields_lib.number(value) for value in entry["by_fold"]])


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
  return has_interval(found) and found.verdict == estimate_lib.UNDECIDED


def told_apart(first: Row, second: Row) -> bool:
  """Whether the interval of the difference is known and excludes 0."""
  found = difference(first, second)
  return has_interval(found) and found.verdict != estimate_lib.UNDECIDED


def total_macs(record: Row) -> float:
  """Multiply-adds of the whole network for one image; units that leave blocks out leave them out.

  The set of all units, where it was tried, forks at its first block and so knows better.
  """
  known = record["head_macs"] + sum(unit["macs"] for unit in record["units"])
  return max([known, *(tried["fork_macs"] for tried in record["sets"])])


def blocks(record: Row, units: Sequence[str]) -> frozenset[str]:
  """The blocks of a set of units."""
  return frozenset(
    block for unit in record["units"] if unit["name"] in set(units) for block in unit["blocks"]
  )


def in_doubt(certificate: Row | None) -> list[Row]:
  """The sets beside the certified one that may be the best, the most probable first.

  None: it is decided.
  """
  others = certificate["undecided"] if certificate else []
  others = [other for other in others if other["units"] != certificate["chosen"]]
  return sorted(others, key=lambda other: -other["probability"])


def set_name(units: Sequence[str], all_units: Sequence[str]) -> str:
  """A set in words: "block9 + block14", "head alone", "all units", "all but block3"."""
  if not units:
    return "head alone"
  left_out = [name for name in all_units if name not in set(units)]
  if not left_out:
    return "all units"
  if len(left_out) < len(units) and len(units) > 3:
    return f"all but {' + '.join(left_out)}"
  return " + ".join(units)


def chance_text(probability: float | None) -> str:
  """A probability in per cent; a small one is not rounded to none, a large one not to all."""
  if probability is None:
    return ""
  if 0 < probability < 0.005:
    return "< 1 %"
  return "> 99 %" if 0.995 <= probability < 1 else f"{words.percent(probability, 0)} %"


def _check_accuracy(
  entry: Row, key: str, where: str, *, maybe: bool = False, least: float = 0.0
) -> None:
  """Raises unless entry[key] is a number in [least, 1], or None where `maybe`."""
  if key not in entry:
    raise ValueError(f"{where} lacks {key}; it has {', '.join(sorted(entry)) or 'nothing'}.")
  value = entry[key]
  if value is None and maybe:
    return
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not is_number or not least <= value <= 1:
    allowed = f"a number in [{least:g}, 1]" + (" or null" if maybe else "")
    raise ValueError(f"{where}: {key} is {value!r}, it has to be {allowed}.")


def _check_estimate(entry: Any, where: str, *, key: str = "mean", least: float = 0.0) -> None:
  """Raises unless the entry has a mean and an interval, which may be null on both sides."""
  fields_lib.check_fields(entry, {}, where)
  _check_accuracy(entry, key, where, least=least)
  for end in ("low", "high"):
    _check_accuracy(entry, end, where, maybe=True, least=least)
  low, high = entry["low"], entry["high"]
  if (low is None) != (high is None) or (low is not None and low > high):
    raise ValueError(f"{where}: the interval is [{low}, {high}]; low has to be at most high.")


def _check_folds(entry: Row, num_folds: int, where: str) -> None:
  """Raises unless `by_fold` has an accuracy or null per fold, whose mean is that of the entry."""
  values = entry["by_fold"]
  if len(values) != num_folds:
    raise ValueError(
      f"{where}: by_fold has {len(values)} values, data.num_folds is {num_folds}; every fold needs "
      "one, null if it was not trained."
    )
  for i in range(len(values)):
    _check_accuracy(dict(enumerate(values)), i, f"{where}: by_fold", maybe=True)
  trained = [value for value in values if value is not None]
  if not trained:
    raise ValueError(f"{where}: by_fold is null in every fold; leave the entry out.")
  if not math.isclose(np.mean(trained), entry["mean"], rel_tol=0, abs_tol=1e-6):
    raise ValueError(
      f"{where}: mean is {entry['mean']:.6f}, that of its folds {np.mean(trained):.6f}."
    )


def _check_units(names: Any, allowed: Sequence[str], where: str) -> None:
  """Raises unless `names` are units, each once and in the order of the network."""
  if not isinstance(names, list):
    raise ValueError(f"{where} is {names!r}, it has to be a list of units.")
  for name in names:
    fields_lib.check_one_of(name, allowed, f"{where}: a unit")
  places = [allowed.index(name) for name in names]
  if any(a >= b for a, b in itertools.pairwise(places)):
    raise ValueError(
      f"{where} is {names}; it has to name each unit once, in the order of the network."
    )


def _check_candidates(record: Row, where: str) -> Units:
  """Checks the field `units`, returns the names."""
  fields_lib.check_fields(record, {"units": list, "data": dict}, where)
  for i, unit in enumerate(record["units"]):
    fields_lib.check_fields(unit, _UNIT, f"{where}: units[{i}]")
    for block in unit["blocks"]:
      fields_lib.check_one_of(
        block, record["backbone"]["block_names"], f"{where}: a block of units[{i}]"
      )
  names = unit_names(record)
  if not names or len(set(names)) != len(names):
    raise ValueError(f"{where}: units are {list(names)}; at least one is needed, each named once.")
  return names


def _check_folded_data(record: Row, where: str) -> int:
  fields_lib.check_fields(record["data"], _FOLDED_DATA, f"{where}: data")
  num_folds = record["data"]["num_folds"]
  if num_folds < 1:
    raise ValueError(f"{where}: data.num_folds is {num_folds}, it has to be 1 or more.")
  return num_folds


def _check_folder(folder: Any, where: str) -> None:
  """Raises unless `folder` is a path below the workdir: it becomes a link of the page."""
  path = pathlib.PurePosixPath(folder) if isinstance(folder, str) and folder else None
  if path is None or path.is_absolute() or ".." in path.parts or ":" in folder or "\\" in folder:
    raise ValueError(f"{where}: folder is {folder!r}; it has to be a path inside of the workdir.")


def _check_certificate(entry: Any, units: Units, where: str) -> None:
  if entry is None:
    return
  fields_lib.check_fields(entry, _CERTIFICATE, where)
  _check_units(entry["chosen"], units, f"{where}: chosen")
  for key in ("probability_best", "expected_regret", "level"):
    _check_accuracy(entry, key, where)
  for i, other in enumerate(entry["undecided"]):
    fields_lib.check_fields(other, {"units": list}, f"{where}: undecided[{i}]")
    _check_units(other["units"], units, f"{where}: undecided[{i}].units")
    _check_accuracy(other, "probability", f"{where}: undecided[{i}]")


def _check_search(record: Row, where: str) -> None:
  fields = {"head_params": int, "head_macs": _COUNT, "sets": list, "searches": list}
  fields |= {"chosen": list, "chosen_by": str, "cost": dict}
  units, num_folds = _check_candidates(record, where), _check_folded_data(record, where)
  fields_lib.check_fields(record, fields, where)
  for name in ("certificate", "final"):
    fields_lib.check_fields(record, {name: (dict, type(None))}, where)
  for i, tried in enumerate(record["sets"]):
    place = f"{where}: sets[{i}]"
    fields_lib.check_fields(tried, _SET, place)
    _check_units(tried["units"], units, f"{place}: units")
    _check_estimate(tried, place)
    _check_folds(tried, num_folds, place)
    whole = None not in tried["by_fold"] and not tried.get("diverged")
    if tried["complete"] != whole:
      raise ValueError(f"{place}: complete is {tried['complete']}, by_fold {tried['by_fold']}.")
  names = [tuple(tried["units"]) for tried in record["sets"]]
  twice = next((name for name in names if names.count(name) > 1), None)
  if not names or twice is not None:
    what = "are none" if not names else f"hold {list(twice)} twice"
    raise ValueError(f"{where}: sets {what}; at least one set is needed, each once.")
  for i, search in enumerate(record["searches"]):
    _check_one_search(search, units, f"{where}: searches[{i}]")
  _check_units(record["chosen"], units, f"{where}: chosen")
  _check_certificate(record["certificate"], units, f"{where}: certificate")
  fields_lib.check_fields(record["cost"], _COST, f"{where}: cost")
  if record["final"] is not None:
    _check_folder(record["final"].get("folder"), f"{where}: final")


def _check_one_search(search: Any, units: Units, where: str) -> None:
  fields_lib.check_fields(search, {"kind": str}, where)
  fields_lib.check_one_of(search["kind"], SEARCHES, f"{where}: kind")
  if search["kind"] == WINDOWS:
    fields_lib.check_fields(search, {"width": int}, where)
    if not 1 <= search["width"] <= len(units):
      raise ValueError(f"{where}: width is {search['width']}; allowed: 1 to {len(units)}.")
  if search["kind"] != GREEDY:
    return
  fields_lib.check_fields(search, _GREEDY, where)
  fields_lib.check_one_of(search["start"], STARTS, f"{where}: start")
  fields_lib.check_fields(search["rule"], {"kind": str}, f"{where}: rule")
  fields_lib.check_one_of(search["rule"]["kind"], RULES, f"{where}: rule.kind")
  _check_units(search["chosen"], units, f"{where}: chosen")
  _check_accuracy({"score": None} | search, "score", where, maybe=True)
  for i, step in enumerate(search["steps"]):
    place = f"{where}: steps[{i}]"
    fields_lib.check_fields(step, _STEP, place)
    _check_accuracy(step, "score", place)
    for key in ("base", "chosen"):
      _check_units(step[key], units, f"{place}: {key}")
    for j, tried in enumerate(step["tried"]):
      fields_lib.check_fields(tried, {"units": list}, f"{place}: tried[{j}]")
      _check_units(tried["units"], units, f"{place}: tried[{j}].units")
      _check_accuracy(tried, "mean", f"{place}: tried[{j}]")


def _check_list(
  entries: Any, where: str, check_entry: Callable[[Any, str], None], *, least: int = 0
) -> None:
  if not isinstance(entries, list) or len(entries) < least:
    raise ValueError(f"{where} is {entries!r}, it has to be a list of {least} or more.")
  for i, entry in enumerate(entries):
    check_entry(entry, f"{where}[{i}]")


def _check_sizes(record: Row, where: str) -> None:
  data = {"train": str, "class_names": list, "num_test": int, "test": str}
  fields_lib.check_fields(record["data"], data, f"{where}: data")
  fields = {"sizes": list, "map": (dict, type(None)), "crossover": (dict, type(None))}
  fields_lib.check_fields(record, fields, where)
  _check_list(record["sizes"], f"{where}: sizes", _check_size, least=1)
  sizes = [size["size"] for size in record["sizes"]]
  if sorted(set(sizes)) != sizes or sizes[0] < 1:
    raise ValueError(f"{where}: sizes are {sizes}; they have to be positive and to rise.")
  if record["crossover"] is not None:
    fields_lib.check_fields(record["crossover"], {"text": str}, f"{where}: crossover")
  if record["map"] is not None:
    _check_map(record["map"], sizes, f"{where}: map")


def _check_size(size: Any, where: str) -> None:
  fields_lib.check_fields(size, _SIZE, where)
  _check_folder(size["folder"], where)
  _check_list(size["methods"], f"{where}: methods", _check_size_method, least=1)
  if not all(isinstance(unit, str) for unit in size.get("chosen", ())):
    raise ValueError(f"{where}: chosen is {size['chosen']!r}, it has to be a list of units.")
  for name, entry in size["against_ft"].items():
    _check_estimate(entry, f"{where}: against_ft.{name}", least=-1.0)


def _check_size_method(method: Any, where: str) -> None:
  fields_lib.check_fields(method, _SIZE_METHOD, where)
  _check_estimate(method, where, key="accuracy")
  for i in range(len(method["by_seed"])):
    _check_accuracy(dict(enumerate(method["by_seed"])), i, f"{where}: by_seed")


def _check_map(entry: Row, sizes: Sequence[int], where: str) -> None:
  fields_lib.check_fields(entry, {"units": list, "rows": list, "head": list}, where)

  def check_head(row: Any, place: str) -> None:
    fields_lib.check_fields(row, {"size": int}, place)
    fields_lib.check_one_of(row["size"], sizes, f"{place}: size")
    _check_estimate(row, place)

  def check_row(row: Any, place: str) -> None:
    check_head(row, place)
    fields_lib.check_fields(row, {"unit": str, "by_fold": list}, place)
    fields_lib.check_one_of(row["unit"], entry["units"], f"{place}: unit")
    _check_folds(row, len(row["by_fold"]), place)

  _check_list(entry["rows"], f"{where}.rows", check_row)
  _check_list(entry["head"], f"{where}.head", check_head)


def _check_corruptions(record: Row, where: str) -> None:
  units, num_folds = _check_candidates(record, where), _check_folded_data(record, where)
  fields_lib.check_fields(record, {"rows": list}, where)

  def check_row(row: Any, place: str) -> None:
    fields_lib.check_fields(row, _ROW, place)
    _check_folder(row["folder"], place)
    _check_units(row["chosen"], units, f"{place}: chosen")
    for key in ("head", "all", "certificate", "test"):
      fields_lib.check_fields(row, {key: (dict, type(None))}, place)
    for key in ("head", "all"):
      if row[key] is not None:
        _check_estimate(row[key], f"{place}: {key}")
    _check_certificate(row["certificate"], units, f"{place}: certificate")
    _check_order(row["order"], units, f"{place}: order")
    for i, point in enumerate(row["profile"]):
      fields_lib.check_fields(point, {"unit": str, "by_fold": list}, f"{place}: profile[{i}]")
      fields_lib.check_one_of(point["unit"], units, f"{place}: profile[{i}].unit")
      _check_estimate(point, f"{place}: profile[{i}]")
      _check_folds(point, num_folds, f"{place}: profile[{i}]")
    for name, entry in (row["test"] or {}).items():
      _check_estimate(entry, f"{place}: test.{name}", key="accuracy")

  _check_list(record["rows"], f"{where}: rows", check_row, least=1)


def _check_order(order: Sequence[Any], units: Units, where: str) -> None:
  for i, step in enumerate(order):
    fields_lib.check_fields(step, {"unit": str, "taken": bool}, f"{where}[{i}]")
    fields_lib.check_one_of(step["unit"], units, f"{where}[{i}].unit")
    _check_accuracy(step, "score", f"{where}[{i}]")
