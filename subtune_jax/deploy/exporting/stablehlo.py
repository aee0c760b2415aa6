"""A network as StableHLO for several platforms at once (`jax.export`).

The folder holds `model.stablehlo`, `model.json` and a README with the loader.
"""

from collections.abc import Callable, Sequence
import os
import pathlib
from typing import Any

import jax
from jax import export
import jax.numpy as jnp

from subtune_jax.data import choices
from subtune_jax.deploy import classifier as classifier_lib
from subtune_jax.deploy.exporting import program

PLATFORMS = ("cpu", "cuda", "tpu", "rocm")
DEFAULT = PLATFORMS[:3]
PROGRAM = "model.stablehlo"

LOADER = """\
import json
import jax, jax.export, numpy as np

with open("model.stablehlo", "rb") as file:
  program = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
names = json.load(open("model.json"))["class_names"]
images = np.zeros((1, {size}, {size}, 3), np.{dtype})  # RGB, resized to {size} x {size}, 0..255
probabilities = np.asarray(program(images)["probabilities"])
print([names[i] for i in probabilities.argmax(-1)], probabilities.max(-1))
"""

_README = """\
# A trained network as StableHLO

From images [batch, {size}, {size}, 3] ({dtype}, RGB, 0..255; any batch size) to `logits` and
`probabilities` [batch, {classes}]; the normalisation is inside. Made for {platforms}. Needs jax
{version} or later and numpy, run in this folder:

```python
{loader}```
"""


def write(
  classifier: classifier_lib.Classifier, path: str | os.PathLike, *, dtype: str = "uint8",
  platforms: Sequence[str] = DEFAULT,
) -> pathlib.Path:  # fmt: skip
  """Writes the folder.

  Args:
    classifier: what is exported.
    path: of a new folder.
    dtype: of the images, one of `program.DTYPES`.
    platforms: of `PLATFORMS`; a program for one of them holds no choice between them.

  Returns:
    The folder.

  Raises:
    ExportError: the network cannot be exported, or something lies at `path`.
    ValueError: an unknown platform or type.
  """
  check_platforms(platforms)
  said = program.facts(classifier, **program.signature(classifier, dtype),
                       platforms=list(platforms), jax=jax.__version__)  # fmt: skip
  with program.new_folder(path) as folder:
    made = program.function(classifier, target_of(platforms))
    data = serialized(made, classifier.image_size, dtype, platforms)
    if runs_here(platforms):
      run = jax.jit(export.deserialize(bytearray(data)).call)
      program.check(classifier, run, dtype)
    (folder / PROGRAM).write_bytes(data)
    size = classifier.image_size
    loader = LOADER.format(size=size, dtype=dtype)
    readme = _README.format(
      size=size, dtype=dtype, classes=len(classifier.class_names), version=jax.__version__,
      platforms=", ".join(platforms), loader=loader,
    )  # fmt: skip
    program.describe(folder, said, readme)
  return pathlib.Path(path)


def check_platforms(platforms: Sequence[str]) -> None:
  """Raises ValueError unless these are some of `PLATFORMS`, each once."""
  if not platforms or len(set(platforms)) < len(platforms):
    raise ValueError(f"platforms={list(platforms)} is empty or has one twice")
  for platform in platforms:
    choices.check("platform", platform, PLATFORMS)


def target_of(platforms: Sequence[str]) -> str:
  """What `inference.form` is asked for, for a program of these platforms."""
  if len(platforms) > 1:
    return "platforms"
  return "cpu" if platforms[0] == "cpu" else "accelerator"


def serialized(
  function: Callable[[jax.Array], Any], image_size: int, dtype: str, platforms: Sequence[str]
) -> bytes:
  """A function of images [batch, image_size, image_size, 3], compiled for any batch size."""
  (batch,) = export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.dtype(dtype))
  made = export.export(jax.jit(function), platforms=tuple(platforms))(images)
  return bytes(made.serialize())


def runs_here(platforms: Sequence[str]) -> bool:
  """Whether a program of these platforms can be run on this machine's devices."""
  backends = {"gpu" if each in ("cuda", "rocm") else each for each in platforms}
  return jax.default_backend() in backends
