"""Auto-RGN and Auto-SNR: the formulas, and that a multiplier does what it says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from subtune_jax import masks, methods, models
from subtune_jax.models import efficientnet
from subtune_jax.training import (
  auto_rates,
  batches,
  checkpoint,
  loop,
  optimizer,
  resume,
  stage_steps,
  trainable_split,
)
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import step as step_lib
from tests import marks, tiny

KINDS = {
  "rgn": functools.partial(methods.auto_rgn, 1e-2),
  "rgn_released": functools.partial(methods.auto_rgn, 1e-2, released=True),
  "snr": functools.partial(methods.auto_snr, 1e-2, threshold=0.3),
  "snr_released": functools.partial(methods.auto_snr, 1e-2, threshold=0.9, released=True),
}
DECAY = {"weight_decay": 0.1, "clip_norm": 0.5}


@functools.cache
def network():
  """The tiny network as if it had been trained: no tensor is all zero."""
  model, variables = tiny.make()
  rng = np.random.default_rng(2)
  params = jax.tree.map(
    lambda x: x + rng.uniform(-0.2, 0.2, x.shape).astype(np.float32), variables["params"]
  )
  return model, {**variables, "params": params}


def fit(method, *, train=None, saver=None, on_epoch=None, variables=None, **fields):
  model, start = network()
  return loop.fit(
    tiny.engine(model, **fields), variables or start, method, train or tiny.examples(),
    tiny.examples(9, 1), saver=saver, on_epoch=on_epoch,
  )  # fmt: skip


def assert_same(a, b):
  """Bit for bit: signs of zero too."""
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(np.asarray(x).view(np.uint32), np.asarray(y).view(np.uint32))


def make_spec(method, model, variables):
  (stage,) = method
  plan = trainable_split.make_plan(model, variables, stage)
  moving, fixed = trainable_split.split_variables(variables, plan)
  return step_lib.StepSpec(model, plan, stage, 10, tiny.PREPROCESSING), moving, fixed


def measured(method, rows, mesh=None, train=None):
  """Path -> multiplier, from batches of `rows` [batches, size] of the tiny data."""
  model, variables = network()
  train, mesh = train or tiny.examples(), mesh or tiny.one_device()
  spec, moving, fixed = make_spec(method, model, variables)
  measure = auto_rates.make_measure(spec, mesh)
  source = batches.Source(train.images, train.labels, True)
  view = {"seed": np.int32(0), "epoch": np.int32(0)}
  running = measure.initial(moving["params"])
  add_batch = jax.jit(measure.add_batch)
  for indices in rows:
    running = add_batch(running, moving, fixed, batches.one(source, indices, mesh), view)
  state = measure.finish(spec.create_state(moving), running)
  return {path: float(m) for path, m in optimizer.multipliers(state.opt_state).items()}


def spy(monkeypatch):
  """A list that gets the multipliers of every epoch, path -> number."""
  seen = []

  def by_block(opt_state, units):
    del units
    seen.append({path: float(m) for path, m in optimizer.multipliers(opt_state).items()})
    return {}

  monkeypatch.setattr(auto_rates, "by_block", by_block)
  return seen


@functools.cache
def gradient_function(batch_mode):
  model, variables = network()

  def loss(params, images, labels):
    x = (images.astype(jnp.float32) - 127.0) / 64.0
    blocks = frozenset(model.block_names) if batch_mode else frozenset()
    logits, _ = model.apply(
      {**variables, "params": params}, x, train_blocks=blocks, mutable=["batch_stats"]
    )
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))

  return jax.jit(jax.grad(loss))


def gradients(images, labels, batch_mode):
  """Gradient of the mean cross-entropy by path, float64."""
  found = gradient_function(batch_mode)(network()[1]["params"], images, labels)
  leaves = zip(masks.paths(found), jax.tree.leaves(found), strict=True)
  return {path: np.asarray(g, np.float64) for path, g in leaves}


def params_by_path():
  params = network()[1]["params"]
  leaves = zip(masks.paths(params), jax.tree.leaves(params), strict=True)
  return {path: np.asarray(p, np.float64) for path, p in leaves}


def min_max(scores):
  low, high = min(scores.values()), max(scores.values())
  return {path: (s - low) / (high - low) for path, s in scores.items()}


def by_hand(kind, rows, batch_mode):
  """Multipliers as the definitions say, one example and one tensor at a time."""
  train, params = tiny.examples(), params_by_path()
  each = [gradients(train.images[r], train.labels[r], batch_mode) for r in rows]
  trained = [path for path in params if kind in ("rgn", "snr") or "/bn/" not in path]
  if kind == "rgn":
    mean = {path: np.mean([g[path] for g in each], axis=0) for path in trained}
    return min_max({p: np.linalg.norm(mean[p]) / np.linalg.norm(params[p]) for p in trained})
  if kind == "rgn_released":
    norm = np.linalg.norm
    scores = {p: np.mean([norm(g[p]) / norm(params[p]) for g in each]) for p in trained}
    return {path: s / max(scores.values()) for path, s in scores.items()}
  if kind == "snr_released":
    scores = {
      p: np.mean([np.mean(g[p] ** 2 / (g[p].var(-1, ddof=1, keepdims=True) + 1e-8)) for g in each])
      for p in trained
    }
    return {path: float(s >= 0.9) for path, s in scores.items()}
  alone = [gradients(train.images[[r]], train.labels[[r]], False) for r in np.ravel(rows)]
  scores = {}
  for path in trained:
    g = np.stack([example[path] for example in alone])
    signal, noise = g.mean(0) ** 2, g.var(0)
    scores[path] = np.mean(np.divide(signal, noise, out=np.zeros_like(signal), where=noise > 0))
  return {path: float(s >= 0.3) for path, s in min_max(scores).items()}


ROWS = np.random.default_rng(7).permutation(24).reshape(3, 8)


@pytest.mark.parametrize("norm_mode", marks.first(1, ["batch", "running"]))
@pytest.mark.parametrize("kind", marks.first(2, ["rgn", "snr", "rgn_released", "snr_released"]))
def test_multipliers_are_those_calculated_by_hand(kind, norm_mode):
  found = measured(KINDS[kind](epochs=1, norm_mode=norm_mode), ROWS)
  wanted = by_hand(kind, ROWS, norm_mode == "batch")
  assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)
  assert len(set(wanted.values())) > 1  # none of these is the same for all tensors


def test_the_first_batches_of_the_epoch_are_read(monkeypatch):
  rows = spy(monkeypatch)
  for num_batches in (2, None):
    fit(methods.auto_rgn(1e-2, num_batches=num_batches, epochs=1, norm_mode="running"))
  order = stage_steps.epoch_order(0, 0, 0, 24, 8)
  for found, read in zip(rows, (order[:2], order), strict=True):
    assert found == pytest.approx(by_hand("rgn", read, False), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
  ("kind", "scores", "wanted"),
  [
    ("rgn", [2.0, 3.0, 6.0], [0.0, 0.25, 1.0]),
    ("rgn", [2.0, 2.0], [1.0, 1.0]),  # nothing to tell them apart
    ("rgn", [-1.0, 2.0, 6.0], [1.0, 0.0, 1.0]),  # a tensor that is all zero has no score
    ("rgn", [-1.0, -1.0], [1.0, 1.0]),
    ("rgn_released", [2.0, 3.0, 6.0], [1 / 3, 0.5, 1.0]),
    ("rgn_released", [-1.0, 3.0, 6.0], [1.0, 0.5, 1.0]),
    ("rgn_released", [0.0, 0.0], [1.0, 1.0]),
    ("snr", [1.0, 1.5, 3.0, 2.0], [0.0, 0.0, 1.0, 1.0]),  # unit scale: 0, 0.25, 1, 0.5
    ("snr", [0.0, 0.0], [1.0, 1.0]),
    ("snr_released", [0.49, 0.5, np.nan], [0.0, 1.0, 1.0]),
  ],
)
def test_normalisation(kind, scores, wanted):
  threshold = 0.5 if kind.startswith("snr") else None
  found = auto_rates.normalise(kind, jnp.asarray(scores), threshold)
  np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_fresh_bias_leaves_the_scale_to_the_others():
  score = auto_rates.relative_norm(jnp.ones(3), jnp.zeros(3))
  assert score == -1
  assert auto_rates.relative_norm(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0])) == 2.5


def test_groups_merge_to_the_moments_of_all():
  values = np.random.default_rng(0).normal(1e3, 1.0, (12, 5)).astype(np.float32)
  running = auto_rates.start({"a": values[0]}, deviations=True)
  for part in np.split(values, [2, 3, 9]):
    running = auto_rates.merge(running, auto_rates.of_many({"a": jnp.asarray(part)}))
  exact = values.astype(np.float64)
  assert running.count == 12
  np.testing.assert_allclose(running.mean["a"], exact.mean(0), rtol=1e-6)
  np.testing.assert_allclose(running.deviations["a"] / 12, exact.var(0), rtol=1e-3)


# ------------------------------------------------------------------ the released code


def torch_network(torch, variables):
  """The tiny network in plain torch; BatchNorm's names hold "bn"."""
  functional = torch.nn.functional

  class Network(torch.nn.Module):
    def __init__(self):
      super().__init__()
      for i, (inputs, outputs) in enumerate(((3, 4), (4, 6), (6, 8))):
        setattr(self, f"conv{i}", torch.nn.Conv2d(inputs, outputs, 3, stride=2, bias=False))
        setattr(self, f"bn{i}", torch.nn.BatchNorm2d(outputs))
      self.fc = torch.nn.Linear(8, 3)

    def forward(self, x):
      for i in range(3):
        x = getattr(self, f"conv{i}")(functional.pad(x, (0, 1, 0, 1)))  # as "SAME" pads
        x = functional.relu(getattr(self, f"bn{i}")(x))
      return self.fc(x.mean((2, 3)))

  params, stats = jax.tree.map(np.asarray, (variables["params"], variables["batch_stats"]))
  state = {"fc.weight": params["head"]["kernel"].T, "fc.bias": params["head"]["bias"]}
  for i in range(3):
    own, running = params[f"block{i}"], stats[f"block{i}"]["bn"]
    state[f"conv{i}.weight"] = own["conv"]["kernel"].transpose(3, 2, 0, 1)
    state[f"bn{i}.weight"], state[f"bn{i}.bias"] = own["bn"]["scale"], own["bn"]["bias"]
    state[f"bn{i}.running_mean"], state[f"bn{i}.running_var"] = running["mean"], running["var"]
  made = Network()
  made.load_state_dict({k: torch.tensor(np.array(v)) for k, v in state.items()}, strict=False)
  return made.eval()


