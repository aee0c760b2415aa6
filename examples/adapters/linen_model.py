"""LoRA on the last two blocks of somebody else's Linen model: flaxmodels' ResNet-18.

    pip install flaxmodels
    python -m examples.adapters.linen_model

Nothing of the model is changed. Its modules have Flax's own names (BasicBlock_7), and the selectors
use them. After training the adapters are merged, and the model alone gives the same logits.
"""

from typing import Any

import flaxmodels
import jax
import jax.numpy as jnp
import numpy as np
import optax

from subtune_jax import adapters, masks

NUM_CLASSES = 5
RULES = adapters.LoRA(["BasicBlock_6", "BasicBlock_7"], rank=4, rank_pattern={"BasicBlock_6": 2})


def run(num_steps: int = 3) -> dict[str, Any]:
  """Trains on noise.

  Returns:
    "losses"; "labels" and "params" of the joint tree; "error", the largest difference of a logit
    between the adapted model and the merged one.
  """
  images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
  classes = jnp.arange(4) % NUM_CLASSES
  model = flaxmodels.ResNet18(
    output="logits", pretrained=None, normalize=False, num_classes=NUM_CLASSES
  )
  variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))
  adapted, tree = adapters.add(model, variables, RULES, jax.random.key(2), images, train=False)
  labels = adapted.labels(variables["params"], tree, {masks.HEAD: "Dense_0"})
  joint = {"base": variables["params"], "adapters": tree}
  tx = masks.multi_transform(
    {masks.HEAD: optax.adamw(1e-2), adapters.ADAPTER: optax.adamw(1e-2)}, labels
  )
  trained, frozen = masks.partition(joint, labels)
  opt_state = tx.init(trained)

  def logits_of(joint):
    variables_ = {**variables, "params": joint["base"]}
    return adapted.apply(variables_, joint["adapters"], images, train=False)

  @jax.jit
  def step(trained, opt_state):
    def loss_fn(trained):
      logits = logits_of(masks.combine(trained, frozen))
      return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()

    loss, gradient = jax.value_and_grad(loss_fn)(trained)
    updates, opt_state = tx.update(gradient, opt_state, trained)
    return optax.apply_updates(trained, updates), opt_state, loss

  losses = []
  for _ in range(num_steps):
    trained, opt_state, loss = step(trained, opt_state)
    losses.append(float(loss))
  joint = masks.combine(trained, frozen)
  merged = {**variables, "params": adapted.merge(joint["base"], joint["adapters"])}
  alone = jax.jit(lambda v: model.apply(v, images, train=False))(merged)
  error = float(np.abs(alone - jax.jit(logits_of)(joint)).max())
  return {"losses": losses, "labels": labels, "params": joint, "error": error}


if __name__ == "__main__":
  result = run()
  print(masks.summary(result["params"], result["labels"]))
  print("losses:", *(f"{loss:.3f}" for loss in result["losses"]))
  print(f"merged: logits within {result['error']:.1e}")
