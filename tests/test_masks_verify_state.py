"""`masks.verify` on what a step keeps beside the parameters: what is refused, what passes."""

import functools

import flax.linen as nn
import jax
from jax import flatten_util
import jax.numpy as jnp
import optax
import pytest

from subtune_jax import masks
from tests import marks
from tests import train_steps as steps

TRAINED = masks.partition(steps.PARAMS, steps.LABELS)[0]
TOTAL = masks.count_params(steps.PARAMS)
IS_TRAINED = jax.tree.map(lambda label: label != masks.FROZEN, steps.LABELS)


def whole_gradient(params, batch):
  return jax.value_and_grad(steps.mlp_loss)(params, batch)


def trained_gradient(params, batch):
  """The gradient of the trained part, with zeros for the frozen one."""
  trained, frozen = masks.partition(params, steps.LABELS)
  value, gradient = jax.value_and_grad(
    lambda t: steps.mlp_loss(masks.combine(t, frozen), batch)
  )(trained)  # fmt: skip
  return value, masks.combine(gradient, jax.tree.map(jnp.zeros_like, frozen))


def only_trained(updates):
  return jax.tree.map(lambda u, keep: u if keep else jnp.zeros_like(u), updates, IS_TRAINED)


def ravelled_step(tx, gradient, layout, state, batch):
  """One vector of all parameters is optimised; then the updates of the frozen ones are dropped."""
  value, gradients = gradient(state["params"], batch)
  _, unravel = flatten_util.ravel_pytree(state["params"])
  flat = layout[0](flatten_util.ravel_pytree(gradients)[0])
  updates, opt_state = tx.update(flat, state["opt_state"])
  updates = only_trained(unravel(layout[1](updates)))
  return {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}, value


LAYOUTS = {
  "plain": (lambda flat: flat, lambda flat: flat),
  "padded": (lambda flat: jnp.pad(flat, (0, -len(flat) % 128)).reshape(-1, 64),
             lambda flat: flat.ravel()[:TOTAL]),
}  # fmt: skip


@pytest.mark.parametrize(
  ("gradient", "layout", "problem"),
  [
    (trained_gradient, "plain", "owns state"),
    (trained_gradient, "padded", "owns state"),
    (whole_gradient, "plain", "its gradient is computed"),
  ],
)
def test_an_optimiser_of_the_ravelled_tree(gradient, layout, problem):
  layout = LAYOUTS[layout]
  tx, flat = optax.adam(1e-2), layout[0](flatten_util.ravel_pytree(steps.PARAMS)[0])
  state = {"params": steps.PARAMS, "opt_state": tx.init(flat)}
  step = functools.partial(ravelled_step, tx, gradient, layout)
  with pytest.raises(ValueError, match="6 frozen leaves") as error:
    masks.verify(step, state, steps.BATCH, steps.LABELS)
  found = steps.offenders(error)
  assert list(found) == steps.FROZEN_PATHS
  assert all(problem in text and "changed" not in text for text in found.values())
  if problem == "owns state":
    assert f"owns state (a part of opt_state/0/mu, {flat.size} numbers)" in found["block0/kernel"]


def test_an_optimiser_of_the_list_of_leaves():
  tx = optax.adam(1e-2)

  def step(state, batch):
    value, gradients = trained_gradient(state["params"], batch)
    leaves, structure = jax.tree.flatten(gradients)
    updates, opt_state = tx.update(leaves, state["opt_state"])
    updates = only_trained(structure.unflatten(updates))
    return {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}, value

  state = {"params": steps.PARAMS, "opt_state": tx.init(jax.tree.leaves(steps.PARAMS))}
  with pytest.raises(ValueError, match="6 frozen leaves") as error:
    masks.verify(step, state, steps.BATCH, steps.LABELS)
  assert list(steps.offenders(error)) == steps.FROZEN_PATHS
  assert "owns state (a part of opt_state/0/mu," in steps.offenders(error)["block0/bias"]


def with_extra(state, extra, update, loss_of=None):
  """(state, step) of the right way, with `extra` beside it: update(extra, params, value, batch)."""
  tx = steps.make_tx()
  state = steps.make_state(tx, labels=steps.LABELS) if state is None else state

  def step(state, batch):
    def loss(params, batch):
      return steps.mlp_loss(params, batch) + (loss_of(state["extra"], params) if loss_of else 0.0)

    core = {name: state[name] for name in ("params", "opt_state")}
    core, metrics = steps.split_step(tx, core, batch, loss=loss)
    extra = update(state["extra"], core["params"], metrics["loss"], batch)
    return {**core, "extra": extra}, metrics

  return {**state, "extra": extra}, step


