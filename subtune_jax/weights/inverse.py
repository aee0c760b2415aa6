"""A model's variables under the names of a file: a naming scheme read backwards."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
import numpy as np

from subtune_jax.weights import naming

# How an array may lie in a file, by its number of axes here; the first that the reader undoes.
_ORDERS: dict[int, tuple[tuple[int, ...], ...]] = {2: ((1, 0), (0, 1)), 4: ((3, 2, 0, 1),)}


def tensors(title: str, model: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The tensors that a file of a scheme holds, so that reading them gives the variables.

  Args:
    title: of a naming scheme of the model's family.
    model: the backbone.
    variables: '/'-path -> array, such as "params/head/kernel".

  Returns:
    Name -> array, contiguous; the batch counters of torch's BatchNorm (zeros) among them.

  Raises:
    ValueError: the scheme has no name for one of the variables, or makes it of several tensors.
  """
  (scheme,) = (s for s in naming.schemes(type(model)) if s.title == title)
  found = {}
  for path, array in variables.items():
    source = scheme.source(model, path, "")
    if source is None or len(source.keys) != 1:
      raise ValueError(f"{title}: files of it have no tensor for {path}")
    (key,) = source.keys
    found[key] = _laid_out(np.asarray(array), source.convert, path)
    if key.endswith("running_var"):
      found[key.removesuffix("running_var") + "num_batches_tracked"] = np.zeros((), np.int64)
  return found


def _laid_out(array: np.ndarray, convert: Callable[..., np.ndarray], path: str) -> np.ndarray:
  """The tensor that `convert` makes `array` of, told by where every element ends."""
  places = np.arange(array.size).reshape(array.shape)
  for order in _ORDERS.get(array.ndim, (tuple(range(array.ndim)),)):
    read = convert(places.transpose(order))
    if read.shape == places.shape and np.array_equal(read, places):
      return np.ascontiguousarray(array.transpose(order))
  raise AssertionError(f"no order of axes of {path} {array.shape} is read back")