def torch_training(torch, network, kind, rate, epochs):
  """Trains it as the released code does, on our batches; returns the multipliers of each epoch."""
  train = tiny.examples()
  named = {n: p for n, p in network.named_parameters() if "bn" not in n}

  def loss_of(rows):
    x = (train.images[rows].astype(np.float32) - 127.0) / 64.0
    logits = network(torch.tensor(x.transpose(0, 3, 1, 2)))
    return torch.nn.functional.cross_entropy(logits, torch.tensor(train.labels[rows]).long())

  def score(gradient, param):
    if kind == "rgn_released":
      return (gradient.norm() / param.norm()).item()
    variance = torch.var(gradient, dim=0, keepdim=True)
    return (gradient * gradient / (variance + 1e-8)).mean().item()

  used = []
  for epoch in range(epochs):
    order = stage_steps.epoch_order(0, 0, epoch, 24, 8)
    found = []
    for rows in order[:5]:
      gradient = torch.autograd.grad(loss_of(rows), list(named.values()))
      found.append([score(g, p) for g, p in zip(gradient, named.values(), strict=True)])
    mean = np.mean(found, axis=0)
    weights = mean / mean.max() if kind == "rgn_released" else np.where(mean < 0.95, 0.0, 1.0)
    used.append(dict(zip(named, weights, strict=True)))
    groups = [{"params": [p], "lr": used[-1][n] * rate} for n, p in named.items()]
    adam = torch.optim.Adam(groups)
    for rows in order:
      adam.zero_grad()
      loss_of(rows).backward()
      adam.step()
  return used


