"""`masks.verify` on train steps as people write them: what passes, and which leaf breaks it."""

import functools
from typing import Any

from flax import nnx
import flax.linen as nn
from flax.training import train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from subtune_jax import masks
from tests.train_steps import (
  BATCH,
  FROZEN_PATHS,
  LABELS,
  PARAMS,
  adamw,
  apply_gradients,
  cross_entropy,
  make_state,
  make_tx,
  mlp_loss,
  offenders,
  split_step,
  whole_step,
)


def test_split_gradient_passes():
  tx = make_tx()
  state = make_state(tx, labels=LABELS)
  step = jax.jit(functools.partial(split_step, tx), donate_argnums=0)
  report = masks.verify(step, state, BATCH, LABELS)
  assert (report.num_trained, report.num_frozen) == (4, 6)
  counts = masks.count_params(PARAMS, LABELS)
  assert report.state_bytes == 2 * 4 * (counts["head"] + counts["tuned"]) + 2 * 4
  assert 0 < report.flops < report.full_flops
  assert report.unmoved == report.unchecked == ()


def by_number(function):
  """Edits gradients leaf by leaf with a multiplier: 1 where trained, 0 where frozen."""
  return lambda gradients: jax.tree.map(function, gradients, LABELS)


def static_where(gradient, label):
  return jnp.where(label != masks.FROZEN, gradient, 0.0)


def product(gradient, label):
  return gradient * jnp.float32(label != masks.FROZEN)


def clip(gradients):
  norm = optax.global_norm(gradients)
  return jax.tree.map(lambda g: g / jnp.maximum(norm, 1.0), gradients)


@pytest.mark.parametrize(
  ("edit", "transform"),
  [(lambda g: g, make_tx), (by_number(static_where), lambda: optax.sgd(0.1))],
  ids=["dropped by the optimiser", "masked by constants"],
)
def test_gradients_that_xla_removes_cost_nothing(edit, transform):
  tx = transform()
  report = masks.verify(functools.partial(whole_step, tx, edit=edit), make_state(tx), BATCH, LABELS)
  split = jax.jit(functools.partial(split_step, tx)).lower(make_state(tx, labels=LABELS), BATCH)
  np.testing.assert_allclose(report.flops, split.compile().cost_analysis()["flops"], rtol=0.04)
  assert report.flops < 0.9 * report.full_flops


@pytest.mark.parametrize(
  "change",
  [
    {"metric": optax.global_norm},
    {"edit": clip},
    {"metric": lambda g: jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(g)])},
  ],
  ids=["norm logged", "clip before mask", "maxima logged"],
)
def test_gradients_that_are_used_are_found(change):
  tx = make_tx()
  step = jax.jit(functools.partial(whole_step, tx, **change))
  with pytest.raises(ValueError, match="6 frozen leaves are not left alone") as error:
    masks.verify(step, make_state(tx), BATCH, LABELS)
  assert offenders(error) == dict.fromkeys(FROZEN_PATHS, "its gradient is computed")


def test_masks_by_product_keep_the_values_and_pay_for_the_gradient():
  tx = optax.sgd(0.1)
  step = functools.partial(whole_step, tx, edit=by_number(product))
  with pytest.raises(ValueError, match="6 frozen leaves are not left alone") as error:
    masks.verify(step, make_state(tx), BATCH, LABELS)
  assert offenders(error) == dict.fromkeys(FROZEN_PATHS, "its gradient is computed")


def test_only_the_leaf_whose_gradient_is_used_is_named():
  tx = make_tx()
  step = functools.partial(
    whole_step, tx, metric=lambda g: jnp.linalg.norm(g["block1"]["kernel"], axis=0)
  )
  with pytest.raises(ValueError, match="1 frozen leaves") as error:
    masks.verify(step, make_state(tx), BATCH, LABELS)
  assert list(offenders(error)) == ["block1/kernel"]


def test_masked_passes_raw_gradients_through():
  trained = jax.tree.map(lambda label: label != masks.FROZEN, LABELS)
  tx = optax.masked(optax.adamw(1e-2), trained)
  with pytest.raises(ValueError, match="6 frozen leaves") as error:
    masks.verify(functools.partial(whole_step, tx), make_state(tx), BATCH, LABELS)
  found = offenders(error)
  assert list(found) == FROZEN_PATHS
  for problem in found.values():
    assert "changed (by up to" in problem
    assert "its gradient is computed" in problem
    assert "owns state" not in problem


