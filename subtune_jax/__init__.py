"""Adapt a pretrained vision model in JAX: SubTuning, LP-FT and calibrated fine-tuning.

`subtune_jax.load(folder)` gives a trained network back (`deploy.folder.load`).
"""

from typing import Any

__version__ = "0.1.0"


def load(path: Any) -> Any:
  """The trained network in a model folder, such as a run's WORKDIR/best: a `Classifier`.

  Args:
    path: of the folder.

  Raises:
    FolderError: see `deploy.folder.load`.
  """
  import importlib

  return importlib.import_module("subtune_jax.deploy.folder").load(path)
