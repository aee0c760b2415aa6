"""Trains the last layer and the last norm of somebody else's NNX model: mamba2-jax's Mamba-2.

    pip install mamba2-jax
    python -m examples.masks.nnx_model

Nothing of the model is changed. `nnx.split` gives its parameters as an `nnx.State`, which `masks`
takes as it is. The model's output layer is its embedding, so both are frozen here.
"""

from typing import Any

from flax import nnx
import jax
import mamba2_jax
import optax

from subtune_jax import masks

CONFIG = mamba2_jax.Mamba2Config(
  vocab_size=32, hidden_size=16, state_size=8, head_dim=8, chunk_size=8, num_hidden_layers=2
)
RULES = {masks.HEAD: "final_norm", masks.TUNED: "layers/1"}


def run(num_steps: int = 3) -> dict[str, Any]:
  """Trains on random tokens.

  Returns:
    "before" and "after", the states; "labels"; "losses"; and "report" of `masks.verify`.
  """
  batch = jax.random.randint(jax.random.key(1), (4, 16), 0, CONFIG.vocab_size)
  model = mamba2_jax.Mamba2ForCausalLM(CONFIG, rngs=nnx.Rngs(0))
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)
  labels = masks.label(params, RULES)
  tx = masks.multi_transform(
    {masks.HEAD: optax.adamw(1e-2), masks.TUNED: optax.adamw(1e-3)}, labels
  )
  trained, _ = masks.partition(params, labels)
  state = {"params": params, "opt_state": tx.init(trained)}

  def train_step(state, batch):
    trained, frozen = masks.partition(state["params"], labels)

    def loss_fn(trained):
      model = nnx.merge(graphdef, masks.combine(trained, frozen), rest)
      return model(batch, labels=batch)["loss"]

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
    "before": before, "after": state, "labels": labels, "losses": losses, "report": report
  }  # fmt: skip


if __name__ == "__main__":
  result = run()
  print(masks.summary(result["after"]["params"], result["labels"]))
  print("losses:", *(f"{loss:.3f}" for loss in result["losses"]))
  print(result["report"])
