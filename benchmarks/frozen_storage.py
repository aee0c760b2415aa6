"""Memory of SubTuning's step and of its epoch with frozen weights as float32 and as bfloat16.

  python benchmarks/frozen_storage.py vit_b16 --topology v5e:2x2

By the compiler's count, compiled for shapes alone; nothing is run. The whole network runs in every
step (no features are kept), so that all frozen weights are arguments. If the compiler widened them
once before the loop over the steps of an epoch, the epoch's temporary arrays would hold a float32
copy of them. See benchmarks/memory.py for the topology.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import memory
import numpy as np

from subtune_jax.training import step, trainable_split

SIZE, BATCH, STEPS = 224, 32, 8


def main() -> None:
  """A row for each type, of a step and of an epoch."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("model")
  parser.add_argument("--topology", help="of TPUs, such as v5e:2x2")
  given = parser.parse_args()
  device, shape = memory.device_of(given.topology), jax.ShapeDtypeStruct
  model, variables = memory.shapes_of(given.model, SIZE)
  _, _, stage, _ = memory.case("subtuning", model, variables, 0)
  plan = trainable_split.make_plan(model, variables, stage)
  spec = step.StepSpec(model, plan, stage, STEPS, memory.PREPROCESSING)
  moving, fixed = trainable_split.split_variables(variables, plan)
  state = jax.eval_shape(functools.partial(step.create_train_state, spec), moving)
  n = BATCH * STEPS
  data = {"x": shape((n, SIZE, SIZE, 3), np.uint8), "labels": shape((n,), np.int32)}
  view = {"seed": shape((), np.int32), "epoch": shape((), np.int32)}
  place = jax.sharding.SingleDeviceSharding(device)
  trained = ", ".join(plan.blocks)
  print(f"{given.model}, {trained} trained, {device.device_kind}, batch {BATCH} at {SIZE} px")
  for dtype in (jnp.float32, jnp.bfloat16):
    stored = jax.tree.map(lambda x, dtype=dtype: shape(x.shape, dtype), fixed["params"])
    own = {**fixed, "params": stored}
    for what, run, rows in (("step", step.train_step, (BATCH,)),
                            ("epoch", step.train_steps, (STEPS, BATCH))):  # fmt: skip
      jitted = jax.jit(functools.partial(run, spec), donate_argnums=0, in_shardings=place,
                       out_shardings=place)  # fmt: skip
      lowered = jitted.lower(state, own, None, data, shape(rows, np.int32), view)
      found = lowered.compile().memory_analysis()
      print(f"{np.dtype(dtype).name:9} {what:6} arguments {found.argument_size_in_bytes >> 20} MiB,"
            f" temporary {found.temp_size_in_bytes >> 20} MiB", flush=True)  # fmt: skip


if __name__ == "__main__":
  main()