def as_list(params):
  return jax.tree.leaves(params)


def ravelled(params):
  return flatten_util.ravel_pytree(params)[0]


def padded(params):
  return jnp.pad(flatten_util.ravel_pytree(params)[0], (5, 124)).reshape(-1, 2)


def copied_backwards(params):
  return jax.tree.leaves(params)[::-1]


@pytest.mark.parametrize("layout", marks.first(1, [padded, as_list, copied_backwards]))
@pytest.mark.parametrize("decay", marks.first(1, [0.999, 0.0]))
def test_an_average_of_everything(layout, decay):
  def update(average, params, value, batch):
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, layout(params))

  state, step = with_extra(None, layout(steps.PARAMS), update)
  with pytest.raises(ValueError, match="6 frozen leaves") as error:
    masks.verify(step, state, steps.BATCH, steps.LABELS)
  found = steps.offenders(error)
  assert list(found) == steps.FROZEN_PATHS
  assert all("owns state (a" in text and "extra" in text for text in found.values())


def test_frozen_leaves_that_two_steps_restore():
  tx = steps.make_tx()

  def step(state, batch):
    state, metrics = steps.split_step(tx, state, batch)
    trained, frozen = masks.partition(state["params"], steps.LABELS)
    flipped = jax.tree.map(jnp.negative, frozen)
    return {**state, "params": masks.combine(trained, flipped)}, metrics

  state = steps.make_state(tx, labels=steps.LABELS)
  with pytest.raises(ValueError, match="frozen leaves") as error:
    masks.verify(step, state, steps.BATCH, steps.LABELS)
  assert "changed (by up to" in steps.offenders(error)["block0/kernel"]


class Unit(nn.Module):
  running: bool
  affine: bool

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(6, name="dense")(x)
    norm = nn.BatchNorm(
      self.running, use_bias=self.affine, use_scale=self.affine, name="norm"
    )  # fmt: skip
    return nn.gelu(norm(x))


class Normed(nn.Module):
  @nn.compact
  def __call__(self, x, train_blocks=()):
    for i in range(4):
      x = Unit(f"block{i}" not in train_blocks, affine=i != 1, name=f"block{i}")(x)
    return nn.Dense(3, name="head")(x)


