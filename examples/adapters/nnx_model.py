"""LoRA on an NNX model that knows nothing of it, and two tasks in one batch.

    python -m examples.adapters.nnx_model

The model is copied, not changed: the leaves of the adapters lie beside those of its linear layers.
Each example of the batch takes the adapters and the head of its own task.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import adapters


class Classifier(nnx.Module):
  """Two hidden layers and a head."""

  def __init__(self, rngs: nnx.Rngs):
    self.layers = nnx.List([nnx.Linear(16, 16, rngs=rngs) for _ in range(2)])
    self.head = nnx.Linear(16, 3, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    for layer in self.layers:
      x = nnx.relu(layer(x))
    return self.head(x)


def run() -> dict[str, Any]:
  """Two tasks with random adapters and heads.

  Returns:
    "tree", fresh adapters; "fresh", whether they change no logit; "error", the largest difference
    of a logit between a mixed batch and each task alone.
  """
  x = jax.random.normal(jax.random.key(1), (2, 16))
  model = Classifier(nnx.Rngs(0))
  graphdef, state = nnx.split(model)
  adapted, tree = adapters.add(model, state, adapters.LoRA("layers", rank=2), jax.random.key(2))
  apply = jax.jit(adapted.apply)
  base = jax.jit(lambda state: nnx.merge(graphdef, state)(x))(state)
  fresh = bool(np.allclose(apply(state, tree, x), base, atol=1e-6))

  def task(seed: int) -> adapters.Tree:
    key = jax.random.key(seed)
    own = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape), tree)
    head = {"kernel": jax.random.normal(key, (16, 3)), "bias": jnp.zeros(3)}
    return adapters.with_leaves(own, {"head": head})

  tasks = [task(3), task(4)]
  index = jnp.array([1, 0])
  each = jax.jit(adapted.apply_each)(state, adapters.stack(tasks), index, x)
  alone = [apply(state, own, x) for own in tasks]
  error = float(np.abs(each - jnp.stack([alone[1][0], alone[0][1]])).max())
  return {"tree": tree, "fresh": fresh, "error": error}


if __name__ == "__main__":
  result = run()
  print("adapters at", ", ".join(result["tree"]))
  print(f"fresh adapters change no logit: {result['fresh']}")
  print(f"two tasks in one batch: logits within {result['error']:.1e} of each alone")