def test_decay_after_freeze_decays_frozen_weights():
  frozen = jax.tree.map(lambda label: label == masks.FROZEN, LABELS)
  tx = optax.chain(optax.masked(optax.set_to_zero(), frozen), optax.adamw(1e-2, weight_decay=0.1))
  with pytest.raises(ValueError, match="6 frozen leaves") as error:
    masks.verify(functools.partial(whole_step, tx), make_state(tx), BATCH, LABELS)
  found = offenders(error)
  assert "changed" in found["block0/kernel"]
  assert "changed" not in found["block0/bias"]  # zero: nothing to decay
  for path in FROZEN_PATHS:
    assert f"owns state (opt_state/1/0/mu/{path}," in found[path]
    assert f"owns state (opt_state/1/0/nu/{path}," in found[path]
    assert "gradient" not in found[path]


@pytest.mark.parametrize("leak", [False, True])
def test_gradients_summed_over_microbatches(leak):
  tx = make_tx()

  def step(state, batch):
    trained, frozen = (state["params"], None) if leak else masks.partition(state["params"], LABELS)

    def loss(part, micro):
      return mlp_loss(part if leak else masks.combine(part, frozen), micro)

    def body(carry, micro):
      return jax.tree.map(jnp.add, carry, jax.value_and_grad(loss)(trained, micro)), None

    micros = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)
    zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, trained))
    (value, gradients), _ = jax.lax.scan(body, zero, micros)
    metrics = {"loss": value / 4, "norm": optax.global_norm(gradients)}
    if not leak:
      gradients = masks.combine(gradients, jax.tree.map(jnp.zeros_like, frozen))
    return apply_gradients(tx, state, gradients), metrics

  if leak:
    with pytest.raises(ValueError, match="6 frozen leaves") as error:
      masks.verify(step, make_state(tx), BATCH, LABELS)
    assert list(offenders(error)) == FROZEN_PATHS
  else:
    assert masks.verify(step, make_state(tx), BATCH, LABELS).unchecked == ()


class ConvNet(nn.Module):
  @nn.compact
  def __call__(self, x, train_blocks=()):
    for i in range(3):
      x = nn.Conv(5, (3, 3), use_bias=False, name=f"block{i}_conv")(x)
      running = f"block{i}" not in train_blocks
      x = nn.relu(nn.BatchNorm(use_running_average=running, name=f"block{i}_norm")(x))
    return nn.Dense(3, name="head")(x.mean((1, 2)))


class ConvState(train_state.TrainState):
  batch_stats: Any


@pytest.mark.parametrize("leak", [False, True])
def test_convnet_with_batch_norm_and_train_state(leak):
  model = ConvNet()
  images = jax.random.normal(jax.random.key(3), (4, 6, 6, 3))
  variables = jax.jit(model.init)(jax.random.key(0), images)
  labels = masks.label(variables["params"], {masks.TUNED: ["block1_*", "head"]})
  tx = masks.multi_transform({masks.TUNED: adamw()}, labels)
  state = ConvState.create(
    apply_fn=model.apply, params=variables["params"], tx=tx, batch_stats=variables["batch_stats"]
  )

  @jax.jit
  def step(state, batch):
    trained, frozen = masks.partition(state.params, labels)

    def loss_fn(trained, frozen):
      variables = {"params": masks.combine(trained, frozen), "batch_stats": state.batch_stats}
      logits, updates = state.apply_fn(
        variables, batch[0], train_blocks=("block1",), mutable=["batch_stats"]
      )
      return cross_entropy(logits, batch[1]), updates

    (loss, updates), (gradients, rest) = jax.value_and_grad(loss_fn, (0, 1), has_aux=True)(
      trained, frozen
    )
    gradients = masks.combine(gradients, jax.tree.map(jnp.zeros_like, frozen))
    state = state.apply_gradients(grads=gradients, batch_stats=updates["batch_stats"])
    return (state, loss, optax.global_norm(rest)) if leak else (state, loss)

  batch = (images, BATCH[1][:4])
  if not leak:
    report = masks.verify(step, state, batch, labels)
    num_tuned = masks.count_params(variables["params"], labels)["tuned"]
    assert report.state_bytes == 2 * 4 * num_tuned + 4
    assert report.unchecked == ()
    return
  with pytest.raises(ValueError, match="which of the step's metrics is the loss"):
    masks.verify(step, state, batch, labels)
  with pytest.raises(ValueError, match="6 frozen leaves") as error:
    masks.verify(step, state, batch, labels, loss=lambda output: output[1])
  assert list(offenders(error)) == [
    f"block{i}_{name}" for i in (0, 2) for name in ("conv/kernel", "norm/bias", "norm/scale")
  ]


