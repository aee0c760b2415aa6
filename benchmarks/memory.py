"""Memory of a training step by the compiler's count, compiled for shapes alone; nothing is run.

  python benchmarks/memory.py --topology v5e:2x2

The topology is one that the TPU compiler knows; it needs no TPU, but the compiler: `pip install
libtpu`, or TPU_LIBRARY_PATH. Without a topology the program is compiled for the devices at hand.

Of each network a step with AdamW of full fine-tuning as it is, with every block computed anew in
the backward pass (`remat`), and from four parts of the batch (`accumulate`); of LoRA on all layers
but the head; and of SubTuning of the last block that is no norm, from the features before it, which
are kept. "Temporary" is what the program holds beside its arguments at its peak: activations and
gradients. Weights that the step does not read are no arguments. Operations are over those of a
plain forward pass, about 3 where every gradient is computed, 2 where none of a frozen weight is:
multiply-adds of the traced step without what its results do not need, and FLOPs that the compiler
counts, elementwise ones included, twice where it computes them twice.
The compiler for CPU finds what is computed twice and computes it once, so that `remat` takes no
memory away there.
"""

import argparse
import datetime
import functools
import time
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np

from subtune_jax import methods, models
from subtune_jax.data import preprocess
from subtune_jax.models import flops
from subtune_jax.training import step, trainable_split

PREPROCESSING = preprocess.Preprocessing(mean=(127.0,), std=(128.0,))
VARIANTS = ("as it is", "remat", "accumulate=4", "both", "lora", "lora, remat", "subtuning")


class Case(NamedTuple):
  """What a step is made of: the network, shapes of its variables, the stage, blocks anew."""

  model: Any
  variables: Any
  stage: methods.Stage
  remat: bool = False


class Counted(NamedTuple):
  """By the compiler: bytes of arguments and temporary arrays, FLOPs; bytes of the optimiser."""

  arguments: int
  temporary: int
  macs: int
  flops: float
  optimiser: int
  trained: int
  seconds: float


def case(variant: str, model: Any, variables: Any, rank: int) -> Case:
  """The step of a variant; LoRA is of that rank."""
  shared = {"epochs": 1, "weight_decay": 0.1}
  if variant in ("lora", "lora, remat"):
    (stage,) = methods.adapter_tuning(1e-3, **shared, norm_mode="running")
    own, its = with_adapters(model, variables, {"rank": rank, "alpha": float(rank)})
    return Case(own, its, stage, variant == "lora, remat")
  if variant == "subtuning":
    last = [name for name in model.block_names if "norm" not in name][-1]
    (stage,) = methods.sub_tuning((last,), 1e-3, **shared)
    return Case(model, variables, stage)
  parts = 4 if variant in ("accumulate=4", "both") else 1
  (stage,) = methods.full_fine_tuning(1e-4, **shared, accumulate=parts)
  return Case(model, variables, stage, variant in ("remat", "both"))


def with_adapters(model: Any, variables: Any, options: Any) -> tuple[Any, Any]:
  """The network with LoRA as a comparison puts it there, and the shapes of its variables."""
  declared, changed = methods.DECLARED["lora"], []
  options = methods.options_of(declared, None) | options

  def prepare(variables: Any) -> Any:
    own, its = declared.prepare(model, variables, jax.random.key(0), options)
    changed.append(own)
    return its

  shapes = jax.eval_shape(prepare, variables)
  return changed[0], shapes


def count(case: Case, batch: int, size: int, device: Any) -> Counted:
  """What the compiler counts of a step on a device."""
  model, variables, stage, remat = case
  plan = trainable_split.make_plan(model, variables, stage)
  units = model.block_names[model.block_names.index(plan.start) :]
  start = None if plan.start == model.block_names[0] else plan.start
  spec = step.StepSpec(model, plan, stage, 1, PREPROCESSING, start=start,
                       remat=units if remat else ())  # fmt: skip
  moving, fixed = trainable_split.split_variables(variables, plan)
  state = jax.eval_shape(functools.partial(step.create_train_state, spec), moving)
  shape = jax.ShapeDtypeStruct
  x = shape((batch, size, size, 3), np.uint8)
  if start:
    before = functools.partial(model.apply, stop=start)
    x = jax.eval_shape(before, variables, shape(x.shape, jnp.float32))
  rows = {"x": x, "labels": shape((batch,), np.int32), "ids": shape((batch,), np.int32)}
  view = {"seed": shape((), np.int32), "epoch": shape((), np.int32)}
  place = jax.sharding.SingleDeviceSharding(device)
  given = (state, fixed, None, rows, None, view)
  function = functools.partial(step.train_step, spec)
  begin = time.perf_counter()
  jitted = jax.jit(function, donate_argnums=0, in_shardings=place, out_shardings=place)
  compiled = jitted.lower(*given).compile()
  found = compiled.memory_analysis()
  return Counted(
    found.argument_size_in_bytes, found.temp_size_in_bytes, flops.count(needed(function), *given),
    compiled.cost_analysis()["flops"],
    sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state)),
    sum(x.size for x in jax.tree.leaves(moving["params"])), time.perf_counter() - begin,
  )  # fmt: skip


def needed(function: Any) -> Any:
  """The function without what its results do not need."""

  def run(*arguments: Any) -> Any:
    program = jax.make_jaxpr(function)(*arguments)
    used, kept = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
    leaves = [x for x, keep in zip(jax.tree.leaves(arguments), kept, strict=True) if keep]
    return jax.core.eval_jaxpr(used, program.consts, *leaves)

  return run


def device_of(topology: str | None) -> Any:
  """The first device at hand, or of a topology of TPUs."""
  if topology is None:
    return jax.devices()[0]
  return topologies.get_topology_desc(topology, platform="tpu").devices[0]


def shapes_of(name: str, size: int) -> tuple[Any, Any]:
  """A network of 1,000 classes, and the shapes of its variables."""
  model = models.create(name, num_classes=1000, image_size=size)
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return model, {"batch_stats": {}, **jax.eval_shape(model.init, jax.random.key(0), image)}


def main() -> None:
  """A row per network and variant."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--models", nargs="+", default=["resnet50", "vit_b16"])
  parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--size", type=int, default=224)
  parser.add_argument("--rank", type=int, default=16, help="of LoRA")
  parser.add_argument("--topology", help="of TPUs, such as v5e:2x2")
  given = parser.parse_args()
  device = device_of(given.topology)
  print(f"{datetime.date.today()}, jax {jax.__version__}, compiled for {device.device_kind}, "
        f"batch {given.batch} at {given.size} px, float32\n")  # fmt: skip
  print("| network | step | trained | optimiser, MiB | arguments, MiB | temporary, MiB "
        "| multiply-adds | FLOPs | compiling, s |")  # fmt: skip
  print("|---|---|---|---|---|---|---|---|---|")
  for name in given.models:
    model, variables = shapes_of(name, given.size)
    forward = given.batch * sum(flops.count_macs(model).values())
    for variant in given.variants:
      found = count(case(variant, model, variables, given.rank), given.batch, given.size, device)
      print(f"| {name} | {variant} | {found.trained:,} | {found.optimiser >> 20:,} | "
            f"{found.arguments >> 20:,} | {found.temporary >> 20:,} | "
            f"{found.macs / forward:.2f} | {found.flops / forward / 2:.2f} | {found.seconds:.0f} |",
            flush=True)  # fmt: skip


if __name__ == "__main__":
  main()
