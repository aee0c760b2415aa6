"""The gradient of a batch from its parts is that of the batch; of torch's and optax's kind."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from subtune_jax import methods, weights
from subtune_jax.models import vit
from subtune_jax.runner import network, recipes
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.training import accumulation, loop, trainable_split
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import step as step_lib
from tests import tiny
from tests.search import small

SGD = {"optimizer": "sgd", "epochs": 2, "norm_mode": "running"}
CASES = {
  "all": (methods.full_fine_tuning(0.1, weight_decay=1e-2, clip_norm=0.5, **SGD), {}),
  "cached": (methods.sub_tuning(("block2",), 0.1, class_weights=(1.0, 5.0, 0.5), **SGD), {}),
  "mixed": (
    methods.sub_tuning(("block1",), 0.1, class_weights=(1.0, 5.0, 0.5), **SGD),
    {"augmentation": step_lib.Augmentation("shift", 2, flip=True, mixup=0.4)},
  ),
}


def accumulated(method, number):
  return tuple(
    dataclasses.replace(stage, solver=dataclasses.replace(stage.solver, accumulate=number))
    if isinstance(stage.solver, methods.Gradient) else stage
    for stage in method
  )  # fmt: skip


def assert_close(one, other, **tolerance):
  def close(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerance)

  jax.tree.map(close, one, other)


@pytest.mark.parametrize(("name", "streamed"), [
  ("all", False),
  *(pytest.param(name, streamed, marks=pytest.mark.slow) for name, streamed in
    itertools.product(CASES, (False, True)) if (name, streamed) != ("all", False)),
])  # fmt: skip
def test_parts_of_a_batch_train_as_the_batch(name, streamed):
  """On one device in 4 parts, and on 4 devices in 2; the last in an epoch as one program."""
  method, fields = CASES[name]
  model, variables = tiny.make()
  train, held = tiny.examples(20), tiny.examples(9, 1)
  fields = fields | ({"resident_bytes": 0} if streamed else {})

  def fit(number, **more):
    engine = tiny.engine(model, **fields, **more)
    return loop.fit(engine, variables, accumulated(method, number), train, held, seed=3)

  whole, parts = fit(1), fit(4)
  several = fit(2, mesh=mesh_lib.make_mesh(), scan=not streamed)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), whole.variables, variables)
  assert max(jax.tree.leaves(moved)) > 1e-2
  for other in (parts, several):
    assert_close(other.variables, whole.variables, rtol=1e-4, atol=2e-6)
    for row, own in zip(other.history, whole.history, strict=True):
      for key in ("train_loss", "train_accuracy", "gradient_norm", "validation_loss"):
        assert row[key] == pytest.approx(own[key], rel=1e-4), key


def spec_of(method, model, variables, **fields):
  plan = trainable_split.make_plan(model, variables, method[0])
  spec = step_lib.StepSpec(model, plan, method[0], 10, tiny.PREPROCESSING, **fields)
  return spec, *trainable_split.split_variables(variables, plan)


VIEW = {"seed": np.int32(0), "epoch": np.int32(0)}


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adam", marks=pytest.mark.slow)])
def test_equals_optax_multi_steps(optimizer):
  """Two batches of 12 in 3 parts against `optax.MultiSteps` over six of 4 rows."""
  fields = SGD | {"optimizer": optimizer, "accumulate": 3, "weight_decay": 0.1}
  model, variables = tiny.make()
  spec, moving, fixed = spec_of(
    methods.sub_tuning(("block1",), 0.05, **fields), model, variables
  )  # fmt: skip
  examples = tiny.examples(24)
  data = {"x": examples.images, "labels": examples.labels}
  state = step_lib.create_train_state(spec, moving)
  wrapped = optax.MultiSteps(spec.optimizer(), 3)
  params, opt_state = moving["params"], wrapped.init(moving["params"])
  step = jax.jit(functools.partial(step_lib.train_step, spec))

  @jax.jit
  def gradient(params, rows):
    x = step_lib.prepare(data["x"][rows], rows, VIEW, spec.preprocessing, None, True)
    batch = {"x": x, "labels": jnp.asarray(data["labels"])[rows]}
    loss = lambda p: step_lib.loss_of({**moving, "params": p}, fixed, None, batch, spec)[0]  # noqa: E731
    return jax.grad(loss)(params)

  data = {name: jnp.asarray(array) for name, array in data.items()}
  for batch in np.arange(24, dtype=np.int32).reshape(2, 12):
    state, _ = step(state, fixed, None, data, batch, VIEW)
    for part in range(3):
      updates, opt_state = wrapped.update(gradient(params, batch[part::3]), opt_state, params)
      params = optax.apply_updates(params, updates)
  assert_close(state.moving["params"], params, rtol=1e-4, atol=1e-6)
  first = jax.tree.leaves(moving["params"])[0]
  assert np.abs(first - jax.tree.leaves(params)[0]).max() > 1e-3


@pytest.mark.slow
def test_batch_norm_sees_a_part_at_a_time_as_in_torch():
  """Statistics of each part, the running ones moved by each in turn."""
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(0)
  x = rng.normal(2, 3, (12, 5)).astype(np.float32)
  scale = rng.normal(size=5).astype(np.float32)
  layer = torch.nn.BatchNorm1d(5, momentum=0.1)
  with torch.no_grad():
    layer.weight.copy_(torch.from_numpy(scale))
  target = rng.normal(size=(12, 5)).astype(np.float32)
  for part in range(3):
    y = layer(torch.from_numpy(x[part::3]))
    (((y - torch.from_numpy(target[part::3])) ** 2).mean() / 3).backward()

  def loss(scale, mean, batch, key):
    own = jnp.mean(batch["x"], axis=0)
    normal = (batch["x"] - own[None]) / jnp.sqrt(jnp.var(batch["x"], axis=0) + 1e-5)[None]
    error = jnp.mean((normal * scale[None] - batch["target"]) ** 2)
    return error, (0.9 * mean + 0.1 * own, jnp.zeros([], jnp.int32))

  (_, (mean, _)), gradient = accumulation.value_and_gradient(
    loss, jnp.asarray(scale), jnp.zeros(5), {"x": x, "target": target}, None, 3
  )
  np.testing.assert_allclose(gradient, layer.weight.grad.numpy(), rtol=2e-5)
  np.testing.assert_allclose(mean, layer.running_mean.numpy(), rtol=1e-5)


@pytest.mark.slow
def test_parts_take_the_memory_of_a_part_and_stay_on_their_devices():
  model, variables = tiny.make(depth=2)
  rows, mesh = 256, mesh_lib.make_mesh()
  split, everywhere = mesh_lib.split(mesh), mesh_lib.replicated(mesh)
  took, text = {}, ""
  for number in (1, 8):
    spec, moving, fixed = spec_of(
      methods.full_fine_tuning(0.1, accumulate=number, **SGD), model, variables
    )
    state = mesh_lib.put(step_lib.create_train_state(spec, moving), mesh)
    batch = {
      "x": jax.ShapeDtypeStruct((rows, 16, 16, 3), np.uint8, sharding=split),
      "labels": jax.ShapeDtypeStruct((rows,), np.int32, sharding=split),
      "ids": jax.ShapeDtypeStruct((rows,), np.int32, sharding=split),
    }
    step = jax.jit(functools.partial(step_lib.train_step, spec), out_shardings=everywhere)
    made = step.lower(state, mesh_lib.put(fixed, mesh), None, batch, None, VIEW).compile()
    took[number], text = made.memory_analysis().temp_size_in_bytes, made.as_text()
  assert took[8] < took[1] / 2
  assert "all-reduce" in text
  for moves in ("all-to-all", "all-gather", "collective-permute"):
    assert moves not in text


def test_every_part_draws_for_itself():
  def loss(params, stats, batch, key):
    value = params * jax.random.uniform(key)
    return value, (stats, jnp.zeros([], jnp.int32))

  key = jax.random.key(0)
  for number, keys in ((1, [key]), (3, [jax.random.fold_in(key, i) for i in range(3)])):
    (value, _), gradient = accumulation.value_and_gradient(
      loss, jnp.ones([]), {}, {"x": jnp.zeros(6)}, key, number
    )
    wanted = float(np.mean([jax.random.uniform(k) for k in keys]))
    assert float(value) == float(gradient) == pytest.approx(wanted)


def test_bad_numbers_are_one_error_before_a_step():
  with pytest.raises(ValueError, match="accumulate is 0; give 1"):
    methods.full_fine_tuning(0.1, epochs=1, accumulate=0)
  model, variables = tiny.make()
  method = methods.full_fine_tuning(0.1, epochs=1, accumulate=3)
  message = r"batch size 8 does not split over 4 devices in 3 parts \(accumulate\).* 12"
  engine = tiny.engine(model, mesh=mesh_lib.make_mesh())
  with pytest.raises(ValueError, match=message):
    loop.fit(engine, variables, method, tiny.examples(), None)


def test_a_config_says_it_for_every_method():
  config = compare_config.default()
  config.optimizer.accumulate = 2
  for name in recipes.offered():
    for stage in recipes.make_method(config, name, 1e-3, ("block13", "block14", "block15", "top")):
      assert getattr(stage.solver, "accumulate", 2) == 2


_VIT = {"width": 8, "depth": 3, "heads": 2, "mlp_width": 16, "patch_size": 8, "image_size": 16}


def _setting(name):
  """(config, engine, weights) of a small network that the method runs on; no batch statistics."""
  config = compare_config.default()
  config.optimizer.name, config.backbone.keep_head = "sgd", True
  if name in ("batch_norm_only",):
    model, middle = small.model(), ("block2/unit1",)
  else:
    model, middle = vit.ViT(num_classes=3, **_VIT), ("encoderblock_1", "encoderblock_2")
  for own in ("subtuning", "fresh_blocks", "pruned"):
    config[own].blocks = middle
  config.gradual_unfreezing.groups = middle[-1:]
  config.frozen_embedding.blocks = model.block_names[:1]
  if methods.DECLARED[name].gradient is not None:
    config[name].epochs, config[name].norm_mode = 1, "running"
  return config, tiny.engine(model), weights.random_weights(model, preprocessing="half")


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("name", [
  name for name in recipes.offered()
  if methods.DECLARED[name].gradient and name != "feature_rank"  # no mean over examples
])  # fmt: skip
def test_every_method_of_the_house(name, devices):
  config, engine, pretrained = _setting(name)
  engine, pretrained = network.prepared(name, config, engine, pretrained)
  if devices > 1:
    engine = dataclasses.replace(engine, mesh=mesh_lib.make_mesh(jax.devices()[:devices]))
  fits = []
  for number in (1, 2):
    config.optimizer.accumulate = number
    method = recipes.make_method(config, name, 1e-2, engine.model.block_names)
    train = tiny.examples(16)
    fits.append(loop.fit(engine, pretrained.variables, method, train, tiny.examples(9, 1)))
  whole, parts = fits
  assert_close(parts.variables, whole.variables, rtol=2e-4, atol=2e-6)
  assert parts.history[-1]["train_loss"] == pytest.approx(whole.history[-1]["train_loss"], rel=1e-4)
  assert max(
    float(np.abs(np.asarray(a, np.float64) - np.asarray(b)).max())
    for a, b in zip(*map(jax.tree.leaves, (whole.variables, pretrained.variables)), strict=True)
  ) > 1e-4  # fmt: skip
