"""Trains the last of four layers of a model that scans over its layers, and its head.

    python -m examples.masks.scanned_model

Such a model keeps all layers of a kind in one array [num_layers, ...], a part of which cannot be
frozen. `masks.unstack` makes them layers with names, `masks.scan_layers` runs these in scans of
equal labels, without the gradients of the frozen ones, and `masks.restack` gives the model's own
arrays back. The model is in models/scanned_transformer.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from examples.masks.models import scanned_transformer
from subtune_jax import masks

MODEL = scanned_transformer.ScannedTransformer(
  vocabulary=32, width=16, heads=2, num_layers=4, num_classes=5
)
RULES = {masks.HEAD: ["norm", "head"], masks.TUNED: "layers/3"}


def forward(params: Any, tokens: jax.Array, labels: Any) -> jax.Array:
  """The model's own forward pass on unstacked layers."""

  def layer(x, params):
    return scanned_transformer.Layer(MODEL.heads).apply({"params": params}, x)[0]

  x = MODEL.apply({"params": params}, tokens, method="embed")
  x = masks.scan_layers(layer, x, params["layers"], labels["layers"])
  return MODEL.apply({"params": params}, x, method="classify")


def run(num_steps: int = 3) -> dict[str, Any]:
  """Trains on random tokens.

  Returns:
    "before" and "after", the states; "labels"; "losses"; "report" of `masks.verify`; and "stacked",
    the parameters after training as the model itself has them.
  """
  tokens = jax.random.randint(jax.random.key(1), (2, 8), 0, MODEL.vocabulary)
  batch = (tokens, jnp.arange(2) % MODEL.num_classes)
  params = jax.jit(MODEL.init)(jax.random.key(0), tokens)["params"]
  params = masks.unstack(params, "layers")
  labels = masks.label(params, RULES)
  tx = masks.multi_transform(
    {masks.HEAD: optax.adamw(1e-2), masks.TUNED: optax.adamw(1e-3)}, labels
  )
  trained, _ = masks.partition(params, labels)
  state = {"params": params, "opt_state": tx.init(trained)}

  def train_step(state, batch):
    trained, frozen = masks.partition(state["params"], labels)

    def loss_fn(trained):
      logits = forward(masks.combine(trained, frozen), batch[0], labels)
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(trained)
    updates, opt_state = tx.update(gradients, state["opt_state"], trained)
    params = masks.combine(optax.apply_updates(trained, updates), frozen)
    return {"params": params, "opt_state": opt_state}, {"loss": loss}

  report = masks.verify(train_step, state, batch, labels)
  step, before, losses = jax.jit(train_step), state, []
  for _ in range(num_steps):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  return {
    "before": before, "after": state, "labels": labels, "losses": losses, "report": report,
    "stacked": masks.restack(state["params"], "layers"),
  }  # fmt: skip


if __name__ == "__main__":
  result = run()
  print(masks.summary(result["after"]["params"], result["labels"]))
  print("losses:", *(f"{loss:.3f}" for loss in result["losses"]))
  print(result["report"])
