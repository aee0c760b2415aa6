"""The model folder of a training of a run, and the folder of PEFT of one with adapters."""

from collections.abc import Mapping, Sequence
import os
import pathlib
from typing import Any

import jax
import numpy as np

from subtune_jax import adapters, files, peft_files, weights
from subtune_jax.deploy import classifier, description, folder, peft_folder
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
  options = network_lib.options(config.backbone.options)
  pruned = getattr(model, "pruned", ())
  if pruned:  # which channels go follows from weights; how many are left makes the network again
    options, changed = options | {"pruned": pruned}, False
  network = description.Network(
    config.backbone.name, options, config.backbone.dtype,
    method if changed else "", network_lib.method_options(method, config) if changed else {},
  )  # fmt: skip
  made = classifier.Classifier(
    model, variables, pretrained.preprocessing, config.data.image_size,
    config.data.interpolation, tuple(class_names), engine.batch_size, dict(said),
  )  # fmt: skip
  return folder.save(path, network, made, task=task)


def write_peft(
  path: str | os.PathLike, config: Any, engine: engine_lib.Engine, pretrained: weights.Pretrained,
  method: str, task: pathlib.Path, class_names: Sequence[str], layout: str,
) -> pathlib.Path:  # fmt: skip
  """Writes the adapters and the head of a training for torch's `peft`, and returns the path.

  Args:
    path: of the folder.
    config: of the run; see `write`, as the next five.
    engine: see there.
    pretrained: see there.
    method: see there.
    task: see there.
    class_names: of `classes.txt`.
    layout: of the names of modules, one of `peft_files.LAYOUTS`.

  Raises:
    ValueError: the method has no adapters, or PEFT's files no form for them; something else lies
      at `path`; and see `training.export.load_task`.
  """
  path = pathlib.Path(path)
  engine, pretrained = network_lib.prepared(method, config, engine, pretrained)
  model = engine.model
  if not isinstance(model, adapted.Adapted):
    raise ValueError(f"{method} has no adapters; PEFT's files take those of lora and dora")
  if path.exists() and not (path / peft_files.CONFIG).is_file():
    raise ValueError(f"{path} is there and no folder of PEFT; give another path")
  variables, _ = export.load_task(task, pretrained.variables)
  _check_statistics(method, pretrained.variables, variables)
  params, tree = adapters.split(variables["params"])
  tree = adapters.with_leaves(tree, {"head": params["head"]})
  base = {**variables, "params": params}
  peft_files.write(
    path, adapters.Adapted(model.base, model.sites), tree, base, layout=layout,
    base_model=config.backbone.weights,
  )  # fmt: skip
  text = "".join(f"{name}\n" for name in class_names)
  files.write_atomically(path / peft_folder.CLASSES, text.encode())
  return path


def _check_statistics(method: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
  """Raises ValueError if BatchNorm's running statistics moved, which PEFT's files do not hold."""
  old, new = (jax.tree.leaves(variables.get("batch_stats", {})) for variables in (before, after))
  if not all(np.array_equal(a, b) for a, b in zip(old, new, strict=True)):
    raise ValueError(
      f"{method} moved BatchNorm's running statistics, which PEFT's files do not hold; train it "
      f"with --config.{method}.norm_mode=running"
    )
