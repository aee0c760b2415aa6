"""Train steps of a small MLP with two trained blocks, written as people write them."""

import re

import flax.linen as nn
import jax
import optax

from subtune_jax import masks

BATCH = (
  jax.random.normal(jax.random.key(1), (8, 6)),
  jax.random.randint(jax.random.key(2), (8,), 0, 3),
)


class MLP(nn.Module):
  @nn.compact
  def __call__(self, x):
    for i in range(4):
      x = nn.gelu(nn.Dense(6, name=f"block{i}")(x))
    return nn.Dense(3, name="head")(x)


MODEL = MLP()
PARAMS = jax.jit(MODEL.init)(jax.random.key(0), BATCH[0])["params"]
LABELS = masks.label(PARAMS, {masks.HEAD: "head", masks.TUNED: "block2"})
FROZEN_PATHS = [f"block{i}/{name}" for i in (0, 1, 3) for name in ("bias", "kernel")]


def cross_entropy(logits, labels):
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def mlp_loss(params, batch):
  return cross_entropy(MODEL.apply({"params": params}, batch[0]), batch[1])


def adamw():
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.1))


def make_tx():
  return masks.multi_transform({masks.HEAD: adamw(), masks.TUNED: adamw()}, LABELS)


def make_state(tx, params=PARAMS, labels=None):
  """A state; with labels, its optimiser knows the trained part alone."""
  part = params if labels is None else masks.partition(params, labels)[0]
  return {"params": params, "opt_state": tx.init(part)}


def apply_gradients(tx, state, gradients):
  updates, opt_state = tx.update(gradients, state["opt_state"], state["params"])
  return {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}


def split_step(tx, state, batch, loss=mlp_loss, labels=LABELS):
  """The right way: the gradient of the trained part."""
  trained, frozen = masks.partition(state["params"], labels)
  value, gradients = jax.value_and_grad(lambda t: loss(masks.combine(t, frozen), batch))(trained)
  updates, opt_state = tx.update(gradients, state["opt_state"], trained)
  trained = optax.apply_updates(trained, updates)
  return {"params": masks.combine(trained, frozen), "opt_state": opt_state}, {"loss": value}


def whole_step(tx, state, batch, edit=lambda gradients: gradients, metric=None, loss=mlp_loss):
  """The gradient of everything, then what `edit` makes of it."""
  value, gradients = jax.value_and_grad(loss)(state["params"], batch)
  metrics = {"loss": value}
  if metric is not None:
    metrics["metric"] = metric(gradients)
  return apply_gradients(tx, state, edit(gradients)), metrics


def offenders(error) -> dict[str, str]:
  """Returns path -> what it broke, from the message of `verify`."""
  return dict(re.findall(r"^  (\S+): (.*)$", str(error.value), re.MULTILINE))
