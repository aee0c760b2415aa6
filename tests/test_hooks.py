"""Penalties and averages by hand, and the relatives of fine-tuning that they make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import hooks, masks, methods, models
from subtune_jax.data import preprocess
from subtune_jax.models import side
from subtune_jax.training import loop
from subtune_jax.training import plan as plan_lib
from tests import tiny

BLOCKS = ("block0", "block1", "block2")
TREE = {"block0": {"kernel": jnp.array([1.0, 2.0]), "bias": None}, "head": jnp.array([3.0])}
START = {"block0": {"kernel": jnp.array([0.5, 4.0]), "bias": None}, "head": jnp.array([0.0])}


def fit(method, seed=0, on=None, **fields):
  model, variables = on or tiny.make()
  engine = tiny.engine(model, **fields)
  return loop.fit(engine, variables, method, tiny.examples(), tiny.examples(9, 1), seed=seed)


def equal(a, b):
  return all(
    np.array_equal(np.asarray(x), np.asarray(y))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def labels_of(method, index=-1):
  model, variables = tiny.make()
  labels = plan_lib.make_plan(model, variables, method[index]).labels
  return masks.labels_by_path(variables["params"], labels)


def test_l2_sp_by_hand():
  assert float(hooks.L2SP(0.1)(TREE, START, None, {})) == pytest.approx(0.1 * (0.25 + 4.0))
  with_head = hooks.L2SP(0.1, head_weight=2.0)(TREE, START, None, {})
  assert float(with_head) == pytest.approx(0.1 * 4.25 + 2.0 * 9.0)
  assert hooks.L2SP(0.1) == hooks.L2SP(0.1)
  assert hash(hooks.L2SP(0.1)) == hash(hooks.L2SP(0.1))


def test_l2_sp_at_weight_0_is_full_fine_tuning_bit_for_bit_and_a_weight_holds_back():
  plain = fit(methods.full_fine_tuning(1e-2, epochs=2))
  zero = fit(methods.l2_sp(1e-2, weight=0.0, epochs=2))
  held = fit(methods.l2_sp(1e-2, weight=10.0, epochs=2))
  assert equal(plain.variables, zero.variables)
  assert held.moved < 0.7 * plain.moved


def test_averages_by_hand():
  trees = [{"w": jnp.array([x])} for x in (0.0, 1.0, 5.0, 9.0)]
  ema, swa = trees[0], trees[0]
  for step, tree in enumerate(trees[1:]):
    ema = hooks.EMA(0.5)(ema, tree, jnp.asarray(step))
    swa = hooks.SWA(first_step=1)(swa, tree, jnp.asarray(step))
  assert float(ema["w"][0]) == 0.5 * (0.5 * (0.5 * 0.0 + 0.5 * 1.0) + 0.5 * 5.0) + 0.5 * 9.0
  assert float(swa["w"][0]) == (5.0 + 9.0) / 2


def test_ema_in_the_loop_is_the_average_of_the_steps():
  """Trained step by step by other hands: one epoch at a time, of one step each."""
  model, variables = tiny.make()
  train = tiny.examples(8)
  rate = {"epochs": 3, "schedule": "constant", "optimizer": "sgd", "momentum": 0.0}
  end = [loop.fit(
    tiny.engine(model), variables, methods.full_fine_tuning(1e-2, **(rate | {"epochs": epochs})),
    train, None,
  ).variables["params"] for epochs in (1, 2, 3)]  # fmt: skip
  by_hand = variables["params"]
  for params in end:
    by_hand = jax.tree.map(lambda r, t: 0.75 * r + 0.25 * t, by_hand, params)
  method = methods.full_fine_tuning(1e-2, average=hooks.EMA(0.75), **rate)
  found = loop.fit(tiny.engine(model), variables, method, train, None).variables["params"]
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(by_hand), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_last_stage_of_gradual_unfreezing_has_the_labels_of_full_fine_tuning():
  gradual = methods.gradual_unfreezing([["block0"], ["block1", "block2"]], 1e-3, epochs=1)
  assert labels_of(gradual) == labels_of(methods.full_fine_tuning(1e-3, epochs=1))
  assert labels_of(gradual, 1) != labels_of(gradual)


@pytest.mark.parametrize(
  ("method", "tuned"),
  [
    (
      methods.batch_norm_only(1e-3, epochs=1),
      {f"{b}/bn/{n}" for b in BLOCKS for n in ("scale", "bias")},
    ),
    (methods.bias_only(1e-3, epochs=1), {f"{b}/bn/bias" for b in BLOCKS}),
    (
      methods.frozen_embedding(1e-3, blocks=("block0",), epochs=1),
      {f"{b}/{n}" for b in BLOCKS[1:] for n in ("conv/kernel", "bn/scale", "bn/bias")},
    ),
  ],
  ids=["batch_norm", "bias", "embedding"],
)  # fmt: skip
def test_what_the_relatives_train(method, tuned):
  labels = labels_of(method)
  assert {path for path, label in labels.items() if label == masks.TUNED} == tuned
  assert {path for path, label in labels.items() if label == masks.HEAD} == {
    "head/kernel", "head/bias"
  }  # fmt: skip


def test_a_frozen_embedding_is_a_whole_component():
  selector = methods.Outside(("block1",))
  assert selector("block10/conv/kernel", None)
  assert not selector("block1/conv/kernel", None)
  assert not selector("head/kernel", None)


def test_rates_of_layerwise_decay_and_decay_1_is_full_fine_tuning():
  (stage,) = methods.layerwise_decay(1.0, blocks=BLOCKS, decay=0.5, epochs=1)
  rates = {"head": 1.0, "block2": 0.5, "block1": 0.25, "block0": 0.125}
  assert stage.solver.learning_rates == rates
  assert labels_of((stage,))["block1/conv/kernel"] == "block1"
  plain = fit(methods.full_fine_tuning(1e-2, epochs=2))
  same = fit(methods.layerwise_decay(1e-2, blocks=BLOCKS, decay=1.0, epochs=2))
  assert equal(plain.variables["params"], same.variables["params"])


def test_side_tuning_trains_the_side_and_leaves_the_base():
  model = models.create("resnet14", num_classes=3)
  variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  both, wrapped = side.wrap(model, variables)
  images = tiny.examples(8).images[:, :8, :8]
  x = preprocess.normalize(images, tiny.PREPROCESSING)
  twice = 2 * model.apply(variables, x, stop="head")
  np.testing.assert_allclose(both.apply(wrapped, x, stop="head"), twice, rtol=1e-6)
  train = loop.Examples(images, tiny.examples(8).labels)
  result = loop.fit(tiny.engine(both), wrapped, methods.side_tuning(1e-2, epochs=1), train, None)
  after = result.variables
  for kind in ("params", "batch_stats"):
    assert equal(after[kind]["side"]["base"], wrapped[kind]["side"]["base"])
    assert not equal(after[kind]["side"]["tuned"], wrapped[kind]["side"]["tuned"])
  assert not equal(after["params"]["head"], wrapped["params"]["head"])


@pytest.mark.parametrize(
  ("make", "text"),
  [
    (lambda: hooks.L2SP(-1.0), "weight is -1.0"),
    (lambda: hooks.EMA(1.0), "decay is 1.0"),
    (lambda: hooks.SWA(-1), "first_step is -1"),
    (lambda: methods.layerwise_decay(1e-3, blocks=BLOCKS, decay=0.0, epochs=1), "decay is 0.0"),
    (lambda: methods.layerwise_decay(1e-3, blocks="stem", decay=0.5, epochs=1), "blocks is 'stem'"),
    (lambda: methods.frozen_embedding(1e-3, blocks="stem", epochs=1), "blocks is 'stem'"),
  ],
)
def test_bad_values(make, text):
  with pytest.raises(ValueError, match=text):
    make()
