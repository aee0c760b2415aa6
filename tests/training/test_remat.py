"""Blocks that are computed anew in the backward pass: the same numbers in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import methods, weights
from subtune_jax.models import beside, vit
from subtune_jax.runner import network as network_lib
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.training import loop, remat, trainable_split
from subtune_jax.training import step as step_lib
from tests import tiny
from tests.search import small

VIEW = {"seed": np.int32(0), "epoch": np.int32(0)}
_VIT = {"width": 8, "depth": 3, "heads": 2, "mlp_width": 16, "patch_size": 8, "image_size": 16}


def network(name):
  if name == "resnet":
    return small.model()
  return vit.ViT(num_classes=3, drop_path=0.5, **_VIT)


@functools.cache
def variables_of(net):
  images = jnp.zeros((1, 16, 16, 3))
  return {"batch_stats": {}, **jax.jit(net.init)(jax.random.key(0), images)}


@pytest.mark.parametrize(("name", "block"), [
  ("resnet", "block2"),
  pytest.param("vit", "encoderblock_*", marks=pytest.mark.slow),
])  # fmt: skip
def test_values_and_gradients_are_equal(name, block):
  """Of whole networks, of some blocks and of all, with statistics and draws."""
  net = network(name)
  variables = variables_of(net)
  (stage,) = methods.full_fine_tuning(1e-2, epochs=1)
  plan = trainable_split.make_plan(net, variables, stage)
  moving, fixed = trainable_split.split_variables(variables, plan)
  examples = tiny.examples(8)
  x = (examples.images.astype(np.float32) - 127) / 64
  batch = {"x": x, "labels": examples.labels}

  def gradient(blocks):
    spec = step_lib.StepSpec(net, plan, stage, 1, tiny.PREPROCESSING, remat=blocks)

    def loss(params, key):
      return step_lib.loss_of({**moving, "params": params}, fixed, None, batch, spec, key)

    function = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return function(moving["params"], jax.random.key(1) if name == "vit" else None)

  whole = gradient(())
  chosen = remat.blocks_of(block, net, variables["params"])
  for blocks in (chosen, net.block_names):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradient(blocks), whole
    )
  if name == "vit":  # what is drawn matters
    spec = step_lib.StepSpec(net, plan, stage, 1, tiny.PREPROCESSING)
    one, other = (
      step_lib.loss_of(moving, fixed, None, batch, spec, jax.random.key(k))[0] for k in (1, 2)
    )
    assert abs(float(one - other)) > 1e-4


@pytest.mark.slow
def test_a_training_is_the_same():
  """With a cached prefix, a penalty that reads features, and parts of a batch."""
  net = small.model()
  variables = small.variables(net)
  fields = {"epochs": 1, "accumulate": 2, "penalty": methods.FeatureRank(0.1)}
  method = methods.sub_tuning(("block2/unit1", "block3/unit1"), 1e-2, **fields)
  fits = [
    loop.fit(tiny.engine(net, remat=blocks), variables, method, tiny.examples(16), None)
    for blocks in ((), net.block_names)
  ]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    *(fit.variables for fit in fits),
  )


@pytest.mark.slow
def test_a_training_beside_the_frozen_network_is_the_same():
  net, variables = beside.wrap(small.model(), small.variables(small.model()), ("block3/unit1",))
  method = methods.sub_tuning(("block3/unit1",), 1e-2, epochs=1)
  fits = [
    loop.fit(tiny.engine(net, remat=blocks), variables, method, tiny.examples(16), None)
    for blocks in ((), net.block_names)
  ]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    *(fit.variables for fit in fits),
  )


def test_less_is_kept_for_the_backward_pass():
  """By the residuals of the differentiated step, which no compiler has seen."""
  net = small.model(width=16)
  variables = variables_of(net)
  (stage,) = methods.full_fine_tuning(1e-2, epochs=1)
  plan = trainable_split.make_plan(net, variables, stage)
  moving, fixed = trainable_split.split_variables(variables, plan)
  batch = {"x": np.zeros((32, 16, 16, 3), np.float32), "labels": np.zeros(32, np.int32)}

  def kept(blocks):
    spec = step_lib.StepSpec(net, plan, stage, 1, tiny.PREPROCESSING, remat=blocks)
    loss = functools.partial(_loss, moving, fixed, batch, spec)
    back = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], moving["params"])
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(back))

  assert kept(net.block_names) < 0.6 * kept(())


def _loss(moving, fixed, batch, spec, params):
  return step_lib.loss_of({**moving, "params": params}, fixed, None, batch, spec)[0]


@pytest.mark.parametrize(("text", "message"), [
  ("block9", "remat: selector 'block9' matches no leaf"),
  ("block2/unit1,/head", "remat names '/head', which lies in no block; blocks: stem, block1/unit1"),
])  # fmt: skip
def test_bad_names_are_one_error(text, message):
  net = small.model()
  with pytest.raises(ValueError, match=message):
    remat.blocks_of(text, net, variables_of(net)["params"])


def test_selectors_name_blocks():
  net = small.model()
  params = variables_of(net)["params"]
  for text, wanted in (
    ("", ()), ("all", net.block_names), ("block2", ("block2/unit1",)),
    ("block3, stem", ("stem", "block3/unit1")),
  ):  # fmt: skip
    assert remat.blocks_of(text, net, params) == wanted
  method = methods.full_fine_tuning(1e-2, epochs=1)
  with pytest.raises(ValueError, match="block in remat 'block9'"):
    loop.fit(
      tiny.engine(net, remat=("block9",)), small.variables(net), method, tiny.examples(), None
    )


def test_a_config_names_blocks_also_of_a_network_that_a_method_changes():
  net = small.model()
  pretrained = weights.random_weights(net, preprocessing="half")
  config = compare_config.default()
  for text, own in (("all", net.block_names), ("block2", ("block2/unit1",))):
    config.backbone.remat = text
    assert network_lib._remat(config, net, pretrained.variables) == own
    engine, _ = network_lib.prepared("side_tuning", config, tiny.engine(net), pretrained)
    assert engine.remat == ("side",)
