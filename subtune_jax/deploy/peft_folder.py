"""An adapter of PEFT and the weights that it was trained on, as one network that answers.

The folder of an adapter holds what was trained; the frozen weights, the network's name and the size
of its images are the user's to name. Classes are named by the user, by `classes.txt` in the folder
(a name on each line, in the order of the head), or by `id2label` in its config.json.
"""

from collections.abc import Mapping, Sequence
import os
import pathlib
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp

from subtune_jax import models, peft_files, weights
from subtune_jax.adapters import sites
from subtune_jax.data import decode, preprocess
from subtune_jax.deploy import classifier, description
from subtune_jax.peft_files import config as config_lib
from subtune_jax.weights import errors, sidecar

CLASSES, _LABELS = "classes.txt", "config.json"
_MAX_BYTES = 16 * 2**20


def load(
  path: str | os.PathLike,
  network: description.Network,
  base: str | pathlib.Path,
  *,
  class_names: Sequence[str] | None = None,
  image_size: int | None = None,
  preprocessing: preprocess.Preprocessing | str | None = None,
  interpolation: str | None = None,
  batch_size: int = 64,
) -> classifier.Classifier:
  """Puts the adapter of a folder into the weights that it was trained on.

  >>> network = description.Network("vit_s16", {})
  >>> made = peft_folder.load("an_adapter", network, "weights.safetensors", class_names=["a", "b"])
  >>> folder.save("model", network, made)

  Args:
    path: of the folder, with adapter_config.json and adapter_model.safetensors.
    network: the backbone.
    base: its frozen weights: a file, or a name of `weights.names()`.
    class_names: None: those in the folder.
    image_size: in pixels; None: the backbone's own.
    preprocessing: as of `weights.load_pretrained`; None: what a preprocessor_config.json in the
      folder says, else what is known of the weights.
    interpolation: of the resize of pictures; None: that of the preprocessing.
    batch_size: images at a time.

  Returns:
    The plain network with the adapter merged.

  Raises:
    ValueError: the folder, the weights, the class names, the size or the preprocessing are missing
      or do not fit each other, or the adapter merges into no kernel.
  """
  path = pathlib.Path(path)
  config_lib.read(path)  # what is no adapter is said before anything is asked for
  names = tuple(class_names) if class_names is not None else _names(path)
  _check_names(names)
  size = image_size or models.create(network.name, 1, **network.options).image_size
  decode.check_size(size, interpolation or decode.NO_ANTIALIAS)
  model, shapes = network.build(len(names), size)
  seen = preprocessing or sidecar.read(path / config_lib.WEIGHTS)
  pretrained = weights.load_pretrained(base, model, preprocessing=seen)
  if pretrained.resized:
    there, here = pretrained.resized
    logging.warning(
      "%s has position embeddings of %d x %d patches, resized to %d x %d for %d px; an adapter "
      "that was trained on images of another size needs that one (image_size)",
      base, there, there, here, here, size,
    )  # fmt: skip
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  try:
    adapted, tree = peft_files.read(path, model, pretrained.variables, images)
    _check_head(path, base, pretrained, tree, len(names))
    params = adapted.merge(pretrained.variables["params"], tree)
  except errors.WeightsError:
    raise
  except ValueError as e:
    raise ValueError(f"{path}: {e}") from e
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes["params"])
  variables = {**pretrained.variables, "params": params}
  return classifier.Classifier(
    model, variables, pretrained.preprocessing, size,
    interpolation or pretrained.preprocessing.interpolation, names, batch_size,
    {"calibration": {"temperature": None, "why": "an adapter of PEFT keeps none"}},
  )  # fmt: skip


def read_names(path: str | os.PathLike) -> tuple[str, ...]:
  """Names of classes, one on each line, in the order of the head.

  Raises:
    ValueError: the file cannot be read as text.
  """
  try:
    with open(path, "rb") as file:
      data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
      raise ValueError(f"it has more than {_MAX_BYTES} bytes")
    lines = data.decode("utf-8").splitlines()
  except (OSError, ValueError) as e:
    reason = getattr(e, "strerror", None) or e
    raise ValueError(
      f"{path} cannot be read: {reason}; give a text file with the name of a class on each line"
    ) from e
  while lines and not lines[-1].strip():
    lines.pop()
  return tuple(line.strip() for line in lines)


def _names(path: pathlib.Path) -> tuple[str, ...]:
  """The names that the folder holds."""
  if (path / CLASSES).exists():
    return read_names(path / CLASSES)
  said = sidecar.read_json(path / _LABELS) or {}
  labels = said.get("id2label")
  if labels is None:
    raise ValueError(
      f"{path} names no classes: it has neither {CLASSES} nor a {_LABELS} with id2label; give "
      "their names in the order of the head (--classes=FILE, a name on each line)"
    )
  try:
    wanted = [str(index) for index in range(len(labels))]
    return tuple(labels[index] for index in wanted)
  except (TypeError, KeyError) as e:
    raise ValueError(
      f"{path / _LABELS}: id2label is {errors.shown(labels)}; names by '0', '1', ... are expected"
    ) from e


def _check_names(names: Sequence[Any]) -> None:
  for i, name in enumerate(names):
    if not isinstance(name, str) or not name:
      raise ValueError(f"class {i} is named {errors.shown(name)}; give each class a name")
  twice = sorted({name for name in names if names.count(name) > 1}) if names else []
  if twice or not names:
    what = f"name {errors.quote(twice[0])} twice" if twice else "no class"
    raise ValueError(f"the class names have {what}; give as many names as the head has outputs")


def _check_head(
  path: pathlib.Path, base: Any, pretrained: weights.Pretrained, tree: Mapping[str, Any], count: int
) -> None:
  """Raises ValueError unless the adapter or the weights hold a head of these classes."""
  saved = tree.get("head", {}).get(sites.LEAVES, {})
  if pretrained.not_loaded and "kernel" not in saved:
    raise ValueError(
      f"neither the adapter (modules_to_save) nor {base} has a head of {count} classes; save the "
      "adapter with modules_to_save, give the weights with the head that it was trained on, or as "
      "many class names as that head has outputs"
    )
