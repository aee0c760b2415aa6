"""A whole multi-task network as StableHLO or ONNX: one program from images to all answers."""

from collections.abc import Callable, Mapping, Sequence
import os
import pathlib
from typing import Any

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from subtune_jax.data import choices
from subtune_jax.deploy.exporting import onnx_file, program, stablehlo
from subtune_jax.models import inference
from subtune_jax.multitask import execution
from subtune_jax.multitask import network as network_lib

_README = """\
# {count} tasks on one backbone as StableHLO

From images [batch, {size}, {size}, 3] ({dtype}, RGB, 0..255; any batch size) to `logits` and
`probabilities` of each task ({names}); the normalisation is inside. model.json has the classes.

```python
import jax, jax.export, numpy as np

with open("model.stablehlo", "rb") as file:
  program = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
answers = program(np.zeros((1, {size}, {size}, 3), np.{dtype}))
answers["{first}"]["probabilities"]
```
"""


def function(
  network: network_lib.MultiTask, target: str
) -> Callable[[jax.Array], dict[str, dict[str, jax.Array]]]:
  """Images in 0..255 to task -> "logits" and "probabilities", the weights constants of it.

  Args:
    network: the tasks; computed in float32.
    target: see `inference.form`.
  """
  model = program.plain(network.model)
  order = execution.steps(network.plan, network.forms)
  weights = program.constants([network.weights_of_step(step) for step in order])
  run = execution.function(model, network.plan, order, network.preprocessing)

  def answer(images: jax.Array) -> dict[str, dict[str, jax.Array]]:
    with inference.form(target):
      found = run(weights, images)
    logits = {name: own.logits for name, own in zip(network.tasks, found, strict=True)}
    return {
      name: dict(zip(program.OUTPUTS, (own, jax.nn.softmax(own, axis=-1)), strict=True))
      for name, own in logits.items()
    }

  return answer


def write_stablehlo(
  network: network_lib.MultiTask, path: str | os.PathLike, *, dtype: str = "uint8",
  platforms: Sequence[str] = stablehlo.DEFAULT,
) -> pathlib.Path:  # fmt: skip
  """Writes model.stablehlo, model.json and a README, after a run against the network.

  Args:
    network: the tasks.
    path: of a new folder.
    dtype: of the images, one of `program.DTYPES`.
    platforms: of `stablehlo.PLATFORMS`; the program is run where this machine is one of them.

  Returns:
    The folder.

  Raises:
    ExportError: the network cannot be exported, or something lies at `path`.
    ValueError: an unknown platform or type.
  """
  choices.check("input", dtype, program.DTYPES)
  stablehlo.check_platforms(platforms)
  size, made = network.image_size, function(network, stablehlo.target_of(platforms))
  data = stablehlo.serialized(made, size, dtype, platforms)
  if stablehlo.runs_here(platforms):
    _check(network, jax.jit(export.deserialize(bytearray(data)).call), dtype)
  facts = {name: program.facts(task.network) for name, task in network.tasks.items()}
  with program.new_folder(path) as folder:
    (folder / stablehlo.PROGRAM).write_bytes(data)
    readme = _README.format(
      count=len(network.tasks), size=size, dtype=dtype, names=", ".join(network.tasks),
      first=next(iter(network.tasks)),
    )  # fmt: skip
    program.describe(folder, {"tasks": facts, "platforms": list(platforms)}, readme)
  return pathlib.Path(path)


def write_onnx(
  network: network_lib.MultiTask, path: str | os.PathLike, *, dtype: str = "uint8"
) -> pathlib.Path:
  """Writes one ONNX file with outputs TASK/logits and TASK/probabilities, after a run.

  Args:
    network: the tasks.
    path: of a file whose name ends in .onnx; one that is there is replaced.
    dtype: of the images, one of `program.DTYPES`.

  Raises:
    ExportError: another name, or the network cannot be exported.
    ImportError: jax2onnx is not installed.
  """
  choices.check("input", dtype, program.DTYPES)
  path = onnx_file.check_name(path)
  made = function(network, "onnx")
  outputs = [f"{name}/{output}" for name in network.tasks for output in program.OUTPUTS]

  def run(images):
    found = made(images.astype(jnp.float32))
    return tuple(found[name][output] for name in network.tasks for output in program.OUTPUTS)

  def check(run):
    _check(network, lambda images: _by_task(run(images)), dtype)

  proto = onnx_file.converted(run, network.image_size, dtype, outputs)
  facts = {name: program.facts(task.network) for name, task in network.tasks.items()}
  onnx_file.write_checked(path, proto, {"tasks": facts}, outputs, check)
  return path


def _by_task(found: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
  answers: dict[str, dict[str, np.ndarray]] = {}
  for name, value in found.items():
    task, _, output = name.rpartition("/")
    answers.setdefault(task, {})[output] = value
  return answers


def _check(
  network: network_lib.MultiTask, run: Callable[[Any], Mapping[str, Any]], dtype: str
) -> None:
  """Runs the program at two batch sizes against the network."""
  size, rng = network.image_size, np.random.default_rng(0)
  for n in (1, 3):
    images = rng.integers(0, 256, (n, size, size, 3), np.uint8)
    wanted, found = network.apply(images), run(images.astype(dtype))
    for name, own in wanted.items():
      error = program.error_of(found[name], np.asarray(own.logits))
      if error > program.TOLERANCE:
        raise program.ExportError(
          f"task {name!r}: the program's logits differ from the network's by {error:.1e}; nothing "
          "was written"
        )
