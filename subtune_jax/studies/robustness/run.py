"""LP-FT's protocol: every epoch on every test set, choices afterwards, distortion, interpolation.

A comparison (`compare.py`) in which each training is also read on all test sets after every epoch.
What was seen goes to WORKDIR/epochs/KEY/STAGE-EPOCH.npz; choices among learning rates and epochs
are made afterwards on those files, by validation accuracy, and by the oracle that the paper asks
about, which is marked as one.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
import pathlib
import sys
from typing import Any, TextIO

import numpy as np

from subtune_jax import data, methods
from subtune_jax.data import splits
from subtune_jax.robustness import (
  distortion,
  domain_gap,
  interpolation,
  recommend,
  selection,
)
from subtune_jax.runner import examples, trainings
from subtune_jax.statistics import criteria, intervals
from subtune_jax.studies import epoch_files
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import run as compare
from subtune_jax.studies.compare import summary as summary_lib
from subtune_jax.studies.robustness import config as robustness_config
from subtune_jax.studies.robustness import page as robustness_page
from subtune_jax.studies.robustness import record as study_lib
from subtune_jax.training import evaluate, export, trainable_split

Row = dict[str, Any]
VALIDATION = "validation"
LEVELS = (0.90, 0.95)


def run(
  config: Any, workdir: str | os.PathLike, *, command: str = "", stream: TextIO | None = None
) -> Row:
  """Runs the study, or goes on with one that was killed.

  Args:
    config: from `robustness_config.default()`.
    workdir: where everything is written.
    command: how the run was started, for the report.
    stream: where progress and the final table go; standard output by default.

  Returns:
    The record, as written to WORKDIR/results.json: a comparison's, and "robustness".

  Raises:
    ValueError: see `compare.run` and `robustness_config.check`.
  """
  robustness_config.check(config)
  state = compare.start(config, workdir, stream or sys.stdout, changeable=True)
  seen = _Seen(state)
  state.watch = epoch_files.watch(state.workdir, seen.look)
  chosen = compare.train_all(state)
  record = compare.finish(
    state, chosen, command, more=lambda: {"robustness": _study(state, seen, chosen)},
    report=robustness_page.report,
  )  # fmt: skip
  return record


@dataclasses.dataclass(frozen=True)
class _Set:
  """Images that every epoch is read on: a test set, or the validation split."""

  name: str
  examples: data.Dataset
  before: Mapping[str, np.ndarray]  # unit -> pretrained features


class _Seen:
  """Reads networks on all sets, and keeps what it saw of every epoch."""

  def __init__(self, state: trainings.Run):
    self.state = state
    self.units = state.engine.model.block_names
    sets = {VALIDATION: state.validation}
    most = state.config.robustness.test_images
    for test in state.tests:
      sets[test.name] = _drawn(test, most) if 0 < most < len(test) else test
    self.sets = [
      _Set(name, examples, self._outputs(state.pretrained.variables, examples))
      for name, examples in sets.items()
    ]

  def _outputs(self, variables: Any, examples: data.Dataset) -> Mapping[str, np.ndarray]:
    options = self.state.engine.options()
    del options["in_pieces"]
    return distortion.unit_outputs(self.state.engine.model, variables, examples.images, **options)

  def look(self, variables: Any) -> dict[str, np.ndarray]:
    """Arrays of one network: "logits/SET" [n, classes], "absolute/SET", "relative/SET" and
    "cosine/SET" [units, n], "cka/SET" [units]."""
    found = {}
    for own in self.sets:
      after = self._outputs(variables, own.examples)
      logits = after[trainable_split.HEAD]
      if own.name != VALIDATION:
        logits = examples.masked(self.state.config, own.examples, logits)
      found[f"logits/{own.name}"] = logits
      rows = [distortion.distances(own.before[unit], after[unit]) for unit in self.units]
      for key in ("absolute", "relative", "cosine"):
        found[f"{key}/{own.name}"] = np.stack([getattr(r, key) for r in rows]).astype(np.float32)
      found[f"cka/{own.name}"] = np.array(
        [_cka(own.before[unit], after[unit]) for unit in self.units]
      )
    return found

  def right(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Set -> whether each answer is right, [n] bool."""
    return {
      own.name: evaluate.predictions(arrays[f"logits/{own.name}"]) == own.examples.labels
      for own in self.sets
    }


