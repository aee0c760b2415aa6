"""The train loop: what moves, what does not, and that shortcuts change no result."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from subtune_jax import masks, methods
from subtune_jax.training import evaluate, loop, stage_runner, trainable_split
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import step as step_lib
from tests import marks, tiny

DECAY = {"weight_decay": 0.1, "clip_norm": 0.5}
METHODS = {
  "lp": methods.linear_probing(l2=(1.0, 0.1)),
  "ft": methods.full_fine_tuning(1e-2, epochs=2, **DECAY),
  "sub": methods.sub_tuning(("block1",), 1e-2, epochs=2, **DECAY),
  "sub_running": methods.sub_tuning(("block1",), 1e-2, epochs=2, norm_mode="running", **DECAY),
  "lp_ft": methods.lp_ft(1e-3, l2=(1.0, 0.1), epochs=2),
  "gradual": methods.gradual_unfreezing([["block0", "block1"], ["block2"]], 1e-2, epochs=1),
}


def fit(method, *, model_and_variables=None, seed=0, train=None, saver=None, **fields):
  model, variables = model_and_variables or tiny.make()
  engine = tiny.engine(model, **fields)
  train = train or tiny.examples()
  return loop.fit(engine, variables, method, train, tiny.examples(9, 1), seed=seed, saver=saver)


def changed(before, after):
  rows = zip(masks.paths(before), jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
  return {path for path, a, b in rows if not np.array_equal(np.asarray(a), np.asarray(b))}


@pytest.mark.parametrize("name", METHODS)
def test_exactly_the_labelled_leaves_change(name):
  model, variables = tiny.make()
  result = fit(METHODS[name], model_and_variables=(model, variables))
  for kind in ("params", "batch_stats"):
    touched = jax.tree.leaves(result.touched[kind])
    expected = {p for p, t in zip(masks.paths(variables[kind]), touched, strict=True) if t}
    assert changed(variables[kind], result.variables[kind]) == expected
  moved_blocks = {
    path.split("/")[0] for path in changed(variables["params"], result.variables["params"])
  }
  wanted = {"lp": {"head"}, "sub": {"head", "block1"}, "sub_running": {"head", "block1"}}
  assert moved_blocks == wanted.get(name, {"head", "block0", "block1", "block2"})
  stats = {
    p.split("/")[0] for p in changed(variables["batch_stats"], result.variables["batch_stats"])
  }
  wanted = {"lp": set(), "sub": {"block1"}, "sub_running": set(), "lp_ft": set()}
  assert stats == wanted.get(name, {"block0", "block1", "block2"})


def test_history_and_stage_rows():
  result = fit(METHODS["lp_ft"])
  assert [(row["stage"], row["epoch"]) for row in result.history] == [(0, 1), (1, 1), (1, 2)]
  assert [row["blocks"] for row in result.stages] == [
    ["head"], ["block0", "block1", "block2", "head"]
  ]  # fmt: skip
  total = sum(x.size for x in jax.tree.leaves(tiny.make()[1]["params"]))
  assert [row["trained_params"] for row in result.stages] == [8 * 3 + 3, total]
  assert result.moved > 0


def test_it_learns():
  result = fit(methods.full_fine_tuning(1e-2, epochs=8))
  assert result.history[-1]["validation_accuracy"] == 1.0


@pytest.mark.parametrize("name", ["sub", "sub_running", "lp_ft"])
def test_prefix_cache_changes_nothing_but_time(name):
  method = METHODS[name]
  with_cache, without = fit(method), fit(method, prefix_cache=False)
  for a, b in zip(
    jax.tree.leaves(with_cache.variables), jax.tree.leaves(without.variables), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["ft", "sub", "lp_ft"])
def test_scan_equals_the_loop(name):
  loop_, scan = fit(METHODS[name]), fit(METHODS[name], scan=True)
  for a, b in zip(loop_.history, scan.history, strict=True):
    assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("name", marks.first(3, METHODS))
def test_four_devices_give_the_losses_of_one(name):
  one = fit(METHODS[name])
  four = fit(METHODS[name], mesh=mesh_lib.make_mesh())
  assert mesh_lib.make_mesh().size == 4
  for a, b in zip(one.history, four.history, strict=True):
    assert a == pytest.approx(b, rel=2e-4, abs=1e-6)


def test_seeds_differ_and_repeat():
  losses = [fit(METHODS["ft"], seed=seed).history[0]["train_loss"] for seed in (0, 0, 1)]
  assert losses[0] == losses[1] != losses[2]


def test_a_batch_that_does_not_split_over_the_devices():
  with pytest.raises(ValueError, match=r"batch size 6 does not split over 4 devices.*4 or 8"):
    fit(METHODS["ft"], mesh=mesh_lib.make_mesh(), batch_size=6)


def test_a_training_set_smaller_than_a_batch_is_one_batch():
  result = fit(METHODS["ft"], train=tiny.examples(5), batch_size=8)
  assert np.isfinite(result.history[-1]["train_loss"])


def test_a_loss_that_is_not_finite_names_the_step():
  with pytest.raises(
    stage_runner.NonFiniteLossError, match=r"loss is (nan|inf) at step \d+ \(epoch 1\)"
  ):
    fit(methods.full_fine_tuning(1e30, epochs=2, optimizer="sgd", norm_mode="running"))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"labels": np.array([0, 1, 7], np.int32)}, "label 7 is out of range"),
    ({"labels": np.array([0, 1, -1], np.int32)}, "label -1 is out of range"),
    ({"labels": np.array([0.0, 1.0, 2.0])}, "give 3 integers"),
    ({"images": np.zeros((3, 16, 16, 3), np.float32)}, "give uint8"),
    ({"images": np.zeros((3, 16, 16, 1), np.uint8)}, "give uint8"),
  ],
)
def test_bad_examples(change, message):
  with pytest.raises(ValueError, match=message):
    fit(METHODS["ft"], train=tiny.examples(3)._replace(**change))


def specs(method, model, variables, **fields):
  plan = trainable_split.make_plan(model, variables, method[-1])
  spec = step_lib.StepSpec(model, plan, method[-1], 10, tiny.PREPROCESSING, **fields)
  return spec, plan


def test_optimizer_state_holds_exactly_the_trained_leaves():
  model, variables = tiny.make()
  spec, plan = specs(METHODS["sub"], model, variables)
  moving, _ = trainable_split.split_variables(variables, plan)
  state = step_lib.create_train_state(spec, moving)
  trained = variables["params"]["block1"], variables["params"]["head"]
  trained_bytes = sum(x.nbytes for x in jax.tree.leaves(trained))
  scalars = [x for x in jax.tree.leaves(state.opt_state) if x.ndim == 0]
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert sum(x.nbytes for x in moments) == 2 * trained_bytes  # Adam: two moments
  assert len(scalars) == 6  # for each of two labels: Adam's count, the rate's count and peak
  gradient = jax.eval_shape(
    lambda m: jax.grad(lambda p: sum(map(jnp.sum, jax.tree.leaves(p))))(m), moving["params"]
  )
  assert sum(x.size * 4 for x in jax.tree.leaves(gradient)) == trained_bytes


def flops(method, **fields):
  model, variables = tiny.make(depth=4)
  engine = tiny.engine(model)
  spec, plan = specs(method, model, variables, **fields)
  moving, fixed = trainable_split.split_variables(variables, plan)
  state = step_lib.create_train_state(spec, moving)
  data = {"x": jnp.zeros((8, 16, 16, 3), jnp.uint8), "labels": jnp.zeros(8, jnp.int32)}
  if fields.get("start"):
    options = engine.options() | {"stop": fields["start"]}
    data["x"] = evaluate.run_units(model, variables, np.asarray(data["x"]), **options)
  view = {"seed": np.int32(0), "epoch": np.int32(0)}
  arguments = (state, fixed, None, data, jnp.arange(8), view)
  step, _ = step_lib.compile_step(spec, tiny.one_device(), *arguments)
  return step.cost_analysis()["flops"]


def test_the_compiler_counts_fewer_flops_for_later_blocks():
  # Gradient norm logged and clipping on in all of them.
  full = flops(methods.full_fine_tuning(1e-2, epochs=1, clip_norm=1.0))
  late = flops(methods.sub_tuning(("block3",), 1e-2, epochs=1, clip_norm=1.0))
  cached = flops(methods.sub_tuning(("block3",), 1e-2, epochs=1, clip_norm=1.0), start="block3")
  assert late < 0.6 * full
  assert cached < 0.5 * late


def test_learning_rate_per_label():
  method = methods.full_fine_tuning(
    1e-4, head_learning_rate=1e-3, epochs=1, optimizer="sgd", momentum=0.0, schedule="constant",
    norm_mode="running",
  )  # fmt: skip
  train = tiny.examples(8)
  model, variables = tiny.make()
  result = fit(method, train=train, model_and_variables=(model, variables))

  def loss(params):
    x = (jnp.asarray(train.images, jnp.float32) - 127.0) / 64.0
    logits = model.apply({**variables, "params": params}, x)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, train.labels))

  gradient = jax.grad(loss)(variables["params"])
  for name, rate in (("head", 1e-3), ("block0", 1e-4)):
    for before, after, g in zip(*(jax.tree.leaves(t[name]) for t in (
      variables["params"], result.variables["params"], gradient)), strict=True):  # fmt: skip
      np.testing.assert_allclose(after, before - rate * g, rtol=1e-5, atol=1e-7)


def test_a_grid_of_rates_compiles_once():
  made = []
  for rate in (1e-2, 1e-3, 1e-4):
    result = fit(methods.sub_tuning(("block2",), rate, epochs=1, warmup=0.1))
    assert result.compile_seconds > 0 or made
    made.append(step_lib._compiled.cache_info().misses)
  assert made[0] == made[1] == made[2]


def test_penalty_pulls_towards_the_start():
  def l2_sp(trained, initial, logits, batch):
    del logits, batch
    squares = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), trained, initial)
    return 10.0 * sum(jax.tree.leaves(squares))

  free = fit(methods.full_fine_tuning(1e-2, epochs=3))
  held = fit(methods.full_fine_tuning(1e-2, epochs=3, penalty=l2_sp))
  assert held.moved < 0.5 * free.moved


def test_average_is_what_evaluation_reads():
  def ema(running, trained, step):
    del step
    return jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, running, trained)

  rate = {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "norm_mode": "running"}
  model, variables = tiny.make()
  train = tiny.examples(8)
  start = (model, variables)
  plain = fit(
    methods.full_fine_tuning(1e-1, epochs=1, **rate), train=train, model_and_variables=start
  )
  averaged = fit(
    methods.full_fine_tuning(1e-1, epochs=1, average=ema, **rate),
    train=train,
    model_and_variables=start,
  )  # one step: the average is half way
  trees = (variables["params"], plain.variables["params"], averaged.variables["params"])
  for a, b, c in zip(*map(jax.tree.leaves, trees), strict=True):
    np.testing.assert_allclose(c, (a + b) / 2, rtol=1e-5, atol=1e-7)


def test_augmentation_turns_the_cache_off_and_changes_the_views():
  shift = step_lib.Augmentation("shift", pad=4, flip=True)
  plain = fit(METHODS["sub"])
  once, twice = (fit(METHODS["sub"], augmentation=shift) for _ in range(2))
  assert once.history[0]["train_loss"] == twice.history[0]["train_loss"]
  assert once.history[0]["train_loss"] != pytest.approx(plain.history[0]["train_loss"], rel=1e-4)


def test_the_last_partial_batch_counts():
  model, variables = tiny.make()
  images = tiny.examples(11).images
  engine = tiny.engine(model)
  whole = np.asarray(model.apply(variables, (images.astype(np.float32) - 127) / 64))
  np.testing.assert_allclose(engine.predict(variables, images), whole, rtol=1e-4, atol=1e-5)
  assert evaluate.accuracy(np.eye(3)[[0, 1, 2]], np.array([0, 1, 1])) == pytest.approx(2 / 3)


def test_stages_carry_on_from_each_other():
  result = fit(METHODS["gradual"])
  assert [row["blocks"] for row in result.stages] == [
    ["head"], ["block2", "head"], ["block0", "block1", "block2", "head"]
  ]  # fmt: skip
  only_last = fit(METHODS["gradual"][-1:])
  assert result.history[-1]["train_loss"] < only_last.history[-1]["train_loss"]
