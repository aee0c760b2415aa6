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
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np

from subtune_jax import methods, models
from subtune_jax.data import preprocess
from subtune_jax.training import step, trainable_split

PREPROCESSING = preprocess.Preprocessing(mean=(127.0,), std=(128.0,))
SIZE, BATCH, STEPS = 224, 32, 8


def main() -> None:
  """A row for each type, of a step and of an epoch."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("model")
  parser.add_argument("--topology", help="of TPUs, such as v5e:2x2")
  given = parser.parse_args()
  device = jax.devices()[0]
  if given.topology:
    device = topologies.get_topology_desc(given.topology, platform="tpu").devices[0]
  shape = jax.ShapeDtypeStruct
  model = models.create(given.model, num_classes=1000, image_size=SIZE)
  image = shape((1, SIZE, SIZE, 3), jnp.float32)
  variables = {"batch_stats": {}, **jax.eval_shape(model.init, jax.random.key(0), image)}
  block = [name for name in model.block_names if "norm" not in name][-1]
  (stage,) = methods.sub_tuning((block,), 1e-3, epochs=1)
  plan = trainable_split.make_plan(model, variables, stage)
  spec = step.StepSpec(model, plan, stage, STEPS, PREPROCESSING)
  moving, fixed = trainable_split.split_variables(variables, plan)
  state = jax.eval_shape(functools.partial(step.create_train_state, spec), moving)
  n = BATCH * STEPS
  data = {"x": shape((n, SIZE, SIZE, 3), np.uint8), "labels": shape((n,), np.int32)}
  view = {"seed": shape((), np.int32), "epoch": shape((), np.int32)}
  place = jax.sharding.SingleDeviceSharding(device)
  print(f"{given.model}, {block} trained, {device.device_kind}, batch {BATCH} at {SIZE} px")
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
