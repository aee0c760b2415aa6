"""The forms of attention agree; those for an NVIDIA GPU are lowered, not run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import models
from subtune_jax.models import vit_layers
from tests import marks


@pytest.mark.parametrize(
  ("queries", "tokens"), marks.first(2, [(5, 5), (1, 4), (1, 5), (4, 4)], several=True)
)
def test_filled_up_attention_has_the_same_values_and_gradients(queries, tokens):
  rng = np.random.default_rng(0)
  q, k, v = (
    rng.normal(size=(2, rows, 3, 8)).astype(np.float32) for rows in (queries, tokens, tokens)
  )
  weights = rng.normal(size=q.shape).astype(np.float32)

  def loss(form, *qkv):
    y = form(*qkv, "xla")
    assert y.shape == q.shape
    return jnp.sum(y * weights)

  forms = (vit_layers.attend, vit_layers.attend_filled_up)
  found = [jax.value_and_grad(functools.partial(loss, f), (0, 1, 2))(q, k, v) for f in forms]
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), *found)
  assert all(np.abs(gradient).max() > 1e-3 for gradient in found[0][1])


@pytest.mark.parametrize("name", ["vit_b16", "siglip_vit_b16"])
def test_training_with_cudnn_lowers(name, monkeypatch):
  """197 tokens; and 196 with one query of the pooling."""
  module = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(module, "check_cudnn_version", lambda: 91000)
  model = models.create(name, 5, jnp.bfloat16, depth=1, attention="cudnn")
  image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
  variables = jax.eval_shape(model.clone(attention=None).init, jax.random.key(0), image)

  def loss(variables, images):
    return jnp.sum(model.apply(variables, images))

  traced = jax.jit(jax.grad(loss)).trace(variables, image)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "__cudnn$fmhaSoftmaxBackward" in text
