"""The numbers of a comparison: accuracies with intervals, differences from a reference, costs.

`summarize` does the statistics once; the terminal, the page and the figures all show its numbers.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from subtune_jax.report import estimate, explosion
from subtune_jax.statistics import intervals, measures, power
from subtune_jax.studies import fields
from subtune_jax.studies.compare import record as record_lib

MEAN_OOD = "mean OOD"


@dataclasses.dataclass(frozen=True)
class Column:
  """One accuracy: of a test set, or the mean over the out-of-distribution ones."""

  key: str
  title: str
  tests: tuple[str, ...]
  in_distribution: bool


@dataclasses.dataclass(frozen=True)
class Row:
  """What one method scored and cost; means over its chosen trainings.

  Attributes:
    name: of the method.
    title: of the method.
    accuracy: per column key.
    trained_params: parameters trained in its largest stage.
    seconds: wall time of one training.
    compile_seconds: time of one training spent compiling.
    setting: which number was chosen on the validation split: "learning_rate" or "l2".
    value: the value chosen.
    at_edge: whether it is the first or last value tried, so that a better one may lie outside.
    moved: |theta - theta0| / |theta0| over the backbone, a fraction.
    step_bytes: memory of a step on one device, the largest of its trainings.
    step_milliseconds: time of a step.
    fork_macs: multiply-adds that one more such task adds to the inference of one image. These three
      are nan where they are not known, as in older records, and without steps.
    ppt: accuracy in distribution per parameter, see `measures.performance_per_parameter`.
  """

  name: str
  title: str
  accuracy: Mapping[str, estimate.Estimate]
  trained_params: int
  seconds: float
  compile_seconds: float
  setting: str
  value: float
  at_edge: bool
  moved: float
  step_bytes: float = np.nan
  step_milliseconds: float = np.nan
  fork_macs: float = np.nan
  ppt: float = np.nan


@dataclasses.dataclass(frozen=True)
class Summary:
  """All numbers of the report.

  Attributes:
    columns: accuracies, the in-distribution one first.
    rows: methods, in the order of the record.
    reference: method that the others are compared with; None if the run has not got it.
    differences: per method other than the reference and column key, its accuracy minus the
      reference's.
    leaders: per column key the method of highest mean and all those whose difference from it is
      undecided. More than one name: there is no winner.
    num_seeds: trainings per method.
    trained_once: methods with one training only, because another seed would give the same.
    sizes: per test set (images, concepts).
    num_resamples: of the bootstrap.
    unstable: sentences on trainings that diverged or exploded.
    constant: (class name, per column key accuracy) of always answering the training images' largest
      class; None where the record does not know it.
    above_constant: per column key and method, its accuracy minus that.
    undecided: per column key (the recommended one of the leaders, the leader whose mean is furthest
      from its, `power.Power` of their comparison); none where a method leads alone.
    chosen: (method, seed) in the model folder; None in older records.
  """

  columns: tuple[Column, ...]
  rows: tuple[Row, ...]
  reference: str | None
  differences: Mapping[str, Mapping[str, estimate.Estimate]]
  leaders: Mapping[str, tuple[str, ...]]
  num_seeds: int
  trained_once: tuple[str, ...]
  sizes: Mapping[str, tuple[int, int]]
  num_resamples: int
  unstable: tuple[str, ...] = ()
  constant: tuple[str, Mapping[str, estimate.Estimate]] | None = None
  above_constant: Mapping[str, Mapping[str, estimate.Estimate]] = dataclasses.field(
    default_factory=dict
  )
  undecided: Mapping[str, tuple[str, str, power.Power]] = dataclasses.field(default_factory=dict)
  chosen: tuple[str, int] | None = None

  @property
  def titles(self) -> dict[str, str]:
    return {row.name: row.title for row in self.rows}

  def recommended(self, column: str) -> str:
    """The winner, or that of those that cannot be told apart which trains the least."""
    trained = {row.name: row.trained_params for row in self.rows}
    return min(self.leaders[column], key=trained.__getitem__)

  def winner(self, column: str) -> str | None:
    """The method that is above all others in `column`, None while that is undecided."""
    leaders = self.leaders[column]
    return leaders[0] if len(leaders) == 1 else None


def columns(run: record_lib.Run) -> tuple[Column, ...]:
  """The accuracies of a run: in distribution, each other domain, and the mean over those."""
  data = run.record["data"]
  short = record_lib.short_names(list(run.tests))
  ood = tuple(name for name in run.tests if name != data["id"])
  found = [Column(data["id"], f"{short[data['id']]} (ID)", (data["id"],), True)]
  found += [Column(name, short[name], (name,), False) for name in ood]
  if len(ood) > 1:
    found.append(Column(MEAN_OOD, MEAN_OOD, ood, False))
  return tuple(found)


def _scores(
  run: record_lib.Run, column: Column, largest: int | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Per method scores [num_seeds, num_examples] whose mean is the column's accuracy; groups.

  A mean over domains is `equal_weights`. With a class `largest`, `CONSTANT` always answers it.
  """
  tests = [run.tests[name] for name in column.tests]
  correct = [{method: test.correct(method) for method in run.methods} for test in tests]
  if largest is not None:
    for own, test in zip(correct, tests, strict=True):
      own[CONSTANT] = (test.labels == largest)[None]
  return equal_weights(correct, [test.groups for test in tests])


