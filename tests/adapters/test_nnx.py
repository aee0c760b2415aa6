"""Adapters on NNX models."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import adapters, masks


class Unit(nnx.Module):
  """A norm and a linear layer beside a shortcut."""

  def __init__(self, rngs):
    self.norm = nnx.LayerNorm(16, rngs=rngs)
    self.mlp = nnx.Linear(16, 16, rngs=rngs)

  def __call__(self, x):
    return x + self.mlp(self.norm(x))


class Net(nnx.Module):
  """Convolutions, an einsum, attention, layers in a list and scanned ones."""

  def __init__(self, rngs):
    self.stem = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
    self.grouped = nnx.Conv(8, 16, (3, 3), feature_group_count=2, rngs=rngs)
    self.einsum = nnx.Einsum("btd,dnh->btnh", (16, 2, 8), (2, 8), rngs=rngs)
    self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
    self.units = nnx.List([Unit(rngs) for _ in range(2)])
    self.scanned = nnx.vmap(lambda rngs: Unit(rngs), in_axes=0)(rngs.fork(split=3))
    self.head = nnx.Linear(16, 5, rngs=rngs)

  def __call__(self, images):
    x = self.grouped(nnx.relu(self.stem(images)))
    x = x.reshape(x.shape[0], -1, 16)
    x = self.attention(self.einsum(x).reshape(x.shape))
    for unit in self.units:
      x = unit(x)
    x = nnx.scan(lambda unit, x: unit(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(
      self.scanned, x
    )
    return self.head(x.mean(1))


@pytest.fixture(scope="module")
def net():
  images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  model = Net(nnx.Rngs(0))
  graphdef, state = nnx.split(model)
  base = jax.jit(lambda state: nnx.merge(graphdef, state)(images))(state)
  return model, state, images, base


RULES = {
  "lora": adapters.LoRA(exclude="head", rank=2),
  "dora": adapters.DoRA(exclude="head", rank=2),
  "ssf": adapters.SSF(["units", "scanned", "stem"]),
}


@pytest.mark.parametrize("name", ["lora", "ssf", pytest.param("dora", marks=pytest.mark.slow)])
def test_fresh_ones_change_nothing_and_trained_ones_merge(net, name):
  model, state, images, base = net
  adapted, tree = adapters.add(model, state, RULES[name], jax.random.key(1))
  assert {"scanned/mlp", "units/1/mlp"} <= set(tree)
  apply = jax.jit(lambda tree: adapted.apply(state, tree, images))
  np.testing.assert_allclose(apply(tree), base, atol=1e-5)
  trained = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), tree
  )
  y = apply(trained)
  assert np.abs(y - base).max() > 0.05
  merged = adapted.merge(state, trained)
  assert jax.tree.structure(merged) == jax.tree.structure(state)
  graphdef = nnx.graphdef(model)
  alone = jax.jit(lambda state: nnx.merge(graphdef, state)(images))(merged)
  np.testing.assert_allclose(alone, y, atol=1e-5)
  assert not hasattr(model.units[1].mlp, "adapters")


def test_labels_and_gradients(net):
  model, state, images, _ = net
  params = nnx.filter_state(state, nnx.Param)
  adapted, tree = adapters.add(model, state, adapters.LoRA("units", rank=2), jax.random.key(1))
  labels = adapted.labels(params, tree, {"head": "head"})
  joint = {"base": params, "adapters": tree}
  assert masks.count_params(joint, labels)["adapter"] == 2 * 2 * (16 + 16)
  trained, frozen = masks.partition(joint, labels)
  rest = nnx.filter_state(state, lambda path, leaf: not isinstance(leaf, nnx.Param))

  def loss(trained):
    both = masks.combine(trained, frozen)
    return adapted.apply(nnx.merge_state(both["base"], rest), both["adapters"], images).sum()

  gradient = jax.jit(jax.grad(loss))(trained)
  assert len(jax.tree.leaves(gradient)) == 2 + 2 * 2
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_adapters_that_read_shapes_get_them_from_a_traced_call(net):
  model, state, images, base = net
  rules = [adapters.Houlsby("units/0", rank=2), adapters.VPT("units/1", prompts=3)]
  adapted, tree = adapters.add(model, state, rules, jax.random.key(1), images)
  assert tree["units/1"]["vpt"]["prompts"].shape == (3, 16)
  y = jax.jit(lambda tree: adapted.apply(state, tree, images))(tree)
  np.testing.assert_allclose(y, base, atol=1e-5)  # this unit mixes no tokens


def test_dropout_is_refused(net):
  model, state, _, _ = net
  with pytest.raises(ValueError, match="no dropout of adapters on NNX"):
    adapters.add(model, state, adapters.LoRA("units", dropout=0.5), jax.random.key(1))
