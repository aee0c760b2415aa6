"""A trained network as one folder that can be copied: written whole, read with checks.

    config.json         what `description` says
    model.safetensors   every parameter and running statistic, by '/'-path ("params/head/kernel")
    README.md           a model card
    task/               the leaves that were trained, alone (`training.export`), if they were given

Nothing in a folder is executed, and no path that a file names is followed.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import os
import pathlib
import shutil
import stat
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from subtune_jax import files, peft_files, strict_json
from subtune_jax.deploy import card, classifier, description
from subtune_jax.weights import errors as weights_errors
from subtune_jax.weights import files as weights_files
from subtune_jax.weights import sidecar

FolderError = description.FolderError
CARD, TASK = "README.md", "task"
_AGAIN = "Get the folder again, or write it again with python -m subtune_jax.save_model."


def save(
  path: str | os.PathLike,
  network: description.Network,
  made: classifier.Classifier,
  *,
  task: str | os.PathLike | None = None,
) -> pathlib.Path:
  """Writes a folder; one of that name, if it is a model folder, is replaced.

  Args:
    path: of the folder.
    network: how `made.model` is built.
    made: the network; of `made.config` "calibration", "trained", "figures", "versions" and
      "created" are kept.
    task: folder of `training.export.save_task` to put beside it.

  Returns:
    The folder.

  Raises:
    ValueError: the network is not built as `network` says, or something else lies at `path`.
  """
  path = pathlib.Path(path)
  if path.exists() and not (path / description.CONFIG).is_file():
    raise ValueError(f"{path} is there and no model folder; give another path")
  arrays = flatten(made.variables)
  wanted = flatten(network.build(len(made.class_names), made.image_size)[1])
  if _shapes(arrays) != _shapes(wanted):
    raise ValueError(f"the variables are not those of {network.name} with {network.options}")
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  shutil.rmtree(temporary, ignore_errors=True)
  try:
    with files.naming(temporary):
      temporary.mkdir(parents=True)
      _write(temporary, network, made, arrays)
      if task is not None:
        shutil.copytree(task, temporary / TASK)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(temporary, path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return path


def load(path: str | os.PathLike) -> classifier.Classifier:
  """Reads a folder that `save` wrote.

  Args:
    path: of the folder, such as "runs/quickstart/best".

  Raises:
    FolderError: there is no such folder, it is another library's or a run's, a file is missing,
      damaged, edited or of another network.
  """
  path = pathlib.Path(path)
  said = _description(path)
  data = _weights(path, said)
  try:
    model, shapes = said.network.build(len(said.class_names), said.image_size)
  except Exception as e:  # of whatever the options make Flax and JAX say
    raise FolderError(
      f"{path / description.CONFIG}: {said.network.name} cannot be built with options "
      f"{weights_errors.shown(dict(said.network.options))}: {_line(e)}. {_AGAIN}"
    ) from e
  wanted = flatten(shapes)
  _check_arrays(path, data, wanted)
  leaves = {tuple(name.split("/")): data[name] for name in wanted}
  return classifier.Classifier(
    model, traverse_util.unflatten_dict(leaves), said.preprocessing, said.image_size,
    said.interpolation, said.class_names, said.batch_size, said.config,
  )  # fmt: skip


def flatten(variables: Any) -> dict[str, Any]:
  """'/'-path -> leaf of {"params", "batch_stats"}."""
  kept = {name: variables[name] for name in ("params", "batch_stats") if variables.get(name)}
  return traverse_util.flatten_dict(kept, sep="/")


def _shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  return {name: tuple(leaf.shape) for name, leaf in arrays.items()}


def _write(path: pathlib.Path, network: description.Network, made: classifier.Classifier,
           arrays: Mapping[str, Any]) -> None:  # fmt: skip
  import safetensors.numpy

  host = {name: np.ascontiguousarray(leaf) for name, leaf in jax.device_get(arrays).items()}
  data = safetensors.numpy.save(host, metadata={"format": description.FORMAT})
  (path / description.WEIGHTS).write_bytes(data)
  kept = ("calibration", "trained", "figures", "versions", "created")
  batch_size = min(made.batch_size, max(1, description.MAX_PIXELS // made.image_size**2))
  config = {
    "format": description.FORMAT,
    "network": dataclasses.asdict(network),
    "input": {
      "image_size": made.image_size, "interpolation": made.interpolation,
      "preprocessing": dataclasses.asdict(made.preprocessing), "batch_size": batch_size,
    },
    "class_names": list(made.class_names),
    **{name: made.config[name] for name in kept if name in made.config},
    "sha256": {description.WEIGHTS: hashlib.sha256(data).hexdigest()},
  }  # fmt: skip
  config = strict_json.loads(strict_json.dumps(config))
  config["sha256"][description.CONFIG] = description.digest(config)
  description.parse(config)
  text = strict_json.dumps(config, indent=1) + "\n"
  (path / description.CONFIG).write_text(text)
  (path / CARD).write_text(card.text(config), encoding="utf-8")


def _description(path: pathlib.Path) -> description.Description:
  if not path.is_dir():
    raise FolderError(f"there is no folder {path}; give a model folder, such as a run's best/")
  file = path / description.CONFIG
  if (path / "best" / description.CONFIG).is_file():
    raise FolderError(f"{path} is a run's folder; its model is in {path / 'best'}")
  if (path / peft_files.CONFIG).is_file() and not (path / description.WEIGHTS).exists():
    raise FolderError(
      f"{path} is an adapter of PEFT without the weights that it was trained on; make a model "
      f"folder of both: python -m subtune_jax.merge {path} --backbone=NAME --weights=FILE --out=NEW"
    )
  _check_file(file)
  try:
    config = sidecar.read_json(file)
  except weights_errors.WeightsError as e:
    raise FolderError(_line(e)) from e
  if config is None or "format" not in config:
    raise FolderError(
      f"{path} is not a model folder of this library: its {description.CONFIG} has no format. "
      "Weights of another library start a training: --config.backbone.weights=FILE"
    )
  try:
    return description.parse(dict(config))
  except (ValueError, TypeError, RecursionError) as e:
    raise FolderError(f"{file}: {_line(e)}. {_AGAIN}") from e


def _weights(path: pathlib.Path, said: description.Description) -> Mapping[str, np.ndarray]:
  file = path / description.WEIGHTS
  _check_file(file)
  try:
    found = weights_files.digest(file)
    if found != said.weights_sha256:
      raise FolderError(
        f"{file} is not the one that {description.CONFIG} describes: its SHA-256 is {found[:12]}, "
        f"not {weights_errors.shown(said.weights_sha256[:12])}. {_AGAIN}"
      )
    return weights_files.read_tensors(file)
  except weights_errors.WeightsError as e:
    raise FolderError(_line(e)) from e


def _check_file(file: pathlib.Path) -> None:
  try:
    regular = stat.S_ISREG(file.stat().st_mode)
  except (OSError, ValueError) as e:
    raise FolderError(f"{file} cannot be read: {getattr(e, 'strerror', e)}. {_AGAIN}") from e
  if not regular:
    raise FolderError(f"{file} is not a regular file. {_AGAIN}")


def _check_arrays(
  path: pathlib.Path, data: Mapping[str, np.ndarray], wanted: Mapping[str, Any]
) -> None:
  file = path / description.WEIGHTS
  lacking, more = sorted(set(wanted) - set(data)), sorted(set(data) - set(wanted))
  if lacking or more:
    raise FolderError(
      f"{file} does not fit {description.CONFIG}'s network: "
      f"{len(lacking)} variables are missing {lacking[:3]}, {len(more)} are too many "
      f"{[weights_errors.shown(name) for name in more[:3]]}. {_AGAIN}"
    )
  for name, leaf in wanted.items():
    array = data[name]
    if array.shape != leaf.shape or array.dtype != leaf.dtype:
      raise FolderError(
        f"{file}: {name} is {array.dtype} {array.shape}, and {description.CONFIG}'s network has "
        f"{leaf.dtype} {leaf.shape}. {_AGAIN}"
      )
    if not np.isfinite(array).all():
      raise FolderError(f"{file}: {name} holds numbers that are not finite. {_AGAIN}")


def _line(error: Exception) -> str:
  text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
  return text if len(text) <= 400 else f"{text[:400]}..."