class Net(nnx.Module):
  def __init__(self, rngs):
    self.blocks = nnx.List([nnx.Linear(6, 6, rngs=rngs) for _ in range(3)])
    self.head = nnx.Linear(6, 3, rngs=rngs)

  def __call__(self, x):
    for block in self.blocks:
      x = nnx.gelu(block(x))
    return self.head(x)


@pytest.mark.parametrize("leak", [False, True])
def test_nnx_model_and_optimizer(leak):
  model = Net(nnx.Rngs(0))
  labels = masks.label(nnx.state(model, nnx.Param), {masks.TUNED: ["head", "blocks/1"]})
  tx = masks.multi_transform({masks.TUNED: adamw()}, labels)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  graphdef, state = nnx.split({"model": model, "optimizer": optimizer})

  def step(state, batch):
    both = nnx.merge(graphdef, state)
    model, optimizer = both["model"], both["optimizer"]
    loss, gradients = nnx.value_and_grad(lambda m: cross_entropy(m(batch[0]), batch[1]))(model)
    optimizer.update(model, gradients)
    metrics = {"loss": loss, **({"norm": optax.global_norm(gradients)} if leak else {})}
    return nnx.state(both), metrics

  def params(state):
    return nnx.filter_state(state["model"], nnx.Param)

  verify = functools.partial(masks.verify, step, state, BATCH, labels)
  with pytest.raises(ValueError, match=r"State has neither .params nor .*: pass params="):
    verify()
  if leak:
    with pytest.raises(ValueError, match="4 frozen leaves") as error:
      verify(params=params)
    assert list(offenders(error)) == [
      "blocks/0/bias", "blocks/0/kernel", "blocks/2/bias", "blocks/2/kernel"
    ]  # fmt: skip
  else:
    report = verify(params=params)
    assert report.state_bytes == 2 * 4 * (6 * 6 + 6 + 6 * 3 + 3) + 4
    assert report.flops < report.full_flops


class Layer(nn.Module):
  @nn.compact
  def __call__(self, x, _=None):
    return x + nn.gelu(nn.Dense(6, name="dense")(x)), None


class Deep(nn.Module):
  num_layers: int = 6

  @nn.compact
  def __call__(self, x):
    stack = nn.scan(
      Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.num_layers
    )
    x, _ = stack(name="layers")(x, None)
    return nn.Dense(3, name="head")(x)


def deep_setup():
  model = Deep()
  stacked = jax.jit(model.init)(jax.random.key(0), BATCH[0])["params"]
  params = masks.unstack(stacked, "layers")
  labels = masks.label(params, {masks.HEAD: "head", masks.TUNED: ["layers/1", "layers/4"]})
  tx = masks.multi_transform({masks.HEAD: adamw(), masks.TUNED: adamw()}, labels)
  return model, params, labels, tx


def test_layers_of_a_scan_are_trained_one_by_one():
  model, params, labels, tx = deep_setup()

  def loss(params, batch):
    def body(x, layer):
      return Layer().apply({"params": layer}, x)[0]

    x = masks.scan_layers(body, batch[0], params["layers"], labels["layers"])
    return cross_entropy(nn.Dense(3).apply({"params": params["head"]}, x), batch[1])

  stacked = masks.restack(params, "layers")
  expected = cross_entropy(model.apply({"params": stacked}, BATCH[0]), BATCH[1])
  np.testing.assert_allclose(loss(params, BATCH), expected, rtol=1e-5)
  state = make_state(tx, params, labels)
  step = functools.partial(split_step, tx, loss=loss, labels=labels)
  report = masks.verify(step, state, BATCH, labels)
  assert (report.num_trained, report.num_frozen) == (6, 8)
  assert report.state_bytes == 2 * 4 * (2 * 42 + 21) + 2 * 4
  assert report.unchecked == ()


def test_scan_over_restacked_layers_computes_every_gradient():
  model, params, labels, tx = deep_setup()

  def loss(params, batch):
    return cross_entropy(
      model.apply({"params": masks.restack(params, "layers")}, batch[0]), batch[1]
    )

  step = functools.partial(split_step, tx, loss=loss, labels=labels)
  with pytest.raises(ValueError, match="8 frozen leaves") as error:
    masks.verify(step, make_state(tx, params, labels), BATCH, labels)
  assert offenders(error) == {
    f"layers/{i}/dense/{name}": "its gradient is computed"
    for i in (0, 2, 3, 5) for name in ("bias", "kernel")
  }  # fmt: skip