def equal_weights(
  correct: Sequence[Mapping[str, np.ndarray]], groups: Sequence[np.ndarray]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Scores whose mean gives every test set the same weight, however many images it has.

  A concept that several sets show is one group, drawn in all of them together.

  Args:
    correct: of each set, method -> [num_seeds, n] right answers.
    groups: of each set, [n] concepts.

  Returns:
    (method -> [num_seeds, images of all sets], their concepts).
  """
  total = sum(map(len, groups))
  weights = [total / (len(groups) * len(own)) for own in groups]
  scores = {
    method: np.concatenate(
      [w * own[method] for w, own in zip(weights, correct, strict=True)], axis=1
    )
    for method in correct[0]
  }
  return scores, np.concatenate(groups)


def _mean(values: Sequence[float | None]) -> float:
  return float(np.mean([fields.number(value) for value in values]))


def _row(run: record_lib.Run, name: str, accuracy: Mapping[str, estimate.Estimate]) -> Row:
  method, chosen = run.method(name), run.chosen(name)
  steps = [t.get("step") or {"bytes": None, "milliseconds": None} for t in chosen]
  inside = accuracy[run.record["data"]["id"]].mean
  head = run.record.get("backbone", {}).get("head_params", 0)
  return Row(
    name=name,
    title=method["title"],
    accuracy=accuracy,
    trained_params=method["trained_params"],
    seconds=_mean([t["seconds"] for t in chosen]),
    compile_seconds=_mean([t["compile_seconds"] for t in chosen]),
    step_bytes=max(fields.number(step["bytes"]) for step in steps),
    step_milliseconds=_mean([step["milliseconds"] for step in steps]),
    fork_macs=fields.number(method.get("fork_macs")),
    ppt=measures.performance_per_parameter(inside, max(method["trained_params"] - head, 0)),
    setting=method["setting"],
    value=method["learning_rate"],
    at_edge=method["grid_edge"],
    moved=_mean([t["moved"] for t in chosen]),
  )


def _estimates(
  run: record_lib.Run, column: Column, reference: str | None, num_resamples: int
) -> tuple[dict[str, estimate.Estimate], dict[str, estimate.Estimate]]:
  """Per method its accuracy, and per other method the difference from the reference."""
  return _bootstrapped(*_scores(run, column), num_resamples, reference)


def _bootstrapped(
  scores: Mapping[str, np.ndarray], groups: np.ndarray, num_resamples: int,
  reference: str | None = None,
) -> tuple[dict[str, estimate.Estimate], dict[str, estimate.Estimate]]:  # fmt: skip
  """Per method the mean of its scores, and per other method the difference from the reference."""
  found = intervals.paired_bootstrap(
    scores, groups, reference=reference, num_resamples=num_resamples
  )
  means = {m: estimate.Estimate(found.means[m], *found.intervals[m]) for m in scores}
  return means, {m: estimate.Estimate(*values) for m, values in found.differences.items()}


def _leaders(
  run: record_lib.Run, column: Column, accuracy: Mapping[str, estimate.Estimate], num_resamples: int
) -> tuple[str, ...]:
  """The method of highest mean, then those whose difference from it is undecided."""
  order = sorted(accuracy, key=lambda m: -accuracy[m].mean)
  _, differences = _estimates(run, column, order[0], num_resamples)
  return (order[0], *(m for m in order[1:] if differences[m].verdict == estimate.UNDECIDED))


def summarize(run: record_lib.Run, *, reference: str = "lp", num_resamples: int = 2000) -> Summary:
  """All numbers of the report.

  Args:
    run: a checked run.
    reference: the method that the others are compared with; a run without it has no differences.
    num_resamples: of the bootstrap.
  """
  reference = reference if reference in run.methods else None
  accuracy = {method: {} for method in run.methods}
  differences = {method: {} for method in run.methods if reference and method != reference}
  leaders = {}
  for column in columns(run):
    means, against = _estimates(run, column, reference, num_resamples)
    leaders[column.key] = _leaders(run, column, means, num_resamples)
    for method in run.methods:
      accuracy[method][column.key] = means[method]
    for method in differences:
      differences[method][column.key] = against[method]
  sizes = {name: (len(t.labels), len(np.unique(t.groups))) for name, t in run.tests.items()}
  constant, above = _constant(run, num_resamples)
  best = run.record.get("best")
  return Summary(
    columns=columns(run),
    rows=tuple(_row(run, method, accuracy[method]) for method in run.methods),
    reference=reference,
    differences=differences,
    leaders=leaders,
    num_seeds=len(run.seeds),
    trained_once=tuple(m for m in run.methods if len(run.chosen(m)) < len(run.seeds)),
    sizes=sizes,
    num_resamples=num_resamples,
    unstable=tuple(explosion.lines(run.record)),
    constant=constant,
    above_constant=above,
    undecided={
      column.key: found for column in columns(run)
      if (found := _power(run, column, leaders[column.key])) is not None
    },
    chosen=(best["method"], best["seed"]) if best else None,
  )  # fmt: skip


CONSTANT = "always the largest class"


def _constant(
  run: record_lib.Run, num_resamples: int
) -> tuple[Any, dict[str, dict[str, estimate.Estimate]]]:
  """What always answering the training images' largest class scores, and methods above that."""
  counts = run.record["data"].get("train_counts")
  if not counts:
    return None, {}
  largest = int(np.argmax(counts))
  accuracy, above = {}, {}
  for column in columns(run):
    means, above[column.key] = _bootstrapped(
      *_scores(run, column, largest), num_resamples, reference=CONSTANT
    )
    accuracy[column.key] = means[CONSTANT]
  return (run.record["data"]["class_names"][largest], accuracy), above


def _power(
  run: record_lib.Run, column: Column, leaders: Sequence[str]
) -> tuple[str, str, power.Power] | None:
  if len(leaders) < 2:
    return None
  least = min(leaders, key=lambda name: run.method(name)["trained_params"])
  scores, groups = _scores(run, column)
  others = {
    name: power.paired(scores[name], scores[least], groups)
    for name in leaders if name != least
  }  # fmt: skip
  most = max(others, key=lambda name: abs(others[name].difference))
  return least, most, others[most]


def measured(
  run: record_lib.Run, name: str, num_resamples: int = 1000
) -> dict[str, dict[str, estimate.Estimate]]:
  """Measure -> method -> its value on a test set, the mean over seeds, with its interval.

  A measure that the set's labels do not allow is left out.
  """
  test = run.tests[name]
  found = {}
  for measure in measures.MEASURES:
    scores = {m: own[measure.name] for m, own in test.measures.items()}
    if scores and all(np.isfinite(own).all() for own in scores.values()):
      found[measure.name], _ = _bootstrapped(scores, test.groups, num_resamples)
  return found


def sizes_text(summary: Summary) -> str:
  """How many images the test sets have, and groups where several images make one, in a phrase."""

  def text(images: int, groups: int, what: str) -> str:
    return f"{images:,} {what}" + (f" in {groups:,} groups" if groups < images else "")

  if len(set(summary.sizes.values())) == 1:
    where = " in each set" if len(summary.sizes) > 1 else ""
    return text(*next(iter(summary.sizes.values())), "test images") + where
  short = record_lib.short_names(list(summary.sizes))
  return "test sets: " + ", ".join(
    f"{short[n]} {text(i, g, 'images')}" for n, (i, g) in summary.sizes.items()
  )


def interval_text(summary: Summary) -> str:
  """What the 95 % intervals carry and what they leave out."""
  grouped = any(groups < images for images, groups in summary.sizes.values())
  unit = "groups of test images" if grouped else "test images"
  if summary.num_seeds > 1:
    drawn = f"{unit} and over the {summary.num_seeds} seeds"
    carries = (
      f"They carry the chance in which {unit} were drawn and in the seeds of the trainings "
      f"({summary.num_seeds} seeds show that second part only roughly)"
    )
  else:
    drawn = unit
    carries = (
      f"They carry the chance in which {unit} were drawn; with one seed they say nothing "
      "about another training of the same method"
    )
  whole = "; a group is drawn with all its images" if grouped else ""
  return (
    f"95 % intervals by a paired bootstrap over {drawn} ({summary.num_resamples:,} resamples"
    f"{whole}; the same draw for every method). {carries}. They leave "
    "out another training set, another choice of the setting and another backbone, and each "
    "stands for itself: many comparisons at once need wider ones."
  )


def seeds_text(summary: Summary) -> str:
  """ "3 seeds per method", with the exceptions."""
  text = f"{summary.num_seeds} seed{'s' if summary.num_seeds > 1 else ''} per method"
  if summary.trained_once:
    text += f" (one: {', '.join(summary.titles[m] for m in summary.trained_once)})"
  return text


def recalls(
  run: record_lib.Run, name: str, num_resamples: int = 1000
) -> list[tuple[int, int, list[estimate.Estimate]]]:
  """(class, test images, recall of each method) of a test set, the lowest best recall first.

  A class whose images are one group has no interval.
  """
  test = run.tests[name]
  found = []
  for own in np.unique(test.labels):
    here = test.labels == own
    scores = {m: test.correct(m)[:, here] for m in run.methods}
    if len(np.unique(test.groups[here])) < 2:
      values = [estimate.Estimate(float(s.mean()), np.nan, np.nan) for s in scores.values()]
    else:
      values = [*_bootstrapped(scores, test.groups[here], num_resamples)[0].values()]
    found.append((int(own), int(here.sum()), values))
  return sorted(found, key=lambda row: max(value.mean for value in row[2]))
