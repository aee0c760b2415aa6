"""Penalties and averages by hand, and the relatives of fine-tuning that they make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import masks, methods, models
from subtune_jax.data import preprocess
from subtune_jax.models import backbone, side
from subtune_jax.training import ledger, lolsgd, loop, stage_steps, trainable_split
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
  labels = trainable_split.make_plan(model, variables, method[index]).labels
  return masks.labels_by_path(variables["params"], labels)


def test_l2_sp_by_hand():
  assert float(methods.L2SP(0.1)(TREE, START, None, {})) == pytest.approx(0.1 * (0.25 + 4.0))
  with_head = methods.L2SP(0.1, head_weight=2.0)(TREE, START, None, {})
  assert float(with_head) == pytest.approx(0.1 * 4.25 + 2.0 * 9.0)
  assert methods.L2SP(0.1) == methods.L2SP(0.1)
  assert hash(methods.L2SP(0.1)) == hash(methods.L2SP(0.1))


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
    ema = methods.EMA(0.5)(ema, tree, jnp.asarray(step))
    swa = methods.SWA(first_step=1)(swa, tree, jnp.asarray(step))
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
  method = methods.full_fine_tuning(1e-2, average=methods.EMA(0.75), **rate)
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
  variables = backbone.initialise(model, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
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
    (lambda: methods.L2SP(-1.0), "weight is -1.0"),
    (lambda: methods.EMA(1.0), "decay is 1.0"),
    (lambda: methods.SWA(-1), "first_step is -1"),
    (lambda: methods.layerwise_decay(1e-3, blocks=BLOCKS, decay=0.0, epochs=1), "decay is 0.0"),
    (lambda: methods.layerwise_decay(1e-3, blocks="stem", decay=0.5, epochs=1), "blocks is 'stem'"),
    (lambda: methods.frozen_embedding(1e-3, blocks="stem", epochs=1), "blocks is 'stem'"),
  ],
)
def test_bad_values(make, text):
  with pytest.raises(ValueError, match=text):
    make()


def test_distillation_by_hand():
  logits = jnp.array([[0.0, 0.0, 5.0], [jnp.log(3.0), 0.0, -2.0]])
  source = jnp.array([[jnp.log(3.0), 0.0, -jnp.inf], [jnp.log(3.0), 0.0, -jnp.inf]])
  batch = {"source_logits": source}
  kl = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
  found = methods.Distillation(2.0)(None, None, logits, batch)
  assert float(found) == pytest.approx(2.0 * kl / 2, rel=1e-5)
  gradient = jax.grad(lambda z: methods.Distillation(1.0, 2.0)(None, None, z, batch))(logits)
  assert bool(jnp.all(jnp.isfinite(gradient)))
  np.testing.assert_array_equal(gradient[:, 2], 0.0)
  none = {"source_logits": jnp.full_like(source, -jnp.inf)}
  assert float(methods.Distillation(1.0)(None, None, logits, none)) == 0
  with pytest.raises(ValueError, match="source_logits"):
    methods.Distillation(1.0)(None, None, logits, {})


def test_feature_rank_of_many_features_does_not_overflow():
  """A batch of 64 and 1,280 features: (n d)^2 is no int32."""
  features = jax.random.normal(jax.random.key(0), (64, 1280))
  penalty = float(methods.FeatureRank(1.0)(None, None, None, {"features": features}))
  correlation = np.corrcoef(np.asarray(features, np.float64).T)
  assert penalty == pytest.approx(np.sum(correlation**2) / 1280**2, rel=1e-4)


@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
def test_feature_rank_is_the_norm_of_the_correlations(shape):
  features = np.random.default_rng(0).normal(size=shape)
  correlation = np.corrcoef(features.T)
  wanted = 0.5 * np.sum(correlation**2) / shape[1] ** 2
  batch = {"features": jnp.asarray(features, jnp.float32)}
  assert float(methods.FeatureRank(0.5)(None, None, None, batch)) == pytest.approx(wanted, rel=1e-4)
  constant = {"features": jnp.ones(shape)}

  def penalty(f):
    return methods.FeatureRank(1.0)(None, None, None, {"features": f})

  assert float(penalty(constant["features"])) == 0
  assert bool(jnp.all(jnp.isfinite(jax.grad(penalty)(constant["features"]))))


def test_distillation_and_feature_rank_in_the_loop():
  """Weight 0 is full fine-tuning; the columns follow their examples, whatever the order."""
  model, variables = tiny.make()
  train = tiny.examples()
  engine = tiny.engine(model)
  source = engine.predict(variables, train.images)

  class WithSource:
    images, labels, columns = train.images, train.labels, {"source_logits": source}

  def trained(penalty, examples=WithSource, epochs=3):
    method = methods.full_fine_tuning(3e-2, epochs=epochs, norm_mode="running", penalty=penalty)
    return loop.fit(engine, variables, method, examples, None)

  plain = trained(None, train).variables
  for penalty in (methods.Distillation(0.0), methods.FeatureRank(0.0)):
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(trained(penalty).variables),
                    strict=True):  # fmt: skip
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)

  def distance(found):
    logits = engine.predict(found, train.images)
    return float(methods.Distillation(1.0)(None, None, logits, {"source_logits": source}))

  assert distance(trained(methods.Distillation(100.0)).variables) < 0.3 * distance(plain)
  # Before the first step source and network agree: the first loss is the cross-entropy alone.
  first = trained(methods.Distillation(100.0), epochs=1).history[0]["train_loss"]
  assert first < 3 * trained(None, train, epochs=1).history[0]["train_loss"]


def test_head_only_and_without_head_train_disjoint_parts():
  _, variables = tiny.make()
  before = variables["params"]
  head = fit(methods.head_only(1e-2, epochs=1)).variables["params"]
  rest = fit(methods.without_head(methods.full_fine_tuning(1e-2, epochs=1))).variables["params"]
  assert equal(head | {"head": None}, before | {"head": None})
  assert not equal(head["head"], before["head"])
  assert equal(rest["head"], before["head"])
  assert not equal(rest["block0"], before["block0"])
  assert methods.head_only(1.0, head_learning_rate=2.0, epochs=1)[0].solver.learning_rates == {
    "head": 2.0
  }
  with pytest.raises(ValueError, match="cannot do without it"):
    methods.without_head(methods.linear_probing())


def test_an_epoch_of_so_many_steps_draws_every_example_before_any_comes_again():
  orders = [stage_steps.epoch_order(3, 0, epoch, 10, 4, steps=3) for epoch in range(5)]
  assert {order.shape for order in orders} == {(3, 4)}
  rows = np.concatenate([order.reshape(-1) for order in orders])
  for begin in range(0, 60, 10):
    assert sorted(rows[begin : begin + 10]) == list(range(10))
  assert not np.array_equal(rows[:10], rows[10:20])
  longer = fit(methods.full_fine_tuning(1e-2, epochs=2, steps_per_epoch=5))
  assert len(longer.history) == 2


def test_a_local_run_leaves_out_classes_and_the_mean_of_equal_runs_is_the_run():
  labels = np.arange(24) % 3
  order = np.arange(24).reshape(3, 8)
  leave_out = methods.LeaveOut(runs=4, share=0.34)
  made = lolsgd.orders(leave_out, labels, order, [0, 1])
  assert [o.shape for o in made] == [(3, 8)] * 4
  assert all(len(np.unique(labels[o])) == 2 for o in made)
  assert len({tuple(np.unique(labels[o])) for o in made}) > 1

  def run_epoch(state, order, epoch):
    return jax.tree.map(lambda x: x + 1, state), {"loss": np.float32(order.sum())}

  state = {"w": jnp.array([0.1, 0.7]), "count": jnp.asarray(3)}
  after, metrics = lolsgd.run(run_epoch, state, made, 0, tiny.one_device())
  assert equal(after, {"w": state["w"] + 1, "count": jnp.asarray(4)})
  assert metrics["loss"] == pytest.approx(np.mean([o.sum() for o in made]))
  with pytest.raises(ValueError, match="at least 2 classes"):
    lolsgd.orders(leave_out, labels * 0, order, [0])


def test_lolsgd_is_the_mean_of_its_local_runs():
  """One epoch against trainings on the same orders, averaged by hand."""
  leave_out = methods.LeaveOut(runs=2, share=0.34)
  model, variables = tiny.make()
  train = tiny.examples()
  rate = {"epochs": 1, "schedule": "constant", "optimizer": "sgd", "momentum": 0.0}
  method = methods.lolsgd(1e-2, leave_out=leave_out, **rate)
  found = loop.fit(tiny.engine(model), variables, method, train, None).variables
  order = stage_steps.epoch_order(0, 0, 0, 24, 8)
  ends = []
  for own in lolsgd.orders(leave_out, train.labels, order, [0, 0, 0]):
    now = variables
    for rows in own:
      part = loop.Examples(train.images[rows], train.labels[rows])
      step = methods.full_fine_tuning(1e-2, **rate)
      now = loop.fit(tiny.engine(model), now, step, part, None).variables
    ends.append(now)
  mean = jax.tree.map(lambda *x: sum(x) / len(x), *ends)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(mean), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", methods.OPTIMIZERS)
def test_every_optimiser_learns(optimizer):
  rate = 1.0 if optimizer == "adadelta" else 1e-2
  method = methods.full_fine_tuning(
    rate, epochs=4, optimizer=optimizer, weight_decay=1e-3, schedule="constant"
  )
  losses = [row["train_loss"] for row in fit(method).history]
  assert losses[-1] < losses[0]


def test_fields_that_came_later_do_not_change_old_keys():
  (stage,) = methods.full_fine_tuning(1e-2, epochs=1)
  plain = ledger.plain(stage)["solver"]
  assert not {"steps_per_epoch", "leave_out"} & set(plain)
  (stage,) = methods.full_fine_tuning(
    1e-2, epochs=1, steps_per_epoch=2, leave_out=methods.LeaveOut(2, 0.5)
  )
  plain = ledger.plain(stage)["solver"]
  assert plain["steps_per_epoch"] == 2
  assert plain["leave_out"] == {"runs": 2, "share": 0.5}


@pytest.mark.parametrize(
  ("make", "text"),
  [
    (lambda: methods.Distillation(-1.0), "weight is -1.0"),
    (lambda: methods.Distillation(1.0, 0.0), "temperature is 0.0"),
    (lambda: methods.FeatureRank(-1.0), "weight is -1.0"),
    (lambda: methods.LeaveOut(0, 0.5), "runs is 0"),
    (lambda: methods.LeaveOut(1, 1.0), "share is 1.0"),
    (lambda: methods.full_fine_tuning(1e-3, epochs=1, steps_per_epoch=-1), "steps_per_epoch is -1"),
    (lambda: methods.full_fine_tuning(1e-3, epochs=1, optimizer="lion"), "optimizer is 'lion'"),
    (lambda: methods.auto_rgn(1e-3, epochs=1, optimizer="rmsprop"), "rates go with"),
  ],
)
def test_bad_values_of_holistic_transfer(make, text):
  with pytest.raises(ValueError, match=text):
    make()
