"""Naming schemes: which tensors of a file each variable of a model comes from."""

from collections.abc import Callable, Iterable
import dataclasses
from typing import NamedTuple

from flax import linen as nn
import numpy as np

from subtune_jax.data import preprocess

HEAD = ("params/head/kernel", "params/head/bias")


class Source(NamedTuple):
  """The tensors of a file that make one variable.

  Attributes:
    keys: their names in the file, prefix included.
    convert: from these tensors, as they lie in the file, to the variable. One with another number
      of axes than it expects is returned as it is; the caller compares the shape.
  """

  keys: tuple[str, ...]
  convert: Callable[..., np.ndarray]


def ordered(key: str, *axes: int) -> Source:
  """One tensor with its axes in another order; without `axes`, as it is."""

  def convert(tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(axes) if axes and tensor.ndim == len(axes) else tensor

  return Source((key,), convert)


class Dropped(NamedTuple):
  """Tensors that a scheme's files may hold and that no variable needs: all of them or none.

  Attributes:
    what: they are, for the log ("momentum encoder").
    keys: their exact names in the file.
  """

  what: str
  keys: frozenset[str]


def nothing_dropped(model: nn.Module, prefix: str, wanted: frozenset[str]) -> Iterable[Dropped]:
  """A scheme without an allow-list."""
  del model, prefix, wanted
  return ()


@dataclasses.dataclass(frozen=True)
class Scheme:
  """One way to name the tensors of a family of models.

  Attributes:
    title: for the log and for errors ("torchvision ResNet").
    family: the class of the models.
    source: (model, path, prefix) -> where the variable at `path` comes from, such as
      "params/block1/unit1/conv1/bn/scale"; `prefix` is what the names of the backbone's tensors
      begin with in this file. None for a variable that such files never hold (then it is an error
      for any variable but the head's).
    prefixes: that such files may have, the plain one first.
    dropped: (model, prefix, names of all wanted tensors) -> what may be left unread.
    preprocessing: of all weights in this scheme; None where it differs from file to file.
  """

  title: str
  family: type[nn.Module]
  source: Callable[[nn.Module, str, str], Source | None]
  prefixes: tuple[str, ...] = ("",)
  dropped: Callable[[nn.Module, str, frozenset[str]], Iterable[Dropped]] = nothing_dropped
  preprocessing: preprocess.Preprocessing | None = None


def counters(wanted: Iterable[str]) -> Dropped:
  """The batch counters that torch keeps beside BatchNorm's running statistics."""
  suffix = "running_var"
  keys = (key.removesuffix(suffix) for key in wanted if key.endswith(suffix))
  return Dropped("batch counters", frozenset(key + "num_batches_tracked" for key in keys))