NAMES = {"fc.weight": "head/kernel", "fc.bias": "head/bias"} | {
  f"conv{i}.weight": f"block{i}/conv/kernel" for i in range(3)
}


@pytest.mark.parametrize("kind", ["rgn_released", "snr_released"])
def test_a_training_as_released_equals_one_in_torch(kind, monkeypatch):
  torch = pytest.importorskip("torch")
  seen = spy(monkeypatch)
  make = methods.auto_rgn if kind == "rgn_released" else methods.auto_snr
  result = fit(make(1e-2, released=True, epochs=3, schedule="constant", norm_mode="running"))
  peer = torch_network(torch, network()[1])
  used = torch_training(torch, peer, kind, 1e-2, 3)
  for ours, theirs in zip(seen, used, strict=True):
    assert ours == pytest.approx({NAMES[n]: w for n, w in theirs.items()}, rel=2e-3)
  if kind == "snr_released":
    assert set(used[0].values()) == {0.0, 1.0}
  params = result.variables["params"]
  for i in range(3):
    theirs = getattr(peer, f"conv{i}").weight.detach().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_allclose(params[f"block{i}"]["conv"]["kernel"], theirs, atol=1e-4)
  head = params["head"]
  np.testing.assert_allclose(head["kernel"], peer.fc.weight.detach().numpy().T, atol=1e-4)
  np.testing.assert_allclose(head["bias"], peer.fc.bias.detach().numpy(), atol=1e-4)


