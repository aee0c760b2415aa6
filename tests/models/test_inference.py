"""The inference form of layers: equal values, and nothing that other programs do not know."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax.models import batch_norm, convolution, inference, resnet
from tests import marks
from tests.deploy import export_networks


def _random(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X = _random(0, 2, 9, 9, 4)
LAYERS = {
  "depthwise": lambda x: convolution.depthwise(x, _random(1, 5, 5, 1, 4), 2),
  "pointwise": lambda x: convolution.pointwise(x, _random(2, 1, 1, 4, 3)),
  "full": lambda x: convolution.full(x, _random(3, 3, 3, 4, 3), 2, "SYMMETRIC"),
  "relu6": lambda x: batch_norm.activate(4 * x, "relu6"),
  "max_pool": resnet.max_pool,
}


def _inside(function, target):
  def run(x):
    with inference.form(target):
      return function(x)

  return run


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("target", inference.TARGETS)
def test_values_are_equal_and_nothing_is_ours(layer, target):
  function = LAYERS[layer]
  run = _inside(function, target)
  np.testing.assert_allclose(jax.jit(run)(X), jax.jit(function)(X), atol=1e-5)
  program = str(jax.make_jaxpr(run)(X))
  assert "custom_vjp" in str(jax.make_jaxpr(function)(X))
  assert "custom_vjp" not in program
  assert ("platform_index" in program) == (target == "platforms" and layer in ("depthwise", "full"))


def test_outside_of_it_layers_are_as_before():
  with pytest.raises(ZeroDivisionError), inference.form("onnx"):
    _ = 1 / 0
  assert not inference.is_active()
  assert "custom_vjp" in str(jax.make_jaxpr(LAYERS["depthwise"])(X))


@pytest.mark.parametrize("family", marks.first(1, ["resnet", "bit"]))
def test_batch_norm_and_standardised_kernels_are_constants(family):
  """No square root but those of norms of activations is left to the program."""
  made = export_networks.of_family(family)
  size = made.image_size

  def apply(x):
    return made.model.apply(made.variables, x)

  images = jnp.zeros((1, size, size, 3))
  roots = [
    len(re.findall(r"\brsqrt\b", str(jax.make_jaxpr(f)(images))))
    for f in (apply, _inside(apply, "onnx"))
  ]
  assert roots[0] > roots[1]
  assert roots[1] == (13 if family == "bit" else 0)  # 13 GroupNorms


def test_an_unknown_target():
  with pytest.raises(ValueError, match="'tflite'"), inference.form("tflite"):
    pass
