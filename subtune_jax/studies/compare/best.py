"""The model folder of a comparison: the method and the seed that validation chose, or another."""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

import numpy as np

from subtune_jax import weights
from subtune_jax.calibration import scaling
from subtune_jax.data import choices
from subtune_jax.runner import model_folder
from subtune_jax.statistics import criteria, intervals
from subtune_jax.studies.compare import chosen
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
  if method is not None:
    choices.check("method of this run", method, [row["name"] for row in record["methods"]])
  picked = chosen.training(record, method)
  if seed is None:
    return dict(picked)
  rows = compare_record.chosen_of(record, picked["method"])
  own = [row for row in rows if row["seed"] == seed]
  if not own:
    seeds = ", ".join(str(row["seed"]) for row in rows)
    raise ValueError(f"{picked['method']} has no training with seed {seed}; seeds: {seeds}")
  return dict(own[0])


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
    "trained": _trained(run.record, row) | {"validation": _validation(run, row)},
    "figures": _figures(run, row),
    "versions": dict(run.record["versions"]),
    "created": run.record["created"],
  }
  task = run.workdir / "tasks" / row["key"]
  names = run.record["data"]["class_names"]
  return model_folder.write(path, config, engine, pretrained, row["method"], task, names, said)


def write_peft(
  run: compare_record.Run, row: Mapping[str, Any], config: Any, engine: engine_lib.Engine,
  pretrained: weights.Pretrained, path: str | os.PathLike, layout: str,
) -> pathlib.Path:  # fmt: skip
  """Writes the adapters of one training for torch; see `write` and `model_folder.write_peft`."""
  task, names = run.workdir / "tasks" / row["key"], run.record["data"]["class_names"]
  return model_folder.write_peft(
    path, config, engine, pretrained, row["method"], task, names, layout
  )


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
  }  # fmt: skip


def _validation(run: compare_record.Run, row: Mapping[str, Any]) -> Row:
  """The validation accuracy, which the choice made too high, with the interval of its images."""
  read = chosen.validation_arrays(run.workdir, row)
  if read is None or len(np.unique(read["groups"])) < 2:
    return {"images": None, "accuracy": row["validation_accuracy"], "low": None, "high": None}
  right = read["logits"].argmax(-1) == read["labels"]
  return _figure(row["validation_accuracy"], right, read["groups"])


def _figures(run: compare_record.Run, row: Mapping[str, Any]) -> dict[str, Row]:
  """Of each test set this training's accuracy, with the interval that its images give."""
  found = {}
  for name, test in run.tests.items():
    index = min(run.seeds.index(row["seed"]), len(test.predicted[row["method"]]) - 1)
    right = test.correct(row["method"])[index]
    found[name] = _figure(row["test"][name]["accuracy"], right, test.groups)
  return found


def _figure(accuracy: float, right: np.ndarray, groups: np.ndarray) -> Row:
  low, high = intervals.of_accuracy(right, groups)
  return {"images": len(right), "accuracy": accuracy, "low": low, "high": high}


def _calibration(run: compare_record.Run, row: Mapping[str, Any]) -> Row:
  """The temperature that fits the validation logits of the last epoch, or why there is none."""
  read = chosen.validation_arrays(run.workdir, row)
  if read is None:
    return {"temperature": None, "why": "the training had no validation images"}
  try:
    return {"temperature": float(scaling.fit_temperature(read["logits"], read["labels"]))}
  except ValueError as e:
    return {"temperature": None, "why": " ".join(str(e).split())}
