"""The function that is exported, what is said beside it, and its check before it is written."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import os
import pathlib
import shutil
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import subtune_jax
from subtune_jax import files, strict_json
from subtune_jax.data import choices, preprocess
from subtune_jax.deploy import classifier as classifier_lib
from subtune_jax.models import inference
from subtune_jax.training import evaluate

INPUT = "images"
OUTPUTS = ("logits", "probabilities")
DTYPES = ("uint8", "float32")
FACTS, README = "model.json", "README.md"
TOLERANCE = 1e-4  # of logits, relative to the largest of them
_MAX_BYTES = 1_900_000_000  # of weights: protocol buffers and StableHLO's container hold 2 GiB


class ExportError(ValueError):
  """A network that cannot be exported as was asked, or a program that is not the network."""


def in_float32(classifier: classifier_lib.Classifier) -> classifier_lib.Classifier:
  """The classifier computing in float32, without kernels of one vendor."""
  return dataclasses.replace(classifier, model=plain(classifier.model))


def plain(model: nn.Module) -> nn.Module:
  """The model computing in float32, without kernels of one vendor."""
  changes: dict[str, Any] = {"dtype": jnp.float32, "parent": None}
  if hasattr(model, "attention"):
    changes["attention"] = None
  base = getattr(model, "base", None)  # of a network around another one
  if isinstance(base, nn.Module):
    changes["base"] = plain(base)
  return model.clone(**changes)


def function(
  classifier: classifier_lib.Classifier, target: str
) -> Callable[[jax.Array], dict[str, jax.Array]]:
  """The network from images to answers, its weights constants of it.

  Args:
    classifier: what is exported.
    target: see `inference.form`.

  Returns:
    A function of images [batch, image_size, image_size, 3], RGB in 0..255 of any type, that returns
    "logits" and "probabilities" (their softmax), both [batch, num_classes] float32. It is traced in
    its inference form, so that it is to be compiled on its own.

  Raises:
    ExportError: the weights are more than a file of these formats holds.
  """
  model = in_float32(classifier).model
  variables = constants(classifier.variables)

  def answer(images: jax.Array) -> dict[str, jax.Array]:
    with inference.form(target):
      x = preprocess.normalize(images, classifier.preprocessing)
      logits = model.apply(variables, x)
    return dict(zip(OUTPUTS, (logits, jax.nn.softmax(logits, axis=-1)), strict=True))

  return answer


def constants(variables: Any) -> Any:
  """The weights as constants of a program.

  Raises:
    ExportError: they are more than a file of these formats holds.
  """
  variables = jax.tree.map(np.asarray, variables)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
  if size > _MAX_BYTES:
    raise ExportError(
      f"the weights are {size / 1e9:.1f} GB, and such a file holds 2 GB; --format=safetensors "
      "has no such limit"
    )
  return variables


def facts(classifier: classifier_lib.Classifier, **more: Any) -> dict[str, Any]:
  """What the user of an exported network has to know, for JSON.

  Args:
    classifier: what is exported.
    **more: further fields.
  """
  size = classifier.image_size
  calibration = classifier.config.get("calibration", {})
  return {
    "producer": f"subtune_jax {subtune_jax.__version__}",
    "class_names": list(classifier.class_names),
    "image_size": size,
    "interpolation": classifier.interpolation,
    "preprocessing": {
      "mean": list(classifier.preprocessing.mean), "std": list(classifier.preprocessing.std),
    },
    "temperature": calibration.get("temperature"),
    **more,
  }  # fmt: skip


def signature(classifier: classifier_lib.Classifier, dtype: str) -> dict[str, Any]:
  """Fields of `facts` for a program.

  Args:
    classifier: what is exported.
    dtype: of the images, one of `DTYPES`.
  """
  choices.check("input", dtype, DTYPES)
  size, classes = classifier.image_size, len(classifier.class_names)
  return {
    "input": {"name": INPUT, "dtype": dtype, "shape": ["batch", size, size, 3],
              "channels": "RGB", "range": [0, 255], "preprocessing": "inside the program"},
    "outputs": {name: {"dtype": "float32", "shape": ["batch", classes]} for name in OUTPUTS},
  }  # fmt: skip


def check(
  classifier: classifier_lib.Classifier,
  run: Callable[[np.ndarray], Mapping[str, Any]],
  dtype: str,
) -> None:
  """Runs a written program at two batch sizes, against the network.

  Args:
    classifier: what was exported.
    run: the program, from images to the outputs by name.
    dtype: of its images.

  Raises:
    ExportError: its logits are others, or its probabilities are not their softmax.
  """
  rng = np.random.default_rng(0)
  size = classifier.image_size
  reference = in_float32(classifier)
  for n in (1, 3):
    images = rng.integers(0, 256, (n, size, size, 3), np.uint8)
    error = error_of(run(images.astype(dtype)), reference.logits(images))
    if error > TOLERANCE:
      raise ExportError(
        f"the program's answers differ from the network's by {error:.1e}; nothing was written"
      )


def error_of(found: Mapping[str, Any], wanted: np.ndarray) -> float:
  """How far a program's outputs are from the network's logits, as a share of the largest.

  Args:
    found: `OUTPUTS` of the program; probabilities count by their distance from the softmax.
    wanted: [n, num_classes] logits.

  Raises:
    ExportError: the program's logits have another shape, or are not finite.
  """
  logits, probabilities = (np.asarray(found[name]) for name in OUTPUTS)
  if logits.shape != wanted.shape or not np.isfinite(logits).all():
    raise ExportError(f"the program gives logits {logits.shape}; {wanted.shape} are expected")
  error = np.abs(logits - wanted).max() / max(1.0, np.abs(wanted).max())
  return float(max(error, np.abs(probabilities - evaluate.probabilities(logits)).max()))


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A folder to fill, which takes its place when the block ends without an error.

  Raises:
    ExportError: something lies at `path`.
  """
  path = pathlib.Path(path)
  if path.is_symlink() or path.is_file() or (path.is_dir() and any(path.iterdir())):
    raise ExportError(f"{path} is there; give the name of a new folder")
  temporary = path.absolute().with_name(f".{path.absolute().name}.{os.getpid()}.tmp")
  shutil.rmtree(temporary, ignore_errors=True)
  try:
    with files.naming(temporary):
      temporary.mkdir(parents=True)
      yield temporary
    if path.is_dir():
      path.rmdir()
    os.replace(temporary, path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def describe(folder: pathlib.Path, said: Mapping[str, Any], readme: str) -> None:
  """Writes model.json and README.md."""
  (folder / FACTS).write_text(strict_json.dumps(said, indent=1) + "\n")
  (folder / README).write_text(readme, encoding="utf-8")
