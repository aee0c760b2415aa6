"""The names of the backbones, and how each is built."""

from collections.abc import Callable
import difflib

from flax import linen as nn
import jax
import jax.numpy as jnp

from subtune_jax.models import efficientnet

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
  "efficientnet_lite0": efficientnet.efficientnet_lite0,
}


def names() -> tuple[str, ...]:
  """Returns the names that `create` takes, sorted."""
  return tuple(sorted(_BUILDERS))


def create(
  name: str, num_classes: int, dtype: jax.typing.DTypeLike = jnp.float32
) -> nn.Module:
  """Builds a backbone with a linear head.

  Args:
    name: one of `names()`.
    num_classes: size of the head, at least 1.
    dtype: of the computation (`jnp.bfloat16` on accelerators). Parameters and BatchNorm statistics
      stay float32.

  Returns:
    A module with `block_names` and `apply(variables, x, start=, stop=, train_blocks=)`.

  Raises:
    ValueError: the name is not registered, or `num_classes` is not a positive integer.
  """
  if name not in _BUILDERS:
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"no model named {name!r}; {hint}registered: {', '.join(names())}")
  if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
    raise ValueError(f"num_classes={num_classes!r} must be an integer of at least 1")
  return _BUILDERS[name](num_classes=num_classes, dtype=dtype)
