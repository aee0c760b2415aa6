"""A whole multi-task network as StableHLO: one program from images to the answers of every task."""

from collections.abc import Callable, Sequence
import os
import pathlib
from typing import Any

import jax
from jax import export
import numpy as np

from subtune_jax.data import choices
from subtune_jax.deploy.exporting import program, stablehlo
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
    _check(network, data, dtype)
  facts = {name: program.facts(task.network) for name, task in network.tasks.items()}
  with program.new_folder(path) as folder:
    (folder / stablehlo.PROGRAM).write_bytes(data)
    readme = _README.format(
      count=len(network.tasks), size=size, dtype=dtype, names=", ".join(network.tasks),
      first=next(iter(network.tasks)),
    )  # fmt: skip
    program.describe(folder, {"tasks": facts, "platforms": list(platforms)}, readme)
  return pathlib.Path(path)


def _check(network: network_lib.MultiTask, data: bytes, dtype: str) -> None:
  """Runs the program at two batch sizes against the network."""
  run: Any = jax.jit(export.deserialize(bytearray(data)).call)
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
