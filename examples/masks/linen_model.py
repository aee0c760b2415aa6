"""Trains the last block and the head of somebody else's Linen model: flaxmodels' ResNet-18.

    pip install flaxmodels
    python -m examples.masks.linen_model

Nothing of the model is changed. Its modules have Flax's own names (BasicBlock_7), and the selectors
use them. BatchNorm runs on its running statistics (train=False), so that the frozen blocks do not
drift.
"""

from typing import Any

import flaxmodels
import jax
import jax.numpy as jnp
import optax

from subtune_jax import masks

NUM_CLASSES = 5
RULES = {masks.HEAD: "Dense_0", masks.TUNED: "BasicBlock_7"}


def run(num_steps: int = 3) -> dict[str, Any]:
  """Trains on noise.

  Returns:
    "before" and "after", the states; "labels"; "losses"; and "report" of `masks.verify`.
  """
  images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
  batch = (images, jnp.arange(4) % NUM_CLASSES)
  model = flaxmodels.ResNet18(
    output="logits", pretrained=None, normalize=False, num_classes=NUM_CLASSES
  )
  variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))
  labels = masks.label(variables["params"], RULES)
  tx = masks.multi_transform(
    {masks.HEAD: optax.adamw(1e-2), masks.TUNED: optax.adamw(1e-3)}, labels
  )
  trained, _ = masks.partition(variables["params"], labels)
  state = {**variables, "opt_state": tx.init(trained)}

  def train_step(state, batch):
    trained, frozen = masks.partition(state["params"], labels)

    def loss_fn(trained):
      variables = {
        "params": masks.combine(trained, frozen),
        "batch_stats": state["batch_stats"],
      }
      logits = model.apply(variables, batch[0], train=False)
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(trained)
    updates, opt_state = tx.update(gradients, state["opt_state"], trained)
    params = masks.combine(optax.apply_updates(trained, updates), frozen)
    return {**state, "params": params, "opt_state": opt_state}, {"loss": loss}

  report = masks.verify(train_step, state, batch, labels)
  step, before, losses = jax.jit(train_step), state, []
  for _ in range(num_steps):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  return {
    "before": before, "after": state, "labels": labels, "losses": losses, "report": report
  }  # fmt: skip


if __name__ == "__main__":
  result = run()
  print(masks.summary(result["after"]["params"], result["labels"]))
  print("losses:", *(f"{loss:.3f}" for loss in result["losses"]))
  print(result["report"])
