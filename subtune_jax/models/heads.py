"""Replacing a backbone's linear head."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp


def init_head(model: nn.Module, variables: Any, seed: int) -> dict[str, Any]:
  """Variables with a freshly initialised head (kernel lecun_normal, bias zero).

  Args:
    model: the backbone; the head gets its number of classes.
    variables: the backbone's variables; a head in them gives the number of features.
    seed: of the initialisation.
  """
  features = variables["params"]["head"]["kernel"].shape[0]
  fresh = model.init(jax.random.key(seed), jnp.zeros((1, features)), start="head")["params"]["head"]
  return {**variables, "params": {**variables["params"], "head": fresh}}