@pytest.mark.parametrize("field", marks.first(1, ["batch_stats", "memory"]))
@pytest.mark.parametrize("drifting", [(), ("block0",), ("block1", "block3")])
def test_running_statistics_of_frozen_blocks(field, drifting):
  """In any field; block1's norm has no parameters, block3 comes after the trained block2."""
  model = Normed()
  variables = jax.jit(model.init)(jax.random.key(0), steps.BATCH[0])
  labels = masks.label(variables["params"], {masks.TUNED: ["block2", "head"]})
  tx = masks.multi_transform({masks.TUNED: steps.adamw()}, labels)
  trained, _ = masks.partition(variables["params"], labels)
  state = {"params": variables["params"], "opt_state": tx.init(trained)}
  state |= {field: {"of": {"the": variables["batch_stats"]}}}

  def step(state, batch):
    trained, frozen = masks.partition(state["params"], labels)
    stats = state[field]["of"]["the"]

    def loss(trained):
      variables = {"params": masks.combine(trained, frozen), "batch_stats": stats}
      logits, new = model.apply(variables, batch[0], ("block2", *drifting), mutable=["batch_stats"])
      return steps.cross_entropy(logits, batch[1]), new["batch_stats"]

    (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
    updates, opt_state = tx.update(gradients, state["opt_state"], trained)
    params = masks.combine(optax.apply_updates(trained, updates), frozen)
    return {"params": params, "opt_state": opt_state, field: {"of": {"the": stats}}}, value

  if not drifting:
    assert masks.verify(step, state, steps.BATCH, labels).unchecked == ()
    return
  with pytest.raises(ValueError, match="frozen leaves are not left alone") as error:
    masks.verify(step, state, steps.BATCH, labels)
  found = steps.offenders(error)
  assert set(found) == {
    f"{field}/of/the/{block}/norm/{name}" for block in drifting for name in ("mean", "var")
  }
  assert all("which is frozen, changed (by up to" in text for text in found.values())


def twin_loss(p, batch):
  """The gradients of base and delta are one value; those of shift and offset two equal ones."""
  x = jnp.tanh(batch[0] @ (p["base"] + p["delta"]))
  return steps.cross_entropy(x @ p["head"] + p["offset"] + p["shift"], batch[1])


TWINS = {
  "base": steps.PARAMS["block0"]["kernel"], "delta": jnp.zeros((6, 6)),
  "head": steps.PARAMS["head"]["kernel"], "offset": jnp.zeros((1, 3)), "shift": jnp.ones((1, 3)),
}  # fmt: skip


@pytest.mark.parametrize("clipped", [("base",), ("shift",), ("base", "shift"), ()])
def test_a_clip_norm_over_a_frozen_gradient_that_equals_a_trained_one(clipped):
  labels = masks.label(TWINS, {masks.TUNED: ["delta", "head", "offset"]})
  tx = masks.multi_transform({masks.TUNED: optax.sgd(0.1)}, labels)
  state = {"params": TWINS, "opt_state": tx.init(masks.partition(TWINS, labels)[0])}

  def step(state, batch):
    value, gradients = jax.value_and_grad(twin_loss)(state["params"], batch)
    trained, frozen = masks.partition(gradients, labels)
    norm = optax.global_norm([trained, [gradients[name] for name in clipped]])
    gradients = jax.tree.map(lambda g: g / jnp.maximum(norm, 0.01), trained)
    params, frozen = masks.partition(state["params"], labels)
    updates, opt_state = tx.update(gradients, state["opt_state"], params)
    params = masks.combine(optax.apply_updates(params, updates), frozen)
    return {"params": params, "opt_state": opt_state}, value

  if not clipped:
    assert masks.verify(step, state, steps.BATCH, labels).unchecked == ()
    return
  with pytest.raises(ValueError, match=f"{len(clipped)} frozen leaves") as error:
    masks.verify(step, state, steps.BATCH, labels)
  assert steps.offenders(error) == dict.fromkeys(clipped, "its gradient is computed")


def own(optimiser):
  return lambda: masks.multi_transform({masks.HEAD: optimiser(), masks.TUNED: steps.adamw()},
                                       steps.LABELS)  # fmt: skip


@pytest.mark.parametrize(
  "make",
  [
    own(lambda: optax.sgd(0.1, momentum=0.9)),
    own(lambda: optax.adafactor(1e-2, min_dim_size_to_factor=2)),
    own(lambda: optax.adamw(optax.cosine_decay_schedule(0.1, 10), mu_dtype=jnp.bfloat16)),
    own(lambda: optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.0, 10))),
    own(lambda: optax.chain(optax.sm3(0.1), optax.ema(0.9))),
    lambda: optax.MultiSteps(steps.make_tx(), 2),
    lambda: optax.apply_if_finite(steps.make_tx(), 3),
  ],
  ids=["momentum", "adafactor", "schedule", "hyperparameters", "sm3", "accumulation", "finite"],
)
@pytest.mark.parametrize("whole", marks.first(1, [False, True]))
def test_optimisers_of_the_trained_leaves_pass(make, whole):
  """Also of the whole tree, where the transform drops what is frozen."""
  tx = make()
  state = steps.make_state(tx, labels=None if whole else steps.LABELS)

  def step(state, batch):
    if not whole:
      return steps.split_step(tx, state, batch)
    value, gradients = trained_gradient(state["params"], batch)
    return steps.apply_gradients(tx, state, gradients), value

  if whole and isinstance(tx, optax.MultiSteps):  # its sum has a place for every parameter
    with pytest.raises(ValueError, match="6 frozen leaves"):
      masks.verify(step, state, steps.BATCH, steps.LABELS)
  else:
    assert masks.verify(step, state, steps.BATCH, steps.LABELS).unchecked == ()


def test_an_optimiser_of_the_ravelled_trained_leaves_passes():
  tx, (flat, unravel) = optax.adam(1e-2), flatten_util.ravel_pytree(TRAINED)

  def step(state, batch):
    trained, frozen = masks.partition(state["params"], steps.LABELS)
    flat, _ = flatten_util.ravel_pytree(trained)
    value, gradient = jax.value_and_grad(
      lambda flat: steps.mlp_loss(masks.combine(unravel(flat), frozen), batch)
    )(flat)  # fmt: skip
    updates, opt_state = tx.update(gradient, state["opt_state"])
    params = masks.combine(unravel(flat + updates), frozen)
    return {"params": params, "opt_state": opt_state}, value

  state = {"params": steps.PARAMS, "opt_state": tx.init(flat)}
  assert masks.verify(step, state, steps.BATCH, steps.LABELS).unchecked == ()


