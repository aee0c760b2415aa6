"""Memory of a training step by the compiler's count, compiled for shapes alone; nothing is run.

  python benchmarks/memory.py --topology v5e:2x2

The topology is one that the TPU compiler knows; it needs no TPU, but the compiler: `pip install
libtpu`, or TPU_LIBRARY_PATH. Without a topology the program is compiled for the devices at hand.

Of each network a full fine-tuning step with AdamW:
as it is, with every block computed anew in the backward pass (`remat`), and from four parts of the
batch (`accumulate`). "Temporary" is what the program holds beside its arguments at its peak:
activations and gradients. The compiler for CPU finds what is computed twice and computes it once,
so that `remat` takes no memory away there.
"""

import argparse
import datetime
import functools
import time
from typing import Any

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np

from subtune_jax import methods, models
from subtune_jax.data import preprocess
from subtune_jax.training import step, trainable_split

PREPROCESSING = preprocess.Preprocessing(mean=(127.0,), std=(128.0,))
VARIANTS = {"as it is": (False, 1), "remat": (True, 1), "accumulate=4": (False, 4),
            "both": (True, 4)}  # fmt: skip


def step_bytes(
  model: Any,
  variables: Any,
  stage: methods.Stage,
  batch: int,
  size: int,
  remat: bool,
  device: Any,
) -> tuple[int, int, float]:
  """(bytes of arguments, of temporary arrays, seconds to compile) of a step on a device."""
  plan = trainable_split.make_plan(model, variables, stage)
  units = model.block_names[model.block_names.index(plan.start) :]
  blocks = units if remat else ()
  spec = step.StepSpec(model, plan, stage, 1, PREPROCESSING, remat=blocks)
  moving, fixed = trainable_split.split_variables(variables, plan)
  state = jax.eval_shape(functools.partial(step.create_train_state, spec), moving)
  shape = jax.ShapeDtypeStruct
  rows = {"x": shape((batch, size, size, 3), np.uint8), "labels": shape((batch,), np.int32),
          "ids": shape((batch,), np.int32)}  # fmt: skip
  view = {"seed": shape((), np.int32), "epoch": shape((), np.int32)}
  place = jax.sharding.SingleDeviceSharding(device)
  function = functools.partial(step.train_step, spec)
  begin = time.perf_counter()
  compiled = (
    jax.jit(function, donate_argnums=0, in_shardings=place, out_shardings=place)
    .lower(state, fixed, None, rows, None, view)
    .compile()
  )
  found = compiled.memory_analysis()
  seconds = time.perf_counter() - begin
  return found.argument_size_in_bytes, found.temp_size_in_bytes, seconds


def main() -> None:
  """A row per network, stage and variant."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--models", nargs="+", default=["resnet50", "vit_b16"])
  parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--size", type=int, default=224)
  parser.add_argument("--topology", help="of TPUs, such as v5e:2x2")
  given = parser.parse_args()
  device = jax.devices()[0]
  if given.topology:
    device = topologies.get_topology_desc(given.topology, platform="tpu").devices[0]
  print(f"{datetime.date.today()}, jax {jax.__version__}, compiled for {device.device_kind}, "
        f"batch {given.batch} at {given.size} px, float32\n")  # fmt: skip
  print("| network | trained | step | arguments, MiB | temporary, MiB | compiling, s |")
  print("|---|---|---|---|---|---|")
  for name in given.models:
    model = models.create(name, num_classes=1000, image_size=given.size)
    image = jax.ShapeDtypeStruct((1, given.size, given.size, 3), jnp.float32)
    variables = {"batch_stats": {}, **jax.eval_shape(model.init, jax.random.key(0), image)}
    for variant in given.variants:
      remat, parts = VARIANTS[variant]
      (stage,) = methods.full_fine_tuning(1e-4, epochs=1, weight_decay=0.1, accumulate=parts)
      arguments, temporary, seconds = step_bytes(
        model, variables, stage, given.batch, given.size, remat, device
      )
      print(f"| {name} | all | {variant} | {arguments >> 20:,} | {temporary >> 20:,} | "
            f"{seconds:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
  main()
