"""The gradient of a batch from its parts, one after the other: the activations of one at a time."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
# loss(params, running statistics, batch, key) -> (loss, (running statistics, correct predictions)).
Loss = Callable[..., tuple[jax.Array, tuple[PyTree, jax.Array]]]


def split(batch: Mapping[str, jax.Array], number: int) -> dict[str, jax.Array]:
  """The batch's rows as [number, rows / number, ...]; part i has rows i, i + number, ...

  So every device of a batch that is split over several has its share of each part, and no row moves
  to another device. What is no array of rows comes in every part.
  """

  def parts(x: jax.Array) -> jax.Array:
    if not x.ndim:
      return jnp.broadcast_to(x, (number,))
    return jnp.moveaxis(x.reshape(-1, number, *x.shape[1:]), 1, 0)

  return {name: parts(x) for name, x in batch.items()}


def value_and_gradient(
  loss: Loss,
  params: PyTree,
  stats: PyTree,
  batch: Mapping[str, jax.Array],
  key: jax.Array | None,
  number: int,
) -> tuple[tuple[jax.Array, tuple[PyTree, jax.Array]], PyTree]:
  """The mean loss and gradient over the parts of a batch, and the sum of right predictions.

  That is the gradient of the whole batch wherever the loss is a mean over examples. Batch
  statistics are those of a part; the running ones go from part to part.

  Args:
    loss: of a batch.
    params: what is differentiated.
    stats: running statistics before the first part.
    batch: name -> [rows, ...], or a scalar.
    key: of the draws; each part has its own. None: nothing is drawn.
    number: of parts; 1 is the batch as it is, with the key as it is.
  """
  function = jax.value_and_grad(loss, has_aux=True)
  if number == 1:
    return function(params, stats, batch, key)

  def add(carry, part):
    stats, sums = carry
    index, rows = part
    own = None if key is None else jax.random.fold_in(key, index)
    (value, (stats, correct)), gradient = function(params, stats, rows, own)
    return (stats, jax.tree.map(jnp.add, sums, (value, correct, gradient))), None

  parts = jnp.arange(number), split(batch, number)
  first = jax.tree.map(lambda x: x[0], parts)
  shapes = jax.eval_shape(lambda: function(params, stats, first[1], key))
  (value, (_, correct)), gradient = shapes
  sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (value, correct, gradient))
  (stats, (value, correct, gradient)), _ = jax.lax.scan(add, (stats, sums), parts)
  return (value / number, (stats, correct)), jax.tree.map(lambda g: g / number, gradient)