def test_batch_norm_is_told_by_its_name_in_every_backbone():
  for name in ("resnet18", "clip_resnet50", "efficientnet_lite0"):
    model = models.create(name, 3, image_size=64)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    stats = {path.rsplit("/", 1)[0] for path in masks.paths(variables["batch_stats"])}
    params = masks.paths(variables["params"])
    frozen = {p for p in params if p[:5] != "head/" and not methods.without_batch_norm(p, None)}
    assert frozen == {path for path in params if path.rsplit("/", 1)[0] in stats}


# ------------------------------------------------------------------ what a multiplier does

OPTIMIZERS = {
  "adam": DECAY,
  "sgd": {"optimizer": "sgd", "nesterov": True, **DECAY},
  "plain_sgd": {"optimizer": "sgd", "momentum": 0.0},
}


@pytest.mark.parametrize(
  ("name", "scan"),
  marks.first(
    2, [("adam", True), ("sgd", False), ("plain_sgd", False), ("adam", False)], several=True
  ),
)
def test_multipliers_of_1_are_full_fine_tuning_bit_for_bit(name, scan):
  options = {"epochs": 2, **OPTIMIZERS[name]}
  full = fit(methods.full_fine_tuning(1e-2, **options), scan=scan)
  ones = fit(methods.auto_snr(1e-2, threshold=0.0, **options), scan=scan)
  assert_same(ones.variables, full.variables)
  rates = dict.fromkeys(("block0", "block1", "block2", "head"), 1.0)
  assert ones.history == [row | {"rates": rates} for row in full.history]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_multipliers_of_0_keep_every_bit(name):
  _, variables = network()
  params = {**variables["params"], "head": {**variables["params"]["head"]}}
  params["head"]["bias"] = jnp.array([-0.0, 0.5, 0.0])
  variables = {**variables, "params": params}
  result = fit(
    methods.auto_snr(1e-1, threshold=2.0, epochs=2, **OPTIMIZERS[name]), variables=variables
  )  # no tensor reaches 2 on a scale from 0 to 1
  assert_same(result.variables["params"], params)
  assert result.history[0]["rates"] == dict.fromkeys(("block0", "block1", "block2", "head"), 0.0)


