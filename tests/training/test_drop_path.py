"""Stochastic depth: what a block leaves out, and that no option of speed changes a training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import adapters, methods, models
from subtune_jax.models import adapted, backbone
from subtune_jax.training import loop
from tests import tiny

SMALL = {"image_size": 16, "patch_size": 8, "width": 8, "depth": 3, "heads": 2}


def network(**fields):
  model = models.create("vit_b16", num_classes=3, **SMALL, **fields)
  return model, backbone.initialise(model, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


def fit(model, variables, method=None, **fields):
  engine = tiny.engine(model, **fields)
  method = method or methods.sub_tuning(("encoderblock_2",), 1e-2, epochs=2)
  return loop.fit(engine, variables, method, tiny.examples(24), tiny.examples(12, seed=1))


def weights(result):
  return jax.tree.leaves(result.variables["params"])


def test_each_branch_is_left_out_or_divided_by_the_rest():
  model, variables = network(drop_path=0.5)
  block = backbone.block_module(model, "encoderblock_2", False)
  params = {"params": variables["params"]["encoderblock_2"]}
  assert block.drop_path == 0.5
  x = jax.random.normal(jax.random.key(1), (64, 5, 8))
  parts = {}
  for name, zeroed in (("attention", ("mlp", "out")), ("mlp", ("attention", "out"))):
    own = jax.tree.map(lambda leaf: leaf, params)
    own["params"][zeroed[0]][zeroed[1]] = jax.tree.map(
      jnp.zeros_like, own["params"][zeroed[0]][zeroed[1]]
    )
    parts[name] = lambda x, own=own: block.apply(own, x) - x
  found = block.apply(params, x, rngs={"dropout": jax.random.key(2)})
  with_attention = x + 2 * parts["attention"](x)
  allowed = [x, x + 2 * parts["mlp"](x), with_attention,
             with_attention + 2 * parts["mlp"](with_attention)]  # fmt: skip
  distance = np.array([np.abs(found - one).max(axis=(1, 2)) for one in allowed])
  assert (distance.min(axis=0) < 1e-5).all()
  assert set(distance.argmin(axis=0)) == {0, 1, 2, 3}


def test_rates_rise_from_0_and_evaluation_leaves_out_nothing():
  model, variables = network(drop_path=0.3)
  rates = [backbone.block_module(model, f"encoderblock_{i}", False).drop_path for i in range(3)]
  np.testing.assert_allclose(rates, np.linspace(0, 0.3, 3))  # as timm's
  plain, _ = network()
  x = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
  np.testing.assert_array_equal(model.apply(variables, x), plain.apply(variables, x))
  with pytest.raises(ValueError, match="drop_path is 1"):
    network(drop_path=1.0)


def test_a_training_draws_anew_in_each_step_and_does_not_depend_on_the_cache():
  model, variables = network(drop_path=0.5)
  cached = fit(model, variables)
  for a, b in zip(weights(cached), weights(fit(model, variables, prefix_cache=False)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  for a, b in zip(weights(cached), weights(fit(model, variables)), strict=True):
    np.testing.assert_array_equal(a, b)
  assembled = fit(model, variables, in_pieces=True)  # compiled whole: pieces do not draw
  for a, b in zip(weights(cached), weights(assembled), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  plain, _ = network()
  moved = [
    np.abs(a - b).max()
    for a, b in zip(weights(cached), weights(fit(plain, variables)), strict=True)
  ]
  assert max(moved) > 1e-3


def test_dropout_of_an_adapter_is_on_while_it_is_trained():
  plain, variables = network()
  rule = adapters.LoRA("/encoderblock_2/attention/qkv", rank=2)
  found = {}
  for dropout in (0.0, 0.5):
    own = dataclasses.replace(rule, dropout=dropout)
    model, joint = adapted.add(plain, variables, own, jax.random.key(1))
    assert model.is_random == bool(dropout)
    method = methods.sub_tuning(("encoderblock_2",), 1e-2, epochs=2)
    found[dropout] = weights(fit(model, joint, method))
  assert max(np.abs(a - b).max() for a, b in zip(*found.values(), strict=True)) > 1e-4
