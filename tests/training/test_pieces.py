"""Steps put together from programs of single blocks equal whole steps."""

import functools

import jax
import numpy as np
import pytest

from subtune_jax import methods, models
from subtune_jax.data import preprocess
from subtune_jax.training import blockwise_step, loop, trainable_split
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import step as step_lib
from tests import marks, tiny
from tests.search import small

HALF = preprocess.Preprocessing(mean=(127.0,), std=(128.0,))


def fit(net, variables, method, in_pieces, **fields):
  train = tiny.examples(24)
  engine = tiny.engine(net, in_pieces=in_pieces, **fields)
  return loop.fit(engine, variables, method, train, tiny.examples(13, seed=1), seed=3)


def largest(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return max((float(np.max(np.abs(np.asarray(x) - np.asarray(y)))) for x, y in pairs), default=0.0)


METHODS = {
  "first": methods.sub_tuning(("stem",), 1e-2, epochs=2),
  "middle": methods.sub_tuning(("block2/unit1",), 1e-2, epochs=2),
  "two": methods.sub_tuning(("block1/unit1", "block3/unit1"), 1e-2, epochs=2, optimizer="sgd"),
  "running": methods.sub_tuning(("block2/unit1",), 1e-2, epochs=2, norm_mode="running"),
  "weighted": methods.sub_tuning(("block2/unit1",), 1e-2, epochs=2, class_weights=(1.0, 5.0, 0.5)),
  "all": methods.full_fine_tuning(1e-2, epochs=2, weight_decay=1e-2, head_learning_rate=0.1),
  "constant": methods.sub_tuning(
    ("block3/unit1",), 1e-2, epochs=2, schedule="constant", warmup=0.3
  ),
}


@pytest.mark.parametrize(
  ("name", "cache"),
  marks.first(4, [("middle", False), *((name, True) for name in METHODS)], several=True),
)
def test_equals_the_whole_step(name, cache):
  """In float32, by rounding: the same losses, weights, statistics and validation figures."""
  net = small.model()
  variables = small.variables(net)
  whole, made = (
    fit(net, variables, METHODS[name], in_pieces, prefix_cache=cache) for in_pieces in (False, True)
  )
  assert largest(whole.variables, made.variables) < 2e-4
  assert largest(variables, made.variables) > 1e-3
  for one, other in zip(whole.history, made.history, strict=True):
    for key in ("train_loss", "gradient_norm", "validation_loss"):
      assert one[key] == pytest.approx(other[key], rel=1e-3), key


def test_frozen_units_stay_bit_equal():
  net = small.model()
  variables = small.variables(net)
  result = fit(net, variables, METHODS["middle"], True)
  for tree in ("params", "batch_stats"):
    for unit in ("stem", "block1/unit1", "block3/unit1"):
      before, after = (blockwise_step.part(v[tree], unit) for v in (variables, result.variables))
      assert largest(before, after) == 0
  assert largest(*(blockwise_step.part(v["batch_stats"], "block2/unit1")
                   for v in (variables, result.variables))) > 0  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_ti16", "efficientnet_lite0"])
def test_other_families(name):
  net = models.create(name, 3, image_size=32)
  images = np.zeros((1, 32, 32, 3), np.float32)
  variables = jax.jit(net.init)(jax.random.key(0), images)
  variables = {"batch_stats": {}, **variables}
  block = net.block_names[-2]
  plan = trainable_split.make_plan(net, variables, methods.sub_tuning((block,), 1e-2, epochs=1)[0])
  spec = step_lib.StepSpec(
    net, plan, methods.sub_tuning((block,), 1e-2, epochs=1)[0], 3, HALF, None, None
  )
  moving, fixed = trainable_split.split_variables(variables, plan)
  moving = mesh_lib.put(moving, tiny.one_device())  # a step takes its state's buffers
  data = {"x": tiny.examples(8).images.repeat(2, 1).repeat(2, 2), "labels": tiny.examples(8).labels}
  view = {"seed": np.int32(0), "epoch": np.int32(0)}
  indices = np.arange(8, dtype=np.int32)
  step = blockwise_step.Step(spec)
  arguments = fixed, None, data, indices, view
  whole, wanted = jax.jit(functools.partial(step_lib.train_step, spec))(
    spec.create_state(moving), *arguments
  )
  made, metrics = step(step.create_state(moving), *arguments)
  assert metrics["loss"] == pytest.approx(float(wanted["loss"]), rel=1e-4)
  assert metrics["gradient_norm"] == pytest.approx(float(wanted["gradient_norm"]), rel=1e-3)
  assert largest(made.moving["batch_stats"], whole.moving["batch_stats"]) < 1e-4


def test_equal_blocks_share_their_programs():
  """Of 12 equal encoder blocks one is compiled; of ResNet-50's 16 units, 8."""
  vit = models.create("vit_b16", 10)
  keys = {blockwise_step._unit(vit, name) for name in vit.block_names if "encoderblock" in name}
  assert len(keys) == 1
  resnet = models.create("resnet50", 10)
  assert len({blockwise_step._unit(resnet, name) for name in resnet.block_names}) == 1 + 8


def test_another_set_compiles_no_block_anew():
  net = small.model()
  variables = small.variables(net)
  for blocks in (("block1/unit1", "block2/unit1"), ("block2/unit1", "block3/unit1")):
    fit(net, variables, methods.sub_tuning(blocks, 1e-2, epochs=1), True)
  misses = blockwise_step._differentiable.cache_info().misses
  fit(net, variables, methods.sub_tuning(("block1/unit1", "block3/unit1"), 1e-2, epochs=1), True)
  assert blockwise_step._differentiable.cache_info().misses <= misses + 1  # block2, frozen


@pytest.mark.parametrize(
  ("fields", "reason"),
  [({"clip_norm": 1.0}, "clip_norm"), ({"average": lambda a, b, c: b}, "an average")],
)
def test_what_cannot_be_put_together_is_compiled_whole(fields, reason):
  net = small.model()
  variables = small.variables(net)
  method = methods.sub_tuning(("block3/unit1",), 1e-2, epochs=1, **fields)
  plan = trainable_split.make_plan(net, variables, method[0])
  spec = step_lib.StepSpec(net, plan, method[0], 3, HALF)
  assert reason in blockwise_step.why_not(spec, 1)
  made, whole = (fit(net, variables, method, in_pieces) for in_pieces in (True, False))
  assert largest(made.variables["params"], whole.variables["params"]) == 0


def test_a_block_of_which_some_leaves_are_trained_is_compiled_whole():
  net = small.model()
  variables = small.variables(net)
  method = (methods.Stage(
    "bias", {"head": "/head", "tuned": "/block3/unit1/conv1"},
    methods.Gradient({"head": 1e-2, "tuned": 1e-2}, epochs=1),
  ),)  # fmt: skip
  plan = trainable_split.make_plan(net, variables, method[0])
  assert "some leaves" in blockwise_step.why_not(
    step_lib.StepSpec(net, plan, method[0], 3, HALF), 1
  )
