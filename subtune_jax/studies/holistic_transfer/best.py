"""The model folder of a study of holistic transfer, with the gamma that repairs its logits."""

from collections.abc import Mapping
import pathlib
from typing import Any

import numpy as np

from subtune_jax.runner import model_folder
from subtune_jax.studies.holistic_transfer import config as holistic_config
from subtune_jax.studies.holistic_transfer import trainings as holistic_study

Row = dict[str, Any]
FOLDER = "best"


def choose(networks: list[Row]) -> Row:
  """Of the study's networks the one that validation on seen classes chose.

  The method of the best mean over seeds, then its best seed; none that saw absent classes.
  """
  own = [n for n in networks if n["use"] == "main" and n["method"] != holistic_config.ORACLE]
  scores: dict[str, list[float]] = {}
  for network in own:
    scores.setdefault(network["method"], []).append(network["validation_accuracy"] or 0.0)
  method = max(scores, key=lambda name: float(np.mean(scores[name])))
  return max(
    (n for n in own if n["method"] == method), key=lambda n: n["validation_accuracy"] or 0.0
  )


def write(study: holistic_study.Study, record: Mapping[str, Any]) -> tuple[pathlib.Path, Row]:
  """Writes WORKDIR/best; gamma is ALG's, from training data alone.

  Returns:
    The folder, and the network of the record that is in it.
  """
  row, data = choose(record["holistic"]["networks"]), record["data"]
  partition = record["holistic"]["partitions"][row["partition"]]
  numbers = row["epochs"][-1]
  said = {
    "calibration": {"gamma": numbers["gamma"]["alg"], "absent": partition["absent"]},
    "trained": {
      "method": row["method"], "title": row["title"], "seed": row["seed"],
      "setting": "learning_rate", "value": row["learning_rate"], "stages": [],
      "weights": f"a source model trained on {data['source']}" if data["source"]
      else study.config.backbone.weights,
      "data": f"{data['train']}, {len(partition['seen'])} of its classes",
      "num_train": data["num_train"], "num_validation": data["num_validation"],
      "run": record["name"], "key": row["key"], "chosen_by": "validation accuracy, seen classes",
      "validation": {
        "images": None, "accuracy": row["validation_accuracy"], "low": None, "high": None,
      },
    },
    "figures": {
      f"{data['train']}, {calibration}": {
        "images": data["num_test"], "accuracy": numbers["accuracy"][kind]["micro"]["Y/Y"],
        "low": None, "high": None,
      }
      for kind, calibration in (("none", "as it is"), ("alg", "calibrated"))
    },
    "versions": dict(record["versions"]), "created": record["created"],
  }  # fmt: skip
  task = study.workdir / "tasks" / row["key"]
  source = study.source
  path = model_folder.write(
    study.workdir / FOLDER, study.config, source.engine, source.pretrained, row["method"], task,
    data["class_names"], said,
  )  # fmt: skip
  return path, row
