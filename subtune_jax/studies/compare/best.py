"""The model folder of a comparison: the method and the seed that validation chose, or another."""

from collections.abc import Mapping, Sequence
import os
import pathlib
from typing import Any

import numpy as np

from subtune_jax import files, weights
from subtune_jax.calibration import scaling
from subtune_jax.data import choices
from subtune_jax.runner import model_folder
from subtune_jax.statistics import criteria, intervals
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.training import engine as engine_lib

Row = dict[str, Any]
FOLDER = "best"


def choose(record: Mapping[str, Any], method: str | None = None, seed: int | None = None) -> Row:
  """A chosen training of a record.

  Args:
    record: as in results.json.
    method: its name; None is that of the best mean over seeds of what the run's choices went by,
      validation accuracy by default (then the least mean loss of its last epoch, then the first).
    seed: None is the best one by the same.

  Raises:
    ValueError: the run has no such method or seed.
  """
  names = [row["name"] for row in record["methods"]]
  criterion = criteria.of(record["config"])
  if method is None:
    method = max(names, key=lambda name: _score(_of(record, name), criterion))
  choices.check("method of this run", method, names)
  rows = _of(record, method)
  if seed is None:
    return max(rows, key=lambda row: _score([row], criterion))
  own = [row for row in rows if row["seed"] == seed]
  if not own:
    seeds = ", ".join(str(row["seed"]) for row in rows)
    raise ValueError(f"{method} has no training with seed {seed}; seeds: {seeds}")
  return own[0]


def _of(record: Mapping[str, Any], method: str) -> list[Row]:
  return [row for row in record["trainings"] if row["method"] == method and row["chosen"]]


def _score(rows: Sequence[Mapping[str, Any]], criterion: criteria.Criterion) -> tuple[float, float]:
  """Mean of the criterion, larger being better, and minus the mean loss; -inf for the unknown."""
  losses = [row["history"][-1].get("validation_loss") if row["history"] else None for row in rows]
  values = losses
  if criterion.field != "validation_loss":
    values = [row[criterion.field] for row in rows]
  return tuple(
    -np.inf if any(value is None for value in own) else sign * float(np.mean(own))
    for sign, own in ((criterion.sign, values), (-1, losses))
  )


def write(
  run: compare_record.Run, row: Mapping[str, Any], config: Any, engine: engine_lib.Engine,
  pretrained: weights.Pretrained, path: str | os.PathLike,
) -> pathlib.Path:  # fmt: skip
  """Writes the model folder of one training.

  Args:
    run: the record that was read.
    row: the training, of `choose`.
    config: of the run.
    engine: of the run, before a method changed its network.
    pretrained: what the run started from.
    path: of the folder.

  Errors: see `deploy.folder.save` and `training.export.load_task`.
  """
  said = {
    "calibration": _calibration(run, row),
    "trained": _trained(run.record, row),
    "figures": _figures(run, row),
    "versions": dict(run.record["versions"]),
    "created": run.record["created"],
  }
  task = run.workdir / "tasks" / row["key"]
  names = run.record["data"]["class_names"]
  return model_folder.write(path, config, engine, pretrained, row["method"], task, names, said)


def _trained(record: Mapping[str, Any], row: Mapping[str, Any]) -> Row:
  """What was trained, of what, on what."""
  own = next(each for each in record["methods"] if each["name"] == row["method"])
  data, backbone = record["data"], record["backbone"]
  return {
    "method": row["method"], "title": own["title"], "seed": row["seed"],
    "setting": own["setting"], "value": own["learning_rate"], "stages": own["stages"],
    "weights": backbone["weights"], "weights_sha256": backbone["sha256"],
    "data": data["train"], "num_train": data["num_train"],
    "num_validation": data["num_validation"], "run": record["name"], "key": row["key"],
    "chosen_by": f"validation {criteria.of(record['config']).title}",
    "validation_accuracy": row["validation_accuracy"],
  }  # fmt: skip


def _figures(run: compare_record.Run, row: Mapping[str, Any]) -> dict[str, Row]:
  """Of each test set this training's accuracy, with the interval that its images give."""
  found = {}
  for name, test in run.tests.items():
    index = min(run.seeds.index(row["seed"]), len(test.predicted[row["method"]]) - 1)
    right = test.correct(row["method"])[index : index + 1]
    low, high = intervals.paired_bootstrap({"own": right}, test.groups).intervals["own"]
    accuracy = row["test"][name]["accuracy"]
    found[name] = {"images": len(test.labels), "accuracy": accuracy, "low": low, "high": high}
  return found


def _calibration(run: compare_record.Run, row: Mapping[str, Any]) -> Row:
  """The temperature that fits the validation logits of the last epoch, or why there is none."""
  read = _validation(run.workdir, row)
  if read is None:
    return {"temperature": None, "why": "the training had no validation images"}
  try:
    return {"temperature": float(scaling.fit_temperature(*read))}
  except ValueError as e:
    return {"temperature": None, "why": " ".join(str(e).split())}


def _validation(workdir: pathlib.Path, row: Mapping[str, Any]) -> tuple[Any, Any] | None:
  """(logits, labels) of the validation images after the last epoch; None where there are none."""
  if not row["history"]:
    return None
  last = row["history"][-1]
  where = workdir / "logits/validation"
  path = where / row["key"] / f"{last['stage']}-{last['epoch']}.npz"
  if not path.is_file():
    return None
  wanted = "to fit a temperature"
  labels = files.read_npz(where / "examples.npz", wanted, ["labels"])["labels"]
  return files.read_npz(path, wanted, ["logits"])["logits"], labels
