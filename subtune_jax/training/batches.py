"""Where a training's batches come from: resident on the devices, or streamed from the host.

A set that fits is copied to the devices once and each step picks its rows there. A larger one, or
one whose images are decoded on demand, streams: a background thread reads the next batches while
the devices compute. Both see the same examples in the same order, a function of seed, stage and
epoch, so that a resumed run sees the batches that an uninterrupted one would have seen.
"""

from collections.abc import Iterator, Mapping
import types
from typing import Any, NamedTuple

import jax
import numpy as np

from subtune_jax.data import lazy
from subtune_jax.training import mesh as mesh_lib

NO_COLUMNS: Mapping[str, np.ndarray] = types.MappingProxyType({})


class Source(NamedTuple):
  """The training set of one stage.

  Attributes:
    x: [n, ...]: images, or cached activations.
    labels: [n] int32.
    streamed: whether batches come from the host.
    columns: name -> [n, ...]: what a penalty reads of each example.
  """

  x: Any
  labels: np.ndarray
  streamed: bool
  columns: Mapping[str, np.ndarray] = NO_COLUMNS


def balanced_order(
  seed: int, stage: int, epoch: int, labels: np.ndarray, batch_size: int, steps: int
) -> np.ndarray:
  """[steps, batch] indices of one epoch in which every class that occurs comes equally often.

  Of m indices and C classes each class gets m // C, and classes drawn anew for the epoch get one
  of the rest. A class runs through its images in a random order, again and again where it has fewer
  than that.

  Args:
    seed: of the training.
    stage: of the method.
    epoch: of the stage.
    labels: [n] integers of the training set.
    batch_size: examples per step.
    steps: of the epoch.
  """
  generator = np.random.default_rng([seed, stage, epoch])
  classes = generator.permutation(np.unique(labels))
  number, rest = divmod(steps * batch_size, len(classes))
  rows = []
  for place, own in enumerate(classes):
    of_class, wanted = np.flatnonzero(labels == own), number + (place < rest)
    passes = [generator.permutation(of_class) for _ in range(-(-wanted // len(of_class)))]
    rows.append(np.concatenate([*passes, of_class[:0]])[:wanted])
  order = generator.permutation(np.concatenate(rows))
  return order.reshape(steps, batch_size).astype(np.int32)


def choose(
  x: Any, labels: Any, resident_bytes: int, columns: Mapping[str, np.ndarray] = NO_COLUMNS
) -> Source:
  """A source that is resident where `x` is an array of at most `resident_bytes`."""
  labels = np.asarray(labels, np.int32)
  lazy_rows = isinstance(x, lazy.LazyImages)
  return Source(x, labels, lazy_rows or x.nbytes > resident_bytes, columns)


def resident(source: Source, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
  """The whole set, on every device."""
  data = {"x": np.asarray(source.x) if isinstance(source.x, np.memmap) else source.x}
  data |= {"labels": source.labels, **source.columns}
  return mesh_lib.place(data, mesh_lib.replicated(mesh))


def one(source: Source, indices: np.ndarray, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
  """One streamed batch, split over the devices; a process reads the rows of its own devices."""
  ids = np.asarray(indices, np.int32)
  columns = {"x": source.x, "labels": source.labels, **source.columns}
  batch = {name: mesh_lib.take(values, ids, mesh) for name, values in columns.items()}
  return batch | {"ids": mesh_lib.place(ids, mesh_lib.split(mesh))}


def stream(
  source: Source, order: np.ndarray, mesh: jax.sharding.Mesh, depth: int = 2
) -> lazy.Prefetch:
  """The batches of `order` [steps, batch], read ahead; use it in a `with`."""

  def batches() -> Iterator[Mapping[str, jax.Array]]:
    for indices in order:
      yield one(source, indices, mesh)

  return lazy.prefetch(batches(), depth)