def test_state_that_stacks_layers_with_labels_that_do_not():
  """Rows of a stacked leaf: the moments cover frozen layers, the step moves only the others."""
  model, params, labels, _ = deep_setup()
  tx = optax.adam(1e-2)
  state = make_state(tx, masks.restack(params, "layers"))
  is_trained = jax.tree.map(lambda name: jnp.float32(name != masks.FROZEN), labels)
  weights = masks.restack(is_trained, "layers")

  def step(state, batch):
    loss, gradients = jax.value_and_grad(
      lambda p: cross_entropy(model.apply({"params": p}, batch[0]), batch[1])
    )(state["params"])
    updates, opt_state = tx.update(gradients, state["opt_state"])
    updates = jax.tree.map(
      lambda u, w: u * w.reshape(w.shape + (1,) * (u.ndim - w.ndim)), updates, weights
    )
    return {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}, loss

  with pytest.raises(ValueError, match="8 frozen leaves") as error:
    masks.verify(step, state, BATCH, labels, params=lambda s: masks.unstack(s["params"], "layers"))
  for problem in offenders(error).values():
    assert "changed" not in problem
    assert "owns state (opt_state/0/mu/layers/dense/" in problem
    assert "its gradient is computed" in problem


class Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    y = nn.LayerNorm(name="norm1")(x)
    x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(y)
    y = nn.gelu(nn.Dense(16, name="up")(nn.LayerNorm(name="norm2")(x)))
    return x + nn.Dense(8, name="down")(y)


class ViT(nn.Module):
  remat: bool = False

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(8, name="embedding")(x)
    x = x + self.param("position", nn.initializers.normal(0.1), (1, 4, 8))
    for i in range(2):
      x = (nn.remat(Block) if self.remat else Block)(name=f"block{i}")(x)
    return nn.Dense(3, name="head")(nn.LayerNorm(name="norm")(x).mean(1))


@pytest.mark.parametrize(
  ("tuned", "batch_size"),
  [
    pytest.param("block1", 4, marks=pytest.mark.slow),
    pytest.param("block*/down/bias", 4, marks=pytest.mark.slow),
    ("position", 1),
  ],
)
def test_no_false_alarms_on_a_transformer(tuned, batch_size):
  """Many leaves of one shape; with one example, some gradients are cotangents that all need."""
  model = ViT(remat=tuned == "block1")
  batch = (jax.random.normal(jax.random.key(5), (batch_size, 4, 6)), BATCH[1][:batch_size])
  params = jax.jit(model.init)(jax.random.key(0), batch[0])["params"]
  labels = masks.label(params, {masks.HEAD: "head", masks.TUNED: tuned})
  tx = masks.multi_transform({masks.HEAD: adamw(), masks.TUNED: adamw()}, labels)

  def loss(params, batch):
    return cross_entropy(model.apply({"params": params}, batch[0]), batch[1])

  step = functools.partial(split_step, tx, loss=loss, labels=labels)
  report = masks.verify(step, make_state(tx, params, labels), batch, labels)
  assert report.flops < report.full_flops
  assert all("attention/key/bias" in path for path in report.unchecked)  # softmax ignores it


@pytest.mark.slow
def test_leaks_in_a_transformer_are_named():
  model = ViT(remat=True)
  batch = (jax.random.normal(jax.random.key(5), (4, 4, 6)), BATCH[1][:4])
  params = jax.jit(model.init)(jax.random.key(0), batch[0])["params"]
  labels = masks.label(params, {masks.TUNED: ["head", "block1"]})
  tx = masks.multi_transform({masks.TUNED: adamw()}, labels)

  def loss(params, batch):
    return cross_entropy(model.apply({"params": params}, batch[0]), batch[1])

  step = functools.partial(whole_step, tx, loss=loss, metric=optax.global_norm)
  with pytest.raises(ValueError, match="frozen leaves are not left alone") as error:
    masks.verify(step, make_state(tx, params), batch, labels)
  frozen = set(masks.paths(masks.partition(params, labels)[1]))
  missing = frozen - set(offenders(error))
  assert missing <= {"block0/attention/key/bias"}


def test_a_trained_twin_is_no_offence():
  """The gradient of a trained difference is also that of the frozen weight it is added to."""
  base, head = PARAMS["block0"]["kernel"], PARAMS["head"]["kernel"]
  params = {"base": base, "delta": jnp.zeros((6, 6)), "head": head}
  labels = masks.label(params, {masks.TUNED: ["delta", "head"]})
  tx = masks.multi_transform({masks.TUNED: optax.sgd(0.1)}, labels)

  def loss(p, batch):
    return cross_entropy(jnp.tanh(batch[0] @ (p["base"] + p["delta"])) @ p["head"], batch[1])

  step = functools.partial(split_step, tx, loss=loss, labels=labels)
  assert masks.verify(step, make_state(tx, params, labels), BATCH, labels).num_frozen == 1