def _cka(before: np.ndarray, after: np.ndarray) -> float:
  """Linear CKA; NaN where a network has collapsed, so that all features of a side are equal."""
  if distortion.is_constant(before) or distortion.is_constant(after):
    return float("nan")
  return distortion.linear_cka(before, after)


def _accuracies(right: Mapping[str, np.ndarray]) -> Row:
  """Set -> accuracy."""
  return {name: float(np.mean(values)) for name, values in right.items()}


def _drawn(test: data.Dataset, number: int) -> data.Dataset:
  """A fixed draw of so many images, by class, in their order."""
  return test.subset(splits.nested_subsets(test.labels, [number], 0, test.groups)[0])


@dataclasses.dataclass(frozen=True)
class _Epoch:
  """What was seen of a training after one epoch."""

  path: pathlib.Path
  row: Row  # stage, epoch, accuracy by set, distortion by set
  right: Mapping[str, np.ndarray]  # set -> [n] bool


def _epochs(state: trainings.Run, seen: _Seen, row: Row) -> list[_Epoch]:
  """Every epoch of a training, in order."""
  found, own = [], criteria.of(state.config)
  chosen_by = [name for name in criteria.fields(own) if name != "validation_accuracy"]
  for past in row["history"]:
    path = epoch_files.path(state.workdir, row["key"], past)
    arrays = epoch_files.read(path)
    moved = {own.name: _distortion(arrays, own.name, -1) for own in seen.sets}
    right = seen.right(arrays)
    found.append(_Epoch(path, {
      "stage": past["stage"], "epoch": past["epoch"], "accuracy": _accuracies(right),
      "distortion": moved, **{k: past[k] for k in chosen_by},
    }, right))  # fmt: skip
  return found


def _distortion(arrays: Mapping[str, np.ndarray], name: str, unit: int) -> study_lib.Distortion:
  """Means over the images of a set of how far one unit's feature moved."""
  kinds = ("absolute", "relative", "cosine")
  means = {kind: float(np.mean(arrays[f"{kind}/{name}"][unit], dtype=np.float64)) for kind in kinds}
  cka = float(arrays[f"cka/{name}"][unit])
  return means | {"cka": None if np.isnan(cka) else cka}


def _study(state: trainings.Run, seen: _Seen, chosen: Mapping[str, Row]) -> study_lib.Entry:
  """The entry "robustness" of the record."""
  state.progress.line("choosing on the records")
  trained = {
    name: {row["key"]: (row, _epochs(state, seen, row)) for row in _trainings(result)}
    for name, result in chosen.items()
  }
  ood = [own.name for own in seen.sets[2:]]
  choices = {
    name: _choices(_whole_rates(rows, chosen[name]), ood, criteria.of(state.config))
    for name, rows in trained.items()
  }
  rule = state.config.robustness.selection
  final = {name: _chosen_epochs(trained[name], choices[name][rule]) for name in trained}
  return {
    "validation": VALIDATION, "rule": rule, "units": list(seen.units),
    "num_images": {own.name: len(own.examples) for own in seen.sets},
    "trainings": [
      {"key": key, "method": name, "learning_rate": row["learning_rate"], "seed": row["seed"],
       "moved": row["moved"], "epochs": [epoch.row for epoch in epochs]}
      for name, rows in trained.items()
      for key, (row, epochs) in rows.items()
    ],
    "selections": _selections(trained, choices, seen),
    "blocks": {name: _by_block(epochs, seen) for name, epochs in final.items()},
    "interpolation": {
      name: _interpolation(state, seen, chosen["lp"]["chosen"][0], chosen[name])
      for name in state.config.robustness.interpolate
    },
    "probe_steps": _probe_steps(state, seen, chosen),
    "shift": (shift := _shift(seen)),
    "recommendation": _recommendation(seen, final, shift),
  }  # fmt: skip


