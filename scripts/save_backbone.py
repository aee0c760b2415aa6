"""Saves the network that a run trained from random weights as a file of weights.

  python scripts/save_backbone.py runs/pretrain_fashion_mnist resnet14_fashion_mnist.msgpack

The run has one chosen training, in which every parameter was trained, such as that of
configs/pretrain_cifar10.py. The file is a backbone like any other: --config.backbone.weights=FILE,
with the run's own `backbone.preprocessing`, which the file does not tell.
"""

import argparse
import pathlib
import sys

from subtune_jax import models, weights
from subtune_jax.studies import fields
from subtune_jax.training import export


def save(workdir: pathlib.Path, path: pathlib.Path) -> None:
  """Writes the weights.

  Raises:
    ValueError: the run has not exactly one chosen training, or is not from random weights.
    FileNotFoundError: there is no finished run.
  """
  record = fields.read(workdir)
  keys = [t["key"] for t in record["trainings"] if t["chosen"]]
  backbone, config = record["backbone"], record["config"]["backbone"]
  if len(keys) != 1 or backbone["weights"] != "random":
    raise ValueError(
      f"{workdir} has {len(keys)} chosen trainings from weights {backbone['weights']!r}; give a "
      "run of one method and one seed from random weights"
    )
  model = models.create(
    backbone["name"], len(record["data"]["class_names"]), image_size=backbone["image_size"]
  )
  variables = weights.random_weights(model, preprocessing=config["preprocessing"]).variables
  variables, _ = export.load_task(workdir / "tasks" / keys[0], variables)
  export.save_variables(path, variables)


def main() -> int:
  """Parses the command line and saves."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("workdir", type=pathlib.Path, help="folder of the finished run")
  parser.add_argument("file", type=pathlib.Path, help="such as resnet14.msgpack")
  given = parser.parse_args()
  try:
    save(given.workdir, given.file)
  except (ValueError, OSError) as e:
    sys.stderr.write(f"error: {e}\n")
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