def test_state_that_keeps_the_parts_apart():
  tx = make_tx()
  trained, frozen = masks.partition(PARAMS, LABELS)
  state = {"trained": trained, "frozen": frozen, "opt_state": tx.init(trained)}

  def params(state):
    return masks.combine(state["trained"], state["frozen"])

  def step(state, batch):
    whole = {"params": params(state), "opt_state": state["opt_state"]}
    whole, metrics = split_step(tx, whole, batch)
    trained, frozen = masks.partition(whole["params"], LABELS)
    return {"trained": trained, "frozen": frozen, "opt_state": whole["opt_state"]}, metrics

  assert masks.verify(step, state, BATCH, LABELS, params=params).num_frozen == 6


def test_low_precision():
  model = nn.Sequential([nn.Dense(6, dtype=jnp.bfloat16), nn.gelu, nn.Dense(6, dtype=jnp.bfloat16),
                         nn.gelu, nn.Dense(3, dtype=jnp.bfloat16)])  # fmt: skip
  params = jax.jit(model.init)(jax.random.key(0), BATCH[0])["params"]
  labels = masks.label(params, {masks.TUNED: ["layers_2", "layers_4"]})
  tx = masks.multi_transform({masks.TUNED: adamw()}, labels)

  def loss(params, batch):
    return cross_entropy(model.apply({"params": params}, batch[0]).astype(jnp.float32), batch[1])

  step = functools.partial(split_step, tx, loss=loss, labels=labels)
  assert masks.verify(step, make_state(tx, params, labels), BATCH, labels).unchecked == ()
  step = functools.partial(whole_step, tx, loss=loss, metric=optax.global_norm)
  with pytest.raises(ValueError, match="2 frozen leaves") as error:
    masks.verify(step, make_state(tx, params), BATCH, labels)
  assert list(offenders(error)) == ["layers_0/bias", "layers_0/kernel"]


def test_report_lists_what_did_not_move_and_what_could_not_be_seen():
  params = {"a": jnp.ones((6, 6)), "b": jnp.ones((6, 3)), "c": jnp.ones(5), "d": jnp.ones(4)}
  labels = masks.label(params, {masks.TUNED: ["b", "c"]})
  tx = masks.multi_transform({masks.TUNED: optax.sgd(0.1)}, labels)

  def loss(p, batch):
    return cross_entropy(batch[0] @ p["a"] @ p["b"], batch[1])  # c and d are not used

  step = functools.partial(split_step, tx, loss=loss, labels=labels)
  report = masks.verify(step, make_state(tx, params, labels), BATCH, labels)
  assert report.unmoved == ("c",)
  assert report.unchecked == ("d",)


def no_loss(state, batch):
  return split_step(make_tx(), state, batch)[0]


def other_loss(state, batch):
  state, metrics = split_step(make_tx(), state, batch)
  noise = jnp.sum(jnp.square(state["params"]["head"]["bias"]))
  return state, {"loss": noise, "objective": metrics["loss"]}


@pytest.mark.parametrize(
  ("step", "message"),
  [
    (no_loss, r"returns no loss: return \(state, loss\), or pass loss="),
    (other_loss, r"gradient of no trained leaf was found .*\(pass loss=\)"),
    (lambda s, b: (s, jnp.float32(0)), "no trained leaf moved in two steps"),
    (lambda s, b: (s["params"], jnp.float32(0)), "must return a new state of the structure"),
    (lambda s, b: (s, {"a": 1.0, "b": 2.0}), r"which of the step's metrics is the loss\? .*'0/a'"),
  ],
)
def test_steps_that_cannot_be_judged(step, message):
  with pytest.raises(ValueError, match=message):
    masks.verify(step, make_state(make_tx(), labels=LABELS), BATCH, LABELS)


def test_arguments_that_cannot_be_judged():
  tx = make_tx()
  state, step = make_state(tx, labels=LABELS), functools.partial(split_step, tx)
  with pytest.raises(ValueError, match="every leaf is labelled 'frozen'"):
    masks.verify(step, state, BATCH, masks.label(PARAMS, {}))
  with pytest.raises(ValueError, match="only in labels: head/extra"):
    masks.verify(step, state, BATCH, {**LABELS, "head": {**LABELS["head"], "extra": "tuned"}})
  with pytest.raises(ValueError, match="loss= must give a scalar"):
    masks.verify(step, state, BATCH, LABELS, loss=lambda out: out[0]["params"]["head"]["bias"])
  report = masks.verify(step, state, BATCH, LABELS, loss=lambda output: output[1]["loss"])
  assert report.num_trained == 4