def _trainings(result: Row) -> list[Row]:
  """Every finished training of a method, each once."""
  rows = {row["key"]: row for row in [*result["tried"], *result["chosen"]] if row["history"]}
  return list(rows.values())


def _whole_rates(rows: Mapping[str, Any], result: Row) -> dict[str, Any]:
  """Without the learning rates of which a training diverged."""
  bad = {row["learning_rate"] for row in result["tried"] if not row["history"]}
  return {key: found for key, found in rows.items() if found[0]["learning_rate"] not in bad}


def _last_stage(epochs: Sequence[_Epoch]) -> list[_Epoch]:
  last = epochs[-1].row["stage"]
  return [epoch for epoch in epochs if epoch.row["stage"] == last]


def _choices(
  rows: Mapping[str, Any], ood: Sequence[str], criterion: criteria.Criterion
) -> dict[str, selection.Choice]:
  """Rule -> choice for one method."""
  trainings = []
  for row, epochs in rows.values():
    own = [
      selection.Epoch(
        criterion.score({"validation_accuracy": e.row["accuracy"][VALIDATION]} | e.row),
        e.row["accuracy"],
        e.row["validation_loss"],
      )
      for e in _last_stage(epochs)
    ]
    trainings.append(selection.Training(row["learning_rate"], row["seed"], tuple(own)))
  made = {rule: selection.choose(trainings, rule) for rule in selection.RULES}
  if ood:
    made[selection.ORACLE] = selection.choose(trainings, selection.ORACLE, oracle_sets=ood)
  return made


def _chosen_epochs(rows: Mapping[str, Any], choice: selection.Choice) -> list[_Epoch]:
  """The epoch of each seed, by seed."""
  found = {}
  for row, epochs in rows.values():
    if row["learning_rate"] == choice.learning_rate and row["seed"] in choice.epochs:
      found[row["seed"]] = _last_stage(epochs)[choice.epochs[row["seed"]]]
  return [found[seed] for seed in sorted(found)]


def _selections(trained, choices, seen: _Seen) -> list[study_lib.Selection]:
  """A row per rule and method: what was chosen, and its accuracy on every set with intervals."""
  rules = list(dict.fromkeys(rule for made in choices.values() for rule in made))
  rows = []
  for rule in rules:
    epochs = {name: _chosen_epochs(trained[name], choices[name][rule]) for name in trained}
    scores = _scores(epochs, seen)
    for name in trained:
      choice = choices[name][rule]
      rows.append({
        "rule": rule, "oracle": choice.oracle, "method": name,
        "learning_rate": choice.learning_rate, "at_edge": choice.at_edge,
        "epochs": [epoch.row["epoch"] for epoch in epochs[name]], "score": choice.score,
        "accuracy": scores[name],
      })  # fmt: skip
  return rows


def _correct(epochs: Sequence[_Epoch], name: str) -> np.ndarray:
  """Right answers [seeds, n] on a set."""
  return np.stack([epoch.right[name] for epoch in epochs])


