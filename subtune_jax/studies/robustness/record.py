"""The record of a robustness study, a comparison's with the entry "robustness".

Declared, checked, and asked for what tables and figures need. Nothing here needs jax.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Annotated, Any, Final, Literal, NotRequired, TypedDict

import msgspec
import numpy as np

from subtune_jax.report import estimate as estimate_lib
from subtune_jax.studies import fields
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import summary as summary_lib

Row = Mapping[str, Any]
ENTRY: Final = "robustness"
PROBE = "lp"
ORACLE = "oracle"
RULES = {"last": "Last epoch", "early_stopping": "Early stopping", ORACLE: "Oracle"}

# How far a feature moved, means over images: "absolute", "relative", "cosine", "cka"; null where
# it is not defined.
Distortion = dict[str, float | None]
Score = TypedDict(
  "Score", {"mean": float, "by_seed": list[float], "90": fields.Ends, "95": fields.Ends}
)


class Epoch(TypedDict):
  """With what was chosen by, such as "validation_loss"."""

  stage: int
  epoch: int
  accuracy: dict[str, float]  # by set, validation among them
  distortion: dict[str, Distortion]  # of the last unit, by set


class Training(TypedDict):
  key: str  # in the ledger
  method: str
  learning_rate: float
  seed: int
  moved: float | None  # see `compare.record`
  epochs: Annotated[list[Epoch], msgspec.Meta(min_length=1)]  # without those that diverged


class Selection(TypedDict):  # what a rule chose for a method
  rule: Literal["last", "early_stopping", "oracle"]
  oracle: bool  # it read test labels
  method: str
  learning_rate: float
  at_edge: bool
  epochs: list[int]  # by seed
  score: float  # what it went by
  accuracy: dict[str, Score]  # by set, and the mean out of distribution


class OnLine(TypedDict):  # the network between the probe (alpha 0) and a training (1)
  seed: int
  alpha: float
  accuracy: dict[str, float]


class ProbeSteps(TypedDict):  # LP-FT from a probe that was stopped early
  steps: int
  seed: int
  probe: dict[str, Score]
  tuned: dict[str, Score]


class Recommendation(TypedDict):  # see `robustness.recommend`
  method: str
  among: list[str]
  strength: str
  reasons: list[str]


class Entry(TypedDict):
  validation: str  # the set's name
  rule: str  # of figures and recommendation
  units: list[str]
  num_images: NotRequired[dict[str, int]]
  trainings: list[Training]
  selections: list[Selection]
  blocks: dict[str, dict[str, dict[str, list[Distortion]]]]  # method, set, unit, seed
  interpolation: dict[str, list[OnLine]]  # by method
  probe_steps: list[ProbeSteps]
  shift: dict[str, float | None]  # proxy A-distance of each shifted set
  recommendation: Recommendation


class Record(compare_record.Record):
  robustness: Entry


@dataclasses.dataclass(frozen=True)
class Study:
  """A checked record of a study, from `of`."""

  record: Record

  @property
  def entry(self) -> Entry:
    return self.record[ENTRY]

  @property
  def rule(self) -> str:
    """The rule of the figures and of the recommendation."""
    return self.entry["rule"]

  @property
  def rules(self) -> list[str]:
    """Rules with a table, the honest ones first."""
    found = dict.fromkeys(row["rule"] for row in self.entry["selections"])
    return sorted(found, key=lambda rule: rule == ORACLE)

  @property
  def validation(self) -> str:
    return self.entry["validation"]

  @property
  def id(self) -> str:
    """The test set in distribution."""
    return self.record["data"]["id"]

  @property
  def ood(self) -> list[str]:
    """The shifted test sets."""
    return list(self.record["data"]["ood"])

  @property
  def methods(self) -> list[str]:
    return [method["name"] for method in self.record["methods"]]

  @property
  def tuned(self) -> list[str]:
    """Methods that move features, all but the probe."""
    return [name for name in self.methods if name != PROBE]

  @property
  def titles(self) -> dict[str, str]:
    return {method["name"]: method["title"] for method in self.record["methods"]}

  @property
  def columns(self) -> dict[str, str]:
    """Key of an accuracy in a selection -> its title; in distribution first, the mean last."""
    short = compare_record.short_names([self.id, *self.ood])
    found = {self.id: f"{short[self.id]} (ID)"} | {name: short[name] for name in self.ood}
    return found | ({summary_lib.MEAN_OOD: summary_lib.MEAN_OOD} if len(self.ood) > 1 else {})

  @property
  def ood_column(self) -> str | None:
    """Key of the accuracy out of distribution: the mean where there are several sets."""
    return list(self.columns)[-1] if self.ood else None

  def title_of(self, column: str) -> str:
    """How figures call `id` and `ood_column`."""
    if column == self.id:
      return self.columns[self.id]
    return self.columns[column] + ("" if column == summary_lib.MEAN_OOD else " (OOD)")

  def method(self, name: str) -> compare_record.Method:
    return next(method for method in self.record["methods"] if method["name"] == name)

  def selection(self, rule: str, method: str) -> Selection:
    """What a rule chose for a method, and its accuracies."""
    rows = self.entry["selections"]
    return next(row for row in rows if (row["rule"], row["method"]) == (rule, method))

  def trainings(self, method: str) -> list[Training]:
    """All trainings of a method, by learning rate and seed."""
    found = [row for row in self.entry["trainings"] if row["method"] == method]
    return sorted(found, key=lambda row: (row["learning_rate"], row["seed"]))

  def picked(self, rule: str, method: str) -> list[Training]:
    """The trainings at the rate that a rule chose, by seed."""
    rate = self.selection(rule, method)["learning_rate"]
    return [row for row in self.trainings(method) if row["learning_rate"] == rate]

  def picked_epochs(self, rule: str, method: str) -> list[Epoch]:
    """The epoch of each of `picked` that the rule chose, in the last stage."""
    numbers = self.selection(rule, method)["epochs"]
    return [
      next(e for e in last_stage(row) if e["epoch"] == number)
      for row, number in zip(self.picked(rule, method), numbers, strict=True)
    ]

  def out(self, by_set: Mapping[str, float]) -> float:
    """Mean over the shifted sets, each with the same weight; NaN without any."""
    return float(np.mean([by_set[name] for name in self.ood])) if self.ood else math.nan

  def accuracy(self, epoch: Epoch, *, ood: bool) -> float:
    """Test accuracy after an epoch, a fraction: in distribution, or the mean out of it."""
    return self.out(epoch["accuracy"]) if ood else epoch["accuracy"][self.id]

  def distortion(self, by_set: Mapping[str, Distortion], kind: str, *, ood: bool) -> float:
    """One kind of distortion, on the test images of one side; nan where it is not defined."""
    values = {name: fields.number(by_set[name][kind]) for name in (self.id, *self.ood)}
    return self.out(values) if ood else values[self.id]

  def block_distortion(self, method: str, kind: str, *, ood: bool) -> np.ndarray:
    """[seeds, units] distortion at the setting and epoch of `rule`."""
    blocks = self.entry["blocks"][method]
    count = len(blocks[self.id][self.entry["units"][0]])
    return np.array([
      [
        self.distortion({name: rows[unit][i] for name, rows in blocks.items()}, kind, ood=ood)
        for unit in self.entry["units"]
      ]
      for i in range(count)
    ])  # fmt: skip


def last_stage(training: Training) -> list[Epoch]:
  """Its epochs in the last stage."""
  epochs = training["epochs"]
  return [epoch for epoch in epochs if epoch["stage"] == epochs[-1]["stage"]]


def stage_starts(training: Training) -> list[int]:
  """Positions in `epochs` at which a stage begins: [0] for a method of one stage."""
  stages = [epoch["stage"] for epoch in training["epochs"]]
  return [i for i, stage in enumerate(stages) if i == 0 or stage != stages[i - 1]]


def estimate(score: Score, level: Literal["90", "95"] = "95") -> estimate_lib.Estimate:
  """An accuracy of a selection with its interval."""
  return estimate_lib.Estimate(score["mean"], *map(fields.number, score[level]))


def of(record: Any, where: str = "record") -> Study:
  """The study in a record, that of the file `where`.

  Raises:
    ValueError: it is of another study, lacks a field, or its parts contradict each other.
  """
  fields.check_record(record, Record, where, "robustness")
  study, entry = Study(record), record[ENTRY]
  sets = [entry["validation"], study.id, *study.ood]
  for row in entry["trainings"]:
    for epoch in row["epochs"]:
      for kind in ("accuracy", "distortion"):
        fields.check_has(epoch[kind], sets, f"{ENTRY}: training {row['key']!r}: {kind}")
  fields.check_one_of(entry["recommendation"]["method"], study.methods, f"{ENTRY}: recommendation")
  _check_selections(study)
  return study


def _check_selections(study: Study) -> None:
  """Every rule has chosen for every method, a training and an epoch that are there."""
  for row in study.entry["selections"]:
    where = f"{ENTRY}: selection {row['rule']!r} of {row['method']!r}"
    fields.check_one_of(row["method"], study.methods, f"{where}: method")
    if row["oracle"] != (row["rule"] == ORACLE):
      raise ValueError(f"{where}: oracle is {row['oracle']}; only {ORACLE!r} reads test labels.")
    fields.check_has(row["accuracy"], [study.validation, *study.columns], f"{where}: accuracy")
    picked = study.picked(row["rule"], row["method"])
    if len(picked) != len(row["epochs"]):
      raise ValueError(
        f"{where}: {len(row['epochs'])} epochs and {len(picked)} trainings at learning rate "
        f"{row['learning_rate']:g}; there has to be one epoch of each."
      )
    for training, number in zip(picked, row["epochs"], strict=True):
      fields.check_one_of(number, [e["epoch"] for e in last_stage(training)], f"{where}: epoch")
  wanted = {(rule, method) for rule in [study.rule, *study.rules] for method in study.methods}
  found = {(row["rule"], row["method"]) for row in study.entry["selections"]}
  if wanted - found:
    rule, method = min(wanted - found)
    raise ValueError(f"{ENTRY}: rule {rule!r} has no selection of method {method!r}.")
  fields.check_has(study.entry["blocks"], study.methods, f"{ENTRY}: blocks")
