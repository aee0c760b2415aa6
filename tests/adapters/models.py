"""Linen models that are not the library's: every kind of layer, and layers that are scanned."""

from flax import linen as nn
import jax
import optax

from subtune_jax import masks


class Block(nn.Module):
  """Attention and a linear layer, each beside a shortcut."""

  @nn.compact
  def __call__(self, x, _=None):
    y = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(nn.LayerNorm(name="norm")(x))
    x = x + y
    return x + nn.Dense(x.shape[-1], name="mlp")(x), None


class Net(nn.Module):
  """Convolutions, plain, depthwise and in groups; an einsum; layers one by one and scanned."""

  num_classes: int = 5

  @nn.compact
  def __call__(self, images):
    x = nn.relu(nn.Conv(8, (3, 3), strides=2, name="stem")(images))
    x = nn.Conv(8, (3, 3), feature_group_count=8, padding="VALID", name="depthwise")(x)
    x = nn.Conv(16, (3, 3), feature_group_count=2, padding="CIRCULAR", name="grouped")(x)
    x = x.reshape(x.shape[0], -1, 16)
    x = nn.Einsum((16, 2, 8), "btd,dnh->btnh", name="einsum")(x).reshape(x.shape)
    scanned = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
    x, _ = scanned(name="layers")(x, None)
    x, _ = nn.remat(Block)(name="last")(x)
    return nn.Dense(self.num_classes, name="head")(x.mean(1))


class Small(nn.Module):
  """A convolution, a depthwise one, and linear layers."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(8, (3, 3), name="conv")(x))
    x = nn.Conv(8, (3, 3), feature_group_count=8, use_bias=False, name="depthwise")(x)
    x = nn.DenseGeneral((2, 3), axis=(-2, -1), name="general")(x)
    return nn.Dense(5, name="head")(nn.relu(x.reshape(x.shape[0], -1)))


class Normed(nn.Module):
  """A linear layer, and BatchNorm that is told by its call what to run on."""

  @nn.compact
  def __call__(self, x):
    return nn.BatchNorm(name="bn")(nn.Dense(4, name="dense")(x), use_running_average=True)


def net():
  """(model, variables, images)."""
  images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  model = Net()
  return model, jax.jit(model.init)(jax.random.key(1), images), images


def make_step(adapted, labels, tx):
  """(state, batch) -> (state, metrics) of what is labelled, as `masks.verify` takes it."""

  def step(state, batch):
    trained, frozen = masks.partition(state["params"], labels)

    def loss_fn(trained):
      both = masks.combine(trained, frozen)
      logits = adapted.apply({"params": both["base"]}, both["adapters"], batch[0])
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    loss, gradient = jax.value_and_grad(loss_fn)(trained)
    updates, opt_state = tx.update(gradient, state["opt_state"], trained)
    params = masks.combine(optax.apply_updates(trained, updates), frozen)
    return {"params": params, "opt_state": opt_state}, {"loss": loss}

  return step