def _scores(
  epochs: Mapping[str, Sequence[_Epoch]], seen: _Seen
) -> dict[str, dict[str, study_lib.Score]]:
  """Method -> column -> {"mean", "by_seed", "90": [low, high], "95": [low, high]}.

  Columns are the sets, and the mean over the shifted ones, every set with the same weight.
  """
  correct = {
    own.name: {name: _correct(found, own.name) for name, found in epochs.items()}
    for own in seen.sets
  }
  groups = {own.name: own.examples.groups for own in seen.sets}
  ood = [own.name for own in seen.sets[2:]]
  if len(ood) > 1:
    correct[summary_lib.MEAN_OOD], groups[summary_lib.MEAN_OOD] = summary_lib.equal_weights(
      [correct[name] for name in ood], [groups[name] for name in ood]
    )
  scores = {method: {} for method in epochs}
  for column, by_method in correct.items():
    found = {
      level: intervals.paired_bootstrap(by_method, groups[column], level=level) for level in LEVELS
    }
    for method, right in by_method.items():
      scores[method][column] = {
        "mean": float(right.mean()), "by_seed": right.mean(axis=1).tolist(),
        **{f"{100 * level:.0f}": list(found[level].intervals[method]) for level in LEVELS},
      }  # fmt: skip
  return scores


def _by_block(epochs: Sequence[_Epoch], seen: _Seen) -> Row:
  """Set -> unit -> distortion of each seed."""
  arrays = [epoch_files.read(epoch.path) for epoch in epochs]
  return {
    own.name: {
      unit: [_distortion(a, own.name, index) for a in arrays]
      for index, unit in enumerate(seen.units)
    }
    for own in seen.sets
  }


def _interpolation(
  state: trainings.Run, seen: _Seen, probe: Row, result: Row
) -> list[study_lib.OnLine]:
  """Accuracy on every set along the line from the probe to each chosen training."""
  pretrained = state.pretrained.variables
  start, _ = export.load_task(state.workdir / "tasks" / probe["key"], pretrained)
  rows = []
  for row in result["chosen"]:
    end, _ = export.load_task(state.workdir / "tasks" / row["key"], pretrained)
    state.progress.line(f"{result['name']} seed={row['seed']}: interpolating with the probe")
    for alpha in np.linspace(0, 1, state.config.robustness.num_alphas):
      between = interpolation.interpolate(start, end, float(alpha))
      outputs = {
        f"logits/{own.name}": examples.masked(
          state.config, own.examples, state.engine.predict(between, own.examples.images)
        )
        for own in seen.sets
      }
      accuracy = _accuracies(seen.right(outputs))
      rows.append({"seed": row["seed"], "alpha": float(alpha), "accuracy": accuracy})
  return rows


def _probe_steps(
  state: trainings.Run, seen: _Seen, chosen: Mapping[str, Row]
) -> list[study_lib.ProbeSteps]:
  """LP-FT at its chosen rate from probes that were stopped early, on the first seed."""
  rows = []
  for steps in state.config.robustness.probe_steps:
    row = trainings.train_with_probe_steps(state, chosen["lp_ft"], steps)
    if not row["history"]:
      continue
    epochs = _epochs(state, seen, row)
    scores = _scores({"probe": epochs[:1], "tuned": epochs[-1:]}, seen)
    rows.append({"steps": steps, "seed": row["seed"], **scores})
  return rows


def _shift(seen: _Seen) -> Row:
  """Shifted set -> proxy A-distance of its images from the validation images; no label is read."""
  last = seen.units[-1]
  here = seen.sets[0].before[last]
  return {own.name: domain_gap.proxy_a_distance(here, own.before[last]) for own in seen.sets[2:]}


def _recommendation(
  seen: _Seen, final: Mapping[str, Sequence[_Epoch]], shift: Row
) -> study_lib.Recommendation:
  correct = {name: _correct(epochs, VALIDATION) for name, epochs in final.items()}
  moved = {
    name: float(np.mean([e.row["distortion"][VALIDATION]["relative"] for e in epochs]))
    for name, epochs in final.items()
  }
  short = compare_record.short_names(list(shift))
  found = recommend.recommend(
    correct, seen.sets[0].examples.groups, moved, {short[k]: v for k, v in shift.items()},
    {name: own.title for name, own in methods.DECLARED.items()},
  )  # fmt: skip
  return dataclasses.asdict(found)