def test_some_stay_and_the_others_move(monkeypatch):
  seen = spy(monkeypatch)

  result = fit(methods.auto_snr(1e-2, threshold=0.3, epochs=1, **DECAY))
  params = result.variables["params"]
  before = params_by_path()
  after = dict(zip(masks.paths(params), jax.tree.leaves(params), strict=True))
  assert set(seen[0].values()) == {0.0, 1.0}
  for path, multiplier in seen[0].items():
    assert np.array_equal(before[path].astype(np.float32), after[path]) == (multiplier == 0), path


def test_a_multiplier_scales_the_rate_of_its_label(monkeypatch):
  """One plain step: theta - multiplier * (rate of the label) * gradient."""
  seen = spy(monkeypatch)
  train = tiny.examples(8)
  method = methods.auto_rgn(
    1e-3, head_learning_rate=1e-1, epochs=1, optimizer="sgd", momentum=0.0, schedule="constant",
    norm_mode="running",
  )  # fmt: skip
  result = fit(method, train=train)
  gradient, before = gradients(train.images, train.labels, False), params_by_path()
  params = result.variables["params"]
  for path, after in zip(masks.paths(params), jax.tree.leaves(params), strict=True):
    rate = 1e-1 if path.startswith("head/") else 1e-3
    step = seen[0][path] * rate * gradient[path]
    np.testing.assert_allclose(after, before[path] - step, rtol=1e-5, atol=1e-7)


def test_an_update_that_is_not_finite_is_stopped_by_0():
  transform = optimizer.scale_by_rate(0.1, lambda count: 1.0, per_tensor=True)
  params = {"a": jnp.array([1.0, -0.0]), "b": jnp.array([2.0])}
  state = transform.init(params)._replace(multipliers={"a": jnp.zeros([]), "b": jnp.array(0.5)})
  updates = {"a": jnp.array([np.inf, np.nan]), "b": jnp.array([3.0])}
  updates, state = transform.update(updates, state, params)
  moved = optax.apply_updates(params, updates)
  assert_same(moved["a"], params["a"])
  np.testing.assert_allclose(moved["b"], 2.0 - 0.1 * 0.5 * 3.0)
  assert state.count == 1


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_fresh_moments_and_a_schedule_that_goes_on(name):
  model, variables = network()
  spec, moving, fixed = make_spec(
    methods.auto_rgn(1e-2, epochs=1, **OPTIMIZERS[name]), model, variables
  )
  start = spec.create_state(moving)
  train = tiny.examples(8)
  data = {"x": jnp.asarray(train.images), "labels": train.labels}
  view = {"seed": np.int32(0), "epoch": np.int32(0)}
  step = jax.jit(functools.partial(step_lib.train_step, spec))
  moved, _ = step(start, fixed, None, data, jnp.arange(8), view)
  values = dict.fromkeys(optimizer.multipliers(moved.opt_state), jnp.array(0.5))
  moments = (optax.ScaleByAdamState, optax.TraceState)
  kinds = (*moments, optimizer.RateState)

  def nodes(opt_state, kind):
    found = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kinds))
    return [node for node in found if isinstance(node, kind)]

  for fresh in (False, True):
    state = optimizer.set_multipliers(moved.opt_state, values, fresh=fresh)
    assert_same(nodes(state, moments), nodes((start if fresh else moved).opt_state, moments))
    for rate in nodes(state, optimizer.RateState):
      assert rate.count == 1
      assert set(map(float, jax.tree.leaves(rate.multipliers))) == {0.5}


# ------------------------------------------------------------------ in the loop