def average(layout):
  def update(extra, params, value, batch):
    trained = layout(masks.partition(params, steps.LABELS)[0])
    return jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, extra, trained)

  return layout(TRAINED), update


def metrics():
  extra = {
    "key": jax.random.key(3), "raw_key": jax.random.PRNGKey(4), "step": jnp.int32(0),
    "best": False, "history": jnp.zeros(TOTAL), "norms": jnp.zeros(3), "scale": jnp.float32(2.0),
    "loss": jnp.float32(jnp.inf),
  }  # fmt: skip

  def update(extra, params, value, batch):
    return {
      "key": jax.random.split(extra["key"])[0], "raw_key": jax.random.split(extra["raw_key"])[0],
      "step": extra["step"] + 1, "best": value < extra["loss"],
      "history": extra["history"].at[extra["step"]].set(value),
      "norms": jnp.stack([jnp.linalg.norm(params[f"block{i}"]["kernel"]) for i in range(3)]),
      "scale": extra["scale"] * 2, "loss": jnp.minimum(value, extra["loss"]),
    }  # fmt: skip

  return extra, update


def bank():
  """The newest inputs and outputs, and features of the frozen first block."""

  def features(params, batch):
    return jnp.concatenate([
      steps.MODEL.apply({"params": params}, batch[0]),
      batch[0] @ params["block0"]["kernel"],
    ], 1)  # fmt: skip

  def update(extra, params, value, batch):
    return jnp.concatenate([features(params, batch), extra])[: len(extra)]

  return jnp.zeros((100, 9)), update


@pytest.mark.parametrize(
  "extra",
  marks.first(3, [average(lambda t: t), average(ravelled), metrics(), average(as_list),
                  average(lambda t: jax.tree.map(jnp.bfloat16, t)), bank()]),
  ids=["average", "ravelled average", "metrics", "flat average", "half average", "bank"],
)  # fmt: skip
def test_other_state_passes(extra):
  state, step = with_extra(None, *extra)
  assert masks.verify(step, state, steps.BATCH, steps.LABELS).unchecked == ()


@pytest.mark.parametrize("layout", marks.first(1, [ravelled, as_list, lambda p: p]))
def test_a_teacher_that_the_loss_reads_passes(layout):
  """A copy of everything, frozen leaves as well, that never changes and that the training needs."""

  def distance(teacher, params):
    squares = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), teacher, layout(params))
    return sum(jax.tree.leaves(squares))

  shifted = jax.tree.map(lambda x: x + 0.01, layout(steps.PARAMS))
  state, step = with_extra(None, shifted, lambda extra, *_: extra, loss_of=distance)
  masks.verify(step, state, steps.BATCH, steps.LABELS)


def test_frozen_weights_in_half_precision_pass():
  """Master copies of the trained leaves alone; and frozen ones kept in both precisions."""
  tx = steps.make_tx()
  half = jax.tree.map(jnp.bfloat16, steps.PARAMS)

  def step(state, batch):
    master = state["master"]
    _, frozen = masks.partition(state["params"], steps.LABELS)

    def loss(master):
      return steps.mlp_loss(masks.combine(jax.tree.map(jnp.bfloat16, master), frozen), batch)

    value, gradients = jax.value_and_grad(loss)(master)
    updates, opt_state = tx.update(gradients, state["opt_state"], master)
    master = optax.apply_updates(master, updates)
    params = masks.combine(jax.tree.map(jnp.bfloat16, master), frozen)
    return {"params": params, "master": master, "opt_state": opt_state}, value

  state = {"params": half, "master": TRAINED, "opt_state": tx.init(TRAINED)}

  def params(state):
    frozen = masks.partition(state["params"], steps.LABELS)[1]
    return masks.combine(jax.tree.map(jnp.bfloat16, state["master"]), frozen)

  assert masks.verify(step, state, steps.BATCH, steps.LABELS, params=params).num_frozen == 6

  def step_with_copies(state, batch):
    trained, frozen = masks.partition(state["params"], steps.LABELS)
    value, gradients = jax.value_and_grad(
      lambda t: steps.mlp_loss(masks.combine(t, state["half"]), batch)
    )(trained)  # fmt: skip
    updates, opt_state = tx.update(gradients, state["opt_state"], trained)
    params = masks.combine(optax.apply_updates(trained, updates), frozen)
    return {**state, "params": params, "opt_state": opt_state}, value

  state = steps.make_state(tx, labels=steps.LABELS)
  state["half"] = masks.partition(half, steps.LABELS)[1]
  assert len(masks.verify(step_with_copies, state, steps.BATCH, steps.LABELS).unchecked) == 6
