"""A small backbone with the interface of `subtune_jax.models`, and data that it can learn."""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.data import preprocess
from subtune_jax.training import loop
from subtune_jax.training import mesh as mesh_lib

PREPROCESSING = preprocess.Preprocessing(mean=(127.0,), std=(64.0,))


class Block(nn.Module):
  features: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x, use_batch_statistics):
    x = nn.Conv(self.features, (3, 3), strides=(2, 2), use_bias=False, dtype=self.dtype,
                name="conv")(x)  # fmt: skip
    x = nn.BatchNorm(use_running_average=not use_batch_statistics, momentum=0.9, dtype=self.dtype,
                     name="bn")(x)  # fmt: skip
    return nn.relu(x)


class Tiny(nn.Module):
  num_classes: int = 3
  depth: int = 3
  dtype: Any = None  # of the computation; None is that of the arguments

  @property
  def block_names(self):
    return tuple(f"block{i}" for i in range(self.depth))

  @nn.compact
  def __call__(self, x, *, start=None, stop=None, train_blocks=frozenset()):
    units = (*self.block_names, "head")
    first = units.index(start) if start else 0
    last = units.index(stop) if stop else len(units)
    for name in units[first:last]:
      if name == "head":
        x = nn.Dense(self.num_classes, name="head")(jnp.asarray(x, jnp.float32))
      else:
        x = Block(4 + 2 * int(name[-1]), self.dtype, name=name)(x, name in train_blocks)
        if name == self.block_names[-1]:
          x = jnp.mean(x, axis=(1, 2))
    return x


def make(seed: int = 0, **fields):
  """(model, variables); running statistics are not the initial ones."""
  model = Tiny(**fields)
  return model, jax.tree.map(jnp.asarray, _variables(model, seed))


@functools.cache
def _variables(model, seed):
  variables = model.init(jax.random.key(seed), jnp.zeros((1, 16, 16, 3)))
  stats = jax.tree.map(
    lambda x: x + 0.1 * jax.random.uniform(jax.random.key(1), x.shape), variables["batch_stats"]
  )
  return jax.device_get({"params": variables["params"], "batch_stats": stats})


def examples(n: int = 24, seed: int = 0, num_classes: int = 3) -> loop.Examples:
  """Images whose mean colour tells the class."""
  rng = np.random.default_rng(seed)
  labels = (np.arange(n) % num_classes).astype(np.int32)
  images = rng.integers(0, 160, (n, 16, 16, 3))
  images[np.arange(n), :, :, labels % 3] += 60
  return loop.Examples(images.astype(np.uint8), labels)


def one_device():
  return mesh_lib.make_mesh(jax.devices()[:1])


def engine(model, **fields) -> loop.Engine:
  """Batches of 8 on one device."""
  return loop.Engine(model, PREPROCESSING, **{"mesh": one_device(), "batch_size": 8, **fields})