def test_frozen_leaves_own_no_state_and_no_multiplier():
  model, variables = network()
  methods_of = {
    "sub": methods.sub_tuning(("block1",), 1e-2, epochs=1, rates=methods.TensorRates("rgn")),
    "released": methods.auto_rgn(1e-2, epochs=1, released=True),
  }
  wanted = {
    "sub": {f"block1/{x}" for x in ("conv/kernel", "bn/scale", "bn/bias")},
    "released": {f"block{i}/conv/kernel" for i in range(3)},
  }
  for name, method in methods_of.items():
    spec, moving, _ = make_spec(method, model, variables)
    trained = wanted[name] | {"head/kernel", "head/bias"}
    state = spec.create_state(moving)
    assert set(optimizer.multipliers(state.opt_state)) == trained
    sizes = sum(np.size(params_by_path()[path]) for path in trained)
    leaves = jax.tree.leaves(state.opt_state)
    assert sum(x.size for x in leaves if x.ndim) == 2 * sizes  # Adam's moments
    assert sum(x.ndim == 0 for x in leaves) == 6 + len(trained)
    measure = auto_rates.make_measure(spec, tiny.one_device())
    assert set(masks.paths(measure.initial(moving["params"]).mean)) == trained


class Stop(Exception):
  pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rgn", "rgn_released", "snr"])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, kind):
  first = methods.linear_probing(l2=(1.0, 0.1)) if kind == "rgn" else ()
  method = first + KINDS[kind](epochs=3, warmup=0.2)
  whole = fit(method)
  saver = resume.Saver(checkpoint.Checkpoints(tmp_path), "k", every_seconds=0)

  def stop(row, logits):
    if row["epoch"] == 3:
      raise Stop

  with pytest.raises(Stop):
    fit(method, saver=saver, on_epoch=stop)
  assert saver.checkpoints.steps()
  resumed = fit(method, saver=saver)
  assert resumed.history == whole.history
  assert_same(resumed.variables, whole.variables)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_four_devices_measure_what_one_does(kind):
  method = KINDS[kind](epochs=1)
  four = measured(method, ROWS, mesh_lib.make_mesh())
  assert four == pytest.approx(by_hand(kind, ROWS, True), rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_scan_streaming_and_devices_change_no_result():
  method = KINDS["snr"](epochs=2)
  plain = fit(method)
  assert_same(fit(method, resident_bytes=100).variables, plain.variables)
  assert_same(fit(method, in_pieces=True).variables, plain.variables)  # the step is not in pieces
  for fields in ({"scan": True}, {"mesh": mesh_lib.make_mesh()}):
    for a, b in zip(plain.history, fit(method, **fields).history, strict=True):
      assert a["rates"] == pytest.approx(b["rates"], rel=1e-3, abs=2e-4)
      assert a["train_loss"] == pytest.approx(b["train_loss"], rel=2e-4)


def test_the_prefix_cache_is_read():
  rates = methods.TensorRates("rgn")
  method = methods.sub_tuning(("block2",), 1e-2, epochs=2, rates=rates)
  cached, whole = fit(method), fit(method, prefix_cache=False)
  for a, b in zip(cached.history, whole.history, strict=True):
    assert a["rates"] == pytest.approx(b["rates"], abs=2e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    cached.variables, whole.variables,
  )  # fmt: skip


@pytest.mark.slow
def test_views_penalty_and_mixup():
  """The views are those of the epoch; penalty and mixup do not count."""
  model, variables = network()
  (plain,) = methods.auto_rgn(1e-2, epochs=1)
  heavy = dataclasses.replace(plain, penalty=lambda trained, *_: 1e3 * optax.global_norm(trained))
  shift = step_lib.Augmentation("shift", 4)
  mixed = step_lib.Augmentation("shift", 4, mixup=0.5)
  train, mesh = tiny.examples(), tiny.one_device()
  batch = batches.one(batches.Source(train.images, train.labels, True), np.arange(8), mesh)

  def gradients_of(stage, augmentation):
    """In epochs 0 and 1, of the first tensor."""
    spec, moving, fixed = make_spec((stage,), model, variables)
    measure = auto_rates.make_measure(dataclasses.replace(spec, augmentation=augmentation), mesh)
    views = [{"seed": np.int32(0), "epoch": np.int32(epoch)} for epoch in (0, 1)]
    add_batch, nothing = jax.jit(measure.add_batch), measure.initial(moving["params"])
    found = [add_batch(nothing, moving, fixed, batch, view).mean for view in views]
    return np.stack([jax.tree.leaves(mean)[0] for mean in found])

  images = gradients_of(plain, None)
  np.testing.assert_array_equal(images[0], images[1])
  np.testing.assert_allclose(gradients_of(heavy, None), images, rtol=1e-5, atol=1e-7)
  shifted = gradients_of(plain, shift)
  assert not np.allclose(shifted[0], shifted[1], rtol=1e-2)
  np.testing.assert_allclose(gradients_of(plain, mixed), shifted, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_epochs_and_rates_share_their_programs():
  def programs():
    return auto_rates._programs.cache_info().misses, step_lib._compiled.cache_info().misses

  fit(methods.auto_rgn(1e-2, epochs=2, warmup=0.1))
  made = programs()
  model, variables = network()
  fit(methods.auto_rgn(1e-3, epochs=2, warmup=0.1))
  assert programs() == made
  (stage,) = methods.auto_rgn(1e-3, epochs=2, warmup=0.1)
  plan = trainable_split.make_plan(model, variables, stage)
  spec = step_lib.StepSpec(model, plan, stage, 6, tiny.PREPROCESSING)
  of_both = auto_rates._programs(auto_rates.make_measure(spec, tiny.one_device()))
  assert programs() == made
  assert [program._cache_size() for program in of_both] == [1, 1, 1]


# ------------------------------------------------------------------ gradients of single examples


def small_efficientnet():
  blocks = efficientnet.lite_blocks(1.0, 1.0)[:1]
  model = efficientnet.EfficientNet(num_classes=3, blocks=blocks, features=16)
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  return model, variables


@pytest.mark.parametrize(
  ("size", "most", "wanted"), [(64, 0, 1), (64, 1, 1), (64, 20, 16), (12, 5, 4), (8, 99, 8)]
)
def test_chunks_divide_the_batch(size, most, wanted):
  assert auto_rates._chunk(size, most) == wanted


@pytest.mark.slow
def test_chunks_change_no_result(monkeypatch):
  model, variables = small_efficientnet()
  spec, moving, fixed = make_spec(KINDS["snr"](epochs=1), model, variables)
  train = tiny.examples(4)
  data = {"x": train.images, "labels": train.labels, "ids": np.arange(4, dtype=np.int32)}
  view = {"seed": np.int32(0), "epoch": np.int32(0)}
  measure = auto_rates.make_measure(spec, tiny.one_device())
  found = []
  for most in (1, 4):
    monkeypatch.setattr(auto_rates, "_most_examples", lambda mesh, one, most=most: most)
    running = measure.initial(moving["params"])
    running = jax.jit(measure.add_batch)(running, moving, fixed, data, view)
    found.append(running)
  assert found[0].count == 4
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7), found[0], found[1]
  )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["snr", "snr_released"])
def test_measuring_lowers_for_accelerators(kind, monkeypatch):
  monkeypatch.setattr(auto_rates, "_most_examples", lambda mesh, one: 2)
  model, variables = small_efficientnet()
  spec, moving, fixed = make_spec(KINDS[kind](epochs=1), model, variables)
  measure = auto_rates.make_measure(spec, tiny.one_device())
  data = {"x": jnp.zeros((4, 16, 16, 3), jnp.uint8), "labels": jnp.zeros(4, jnp.int32),
          "ids": jnp.zeros(4, jnp.int32)}  # fmt: skip
  view = {"seed": np.int32(0), "epoch": np.int32(0)}
  running = jax.eval_shape(measure.initial, moving["params"])
  exported = jax.export.export(jax.jit(measure.add_batch), platforms=("tpu", "cuda"))(
    running, moving, fixed, data, view
  )
  assert "stablehlo.convolution" in exported.mlir_module()
