"""LoRA and DoRA on a Linen model with every kind of layer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from subtune_jax import adapters, masks
from tests.adapters import models

RULES = {
  "lora": adapters.LoRA(exclude="head", rank=8, alpha=4),
  "dora": adapters.DoRA(exclude="head", rank=8),
  "peft": adapters.LoRA(exclude="head", rank=8, grouped="peft", rslora=True),
}


@pytest.fixture(scope="module")
def net():
  return models.net()


@pytest.fixture(scope="module")
def base(net):
  model, variables, images = net
  return jax.jit(model.apply)(variables, images)


def added(net, rule):
  model, variables, images = net
  return adapters.add(model, variables, rule, jax.random.key(2), images)


def noisy(tree, size=0.1):
  leaves, treedef = jax.tree.flatten(tree)
  keys = jax.random.split(jax.random.key(3), len(leaves))
  return treedef.unflatten(
    [x + size * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
  )


@pytest.mark.parametrize("name", RULES)
def test_fresh_ones_change_nothing_and_trained_ones_merge(net, base, name):
  model, variables, images = net
  adapted, tree = added(net, RULES[name])
  assert len(tree) == 14
  assert "layers/attention/query" in tree
  apply = jax.jit(lambda tree: adapted.apply(variables, tree, images))
  np.testing.assert_allclose(apply(tree), base, atol=1e-5)
  trained = noisy(tree)
  if name == "peft":
    with pytest.raises(
      ValueError, match="merging is not exact: lora at depthwise, lora at grouped"
    ):
      adapted.merge(variables["params"], trained)
    both = adapters.combine(adapted, [trained, noisy(tree, 0.05)], [1.0, 0.0])
    np.testing.assert_allclose(apply(both), apply(trained), atol=1e-5)
    return
  merged = adapted.merge(variables["params"], trained)
  assert jax.tree.structure(merged) == jax.tree.structure(variables["params"])
  y = apply(trained)
  assert np.abs(y - base).max() > 0.1
  np.testing.assert_allclose(jax.jit(model.apply)({"params": merged}, images), y, atol=1e-5)
  if name == "dora":
    with pytest.raises(ValueError, match="cannot be taken out"):
      adapted.unmerge(merged, trained)
    return
  back = adapted.unmerge(merged, trained)
  for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(variables["params"]), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
  both = adapters.combine(adapted, [trained, noisy(tree, 0.05)], [1.0, 0.0])
  np.testing.assert_allclose(adapted.merge(variables["params"], both)["grouped"]["kernel"],
                             merged["grouped"]["kernel"], atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("rule", [adapters.LoRA("*", rank=4), adapters.DoRA("*", rank=4)])
def test_fresh_ones_change_no_bit(rule):
  """Operation by operation: as one program, XLA may round what it fuses in another way."""
  x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
  model = models.Small()
  variables = model.init(jax.random.key(1), x)
  adapted, tree = adapters.add(model, variables, rule, jax.random.key(2), x)
  assert len(tree) == 4
  assert np.array_equal(adapted.apply(variables, tree, x), model.apply(variables, x))


def test_ssf_behind_a_batch_norm_of_flax_merges():
  x = jax.random.normal(jax.random.key(0), (2, 3))
  model = models.Normed()
  with jax.numpy_rank_promotion("allow"):
    variables = model.init(jax.random.key(1), x)
    adapted, tree = adapters.add(model, variables, adapters.SSF(), jax.random.key(2), x)
    assert list(tree) == ["bn", "dense"]
    assert np.array_equal(adapted.apply(variables, tree, x), model.apply(variables, x))
    trained = noisy(tree, 0.3)
    merged = {**variables, "params": adapted.merge(variables["params"], trained)}
    y = adapted.apply(variables, trained, x)
    np.testing.assert_allclose(model.apply(merged, x), y, atol=1e-6)


def test_every_example_has_its_own_adapters_and_head(net):
  _, variables, images = net
  adapted, tree = added(net, adapters.LoRA("layers", rank=2))
  head = {"kernel": jnp.ones((16, 5)), "bias": jnp.zeros(5)}
  tasks = [
    adapters.with_leaves(own, {"head": jax.tree.map(lambda x, i=i: x * i, head)})
    for i, own in enumerate((noisy(tree), noisy(tree, 0.2)))
  ]
  alone = [jax.jit(adapted.apply)(variables, task, images) for task in tasks]
  index = jnp.array([1, 0])
  y = jax.jit(adapted.apply_each)(variables, adapters.stack(tasks), index, images)
  np.testing.assert_allclose(y, jnp.stack([alone[1][0], alone[0][1]]), atol=1e-5)
  with pytest.raises(ValueError, match="tree 1 has other leaves"):
    adapters.stack([tasks[0], tree])


def test_switching_compiles_nothing(net):
  _, variables, images = net
  weak, tree = added(net, adapters.LoRA("mlp", rank=2, alpha=1))
  apply = jax.jit(lambda tree: weak.apply(variables, tree, images))
  apply(tree)
  _, strong = added(net, adapters.LoRA("mlp", rank=2, alpha=7))
  apply(strong)
  assert apply._cache_size() == 1
  assert float(strong["last/mlp"]["lora"]["scaling"]) == 3.5


def test_a_step_leaves_the_base_as_it_is(net):
  _, variables, images = net
  adapted, tree = added(net, adapters.LoRA("attention", rank=2))
  joint = {"base": variables["params"], "adapters": tree}
  labels = adapted.labels(variables["params"], tree, {"head": "/head"})
  tx = masks.multi_transform(
    {"head": optax.adamw(1e-2), adapters.ADAPTER: optax.adamw(1e-2, weight_decay=0.1)}, labels
  )
  tx = optax.chain(optax.clip_by_global_norm(1.0), tx)
  trained, _ = masks.partition(joint, labels)
  state = {"params": joint, "opt_state": tx.init(trained)}

  after, _ = jax.jit(models.make_step(adapted, labels, tx))(state, (images, jnp.array([0, 1])))
  for path, leaf in masks.tree.flatten(after["params"])[0]:
    same = np.array_equal(leaf, dict(masks.tree.flatten(joint)[0])[path])
    assert same == (labels_of(labels)[path] == "frozen"), path


def labels_of(labels):
  return dict(masks.tree.flatten(labels)[0])


def test_selectors_and_patterns_that_match_nothing_are_errors(net):
  with pytest.raises(ValueError, match=r"'atention'.*nearest names are attention"):
    added(net, adapters.LoRA("atention"))
  with pytest.raises(ValueError, match="could go to stem"):
    added(net, adapters.LoRA("norm"))
  with pytest.raises(ValueError, match="'qury' matches no leaf"):
    added(net, adapters.LoRA("attention", rank_pattern={"qury": 2}))
  with pytest.raises(ValueError, match="rank 3 is no multiple of the 8 groups"):
    added(net, adapters.LoRA("depthwise", rank=3, grouped="peft"))
  with pytest.raises(ValueError, match="two adapters of the name 'lora'"):
    added(net, [adapters.LoRA("mlp"), adapters.LoRA("last/mlp")])
  with pytest.raises(ValueError, match="rank is 0"):
    adapters.LoRA("mlp", rank=0)


def test_a_rank_for_each_module(net):
  rule = adapters.LoRA(
    "last", rank=2, rank_pattern={"attention/query": 5}, alpha_pattern={"mlp": 6}
  )
  _, tree = added(net, rule)
  assert tree["last/attention/query"]["lora"]["a"].shape == (16, 5)
  assert tree["last/attention/key"]["lora"]["b"].shape == (2, 2, 8)
  assert float(tree["last/mlp"]["lora"]["scaling"]) == 3.0


def test_leaves_lie_in_the_parameters_and_come_out_again(net):
  _, variables, _ = net
  _, tree = added(net, adapters.LoRA("last", rank=2))
  joined = adapters.join(variables["params"], tree)
  params, out = adapters.split(joined)
  assert jax.tree.structure((params, out)) == jax.tree.structure((variables["params"], tree))


def test_dropout_is_drawn_where_there_is_a_key(net, base):
  _, variables, images = net
  adapted, tree = added(net, adapters.LoRA("mlp", rank=2, dropout=0.5))
  trained = noisy(tree)
  apply = jax.jit(lambda tree, **kw: adapted.apply(variables, tree, images, **kw))
  a, b = (apply(trained, rngs={"dropout": jax.random.key(i)}) for i in (0, 1))
  assert np.abs(a - b).max() > 1e-3
  assert np.array_equal(apply(trained), apply(trained))


def test_dora_takes_outputs_whose_weights_are_all_zero():
  """As some channels of EfficientNet-Lite0's ImageNet weights."""
  x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
  model = models.Small()
  variables = model.init(jax.random.key(1), x)
  first = lambda leaf: leaf.at[..., 0].set(0.0) if leaf.ndim > 1 else leaf  # noqa: E731
  variables = jax.tree.map(first, variables)
  adapted, tree = adapters.add(model, variables, adapters.DoRA("*", rank=2), jax.random.key(2), x)
  assert np.array_equal(adapted.apply(variables, tree, x), model.apply(variables, x))
  loss = lambda tree: jnp.sum(jnp.square(adapted.apply(variables, tree, x) - 1.0))  # noqa: E731
  step = jax.jit(lambda tree: jax.tree.map(lambda x, g: x - 1e-3 * g, tree, jax.grad(loss)(tree)))
  start = loss(tree)
  for _ in range(2):
    tree = step(tree)
  assert float(loss(tree)) < float(start)  # false of NaN too
  for leaf in jax.tree.leaves(adapted.merge(variables["params"], tree)):
    assert np.isfinite(leaf).all()
