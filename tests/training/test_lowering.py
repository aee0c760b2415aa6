"""Every kind of step lowers for TPU and CUDA, which this machine need not have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import methods
from subtune_jax.data import preprocess
from subtune_jax.models import efficientnet
from subtune_jax.training import step as step_lib
from subtune_jax.training import trainable_split
from tests import marks

PREPROCESSING = preprocess.Preprocessing(mean=(127.0,), std=(128.0,))
BATCH = 4


def ema(running, trained, step):
  del step
  return jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, running, trained)


def l2_sp(trained, initial, logits, batch):
  del logits, batch
  return sum(
    jnp.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (trained, initial)), strict=True)
  )


SGD = {"optimizer": "sgd", "weight_decay": 1e-4, "clip_norm": 1.0, "warmup": 0.1}
CASES = {
  "full": (methods.full_fine_tuning(1e-3, epochs=1), {}),
  "full, bfloat16": (methods.full_fine_tuning(1e-3, epochs=1), {"dtype": jnp.bfloat16}),
  "full, eval BatchNorm": (methods.lp_ft(1e-3, epochs=1), {}),
  "one block": (methods.sub_tuning(("block2",), 1e-3, epochs=1, **SGD), {}),
  "one block, cached": (methods.sub_tuning(("block4",), 1e-3, epochs=1), {"cached": True}),
  "penalty, average": (
    methods.sub_tuning(("top",), 1e-3, epochs=1, penalty=l2_sp, average=ema), {}
  ),
  "shifted": (methods.sub_tuning(("top",), 1e-3, epochs=1), {"augmentation": ("shift", 4, True)}),
  "cropped": (
    methods.sub_tuning(("top",), 1e-3, epochs=1), {"augmentation": ("resized_crop", 0, True)}
  ),
}  # fmt: skip


def shapes(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


@functools.cache
def network(dtype):
  # Five blocks hold every kind of layer: kernels 3 and 5, strides 1 and 2, with a shortcut or none.
  blocks = efficientnet.lite_blocks(1.0, 1.0)[:5]
  model = efficientnet.EfficientNet(num_classes=5, blocks=blocks, features=64, dtype=dtype)
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  return model, jax.eval_shape(model.init, jax.random.key(0), image)


@pytest.mark.parametrize(
  ("case", "scan"),
  marks.first(
    6,
    [("full", True), ("one block, cached", True), *((case, False) for case in CASES)],
    several=True,
  ),
)
def test_lowers(case, scan):
  method, options = CASES[case]
  model, variables = network(options.get("dtype", jnp.float32))
  stage = method[-1]
  plan = trainable_split.make_plan(model, variables, stage)
  start = plan.start if options.get("cached") else None
  augmentation = (
    step_lib.Augmentation(*options["augmentation"]) if "augmentation" in options else None
  )
  spec = step_lib.StepSpec(model, plan, stage, 10, PREPROCESSING, augmentation, start)
  moving, fixed = trainable_split.split_variables(variables, plan)
  state = jax.eval_shape(functools.partial(step_lib.create_train_state, spec), moving)
  x = jax.ShapeDtypeStruct((16, 32, 32, 3), jnp.uint8)
  if start:
    forward = functools.partial(model.apply, stop=start)
    x = jax.eval_shape(forward, variables, jax.ShapeDtypeStruct((16, 32, 32, 3), jnp.float32))
  data = {"x": x, "labels": jax.ShapeDtypeStruct((16,), jnp.int32)}
  indices = jax.ShapeDtypeStruct((2, BATCH) if scan else (BATCH,), jnp.int32)
  view = {"seed": np.int32(0), "epoch": np.int32(0)}
  initial = moving["params"] if stage.penalty else None
  function = functools.partial(step_lib.train_steps if scan else step_lib.train_step, spec)
  arguments = shapes((state, fixed, initial, data, indices, view))
  exported = jax.export.export(jax.jit(function), platforms=("tpu", "cuda"))(*arguments)
  assert exported.platforms == ("tpu", "cuda")
  text = exported.mlir_module()
  assert "stablehlo.convolution" in text
  assert ("bf16" in text) == ("bfloat16" in case)


def test_evaluation_lowers():
  model, variables = network(jnp.float32)

  def forward(variables, x):
    return model.apply(variables, preprocess.normalize(x, PREPROCESSING))

  image = jax.ShapeDtypeStruct((BATCH, 32, 32, 3), jnp.uint8)
  exported = jax.export.export(jax.jit(forward), platforms=("tpu", "cuda"))(variables, image)
  assert exported.platforms == ("tpu", "cuda")
