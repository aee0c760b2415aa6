"""The model folder of a training of a run."""

from collections.abc import Mapping, Sequence
import os
import pathlib
from typing import Any

from subtune_jax import weights
from subtune_jax.deploy import classifier, description, folder
from subtune_jax.models import adapted
from subtune_jax.runner import network as network_lib
from subtune_jax.runner import recipes
from subtune_jax.training import engine as engine_lib
from subtune_jax.training import export


def write(
  path: str | os.PathLike, config: Any, engine: engine_lib.Engine, pretrained: weights.Pretrained,
  method: str, task: pathlib.Path, class_names: Sequence[str], said: Mapping[str, Any],
) -> pathlib.Path:  # fmt: skip
  """Writes it, and returns its path.

  Args:
    path: of the folder.
    config: of the run.
    engine: of the run, before a method changed its network.
    pretrained: what the training started from.
    method: the training's.
    task: what `training.export.save_task` wrote of it.
    class_names: in the order of the head.
    said: "calibration", "trained", "figures", "versions", "created" of the folder's config.json.

  Errors: see `deploy.folder.save` and `training.export.load_task`.
  """
  engine, pretrained = network_lib.prepared(method, config, engine, pretrained)
  model = engine.model
  variables, _ = export.load_task(task, pretrained.variables)
  changed = recipes.changes_network(config, method)
  if isinstance(model, adapted.Adapted) and model.merges:
    model, variables, changed = model.base, model.merged(variables), False
  network = description.Network(
    config.backbone.name, network_lib.options(config.backbone.options), config.backbone.dtype,
    method if changed else "", network_lib.method_options(method, config) if changed else {},
  )  # fmt: skip
  made = classifier.Classifier(
    model, variables, pretrained.preprocessing, config.data.image_size,
    config.data.interpolation, tuple(class_names), engine.batch_size, dict(said),
  )  # fmt: skip
  return folder.save(path, network, made, task=task)
