"""One mesh over all devices: batches are split over its "data" axis, the rest is replicated."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

DATA_AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
  """A mesh of `devices`, all of them by default."""
  devices = jax.devices() if devices is None else list(devices)
  return jax.sharding.Mesh(np.asarray(devices), (DATA_AXIS,))


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """The sharding that puts a whole array on every device."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def split(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """The sharding that splits the first axis over the devices."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(DATA_AXIS))


def put(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """Copies a tree of arrays to every device; the result never aliases the input's buffers."""
  return jax.tree.map(lambda x: jax.device_put(x, replicated(mesh), may_alias=False), tree)


def check_batch_size(batch_size: int, mesh: jax.sharding.Mesh) -> None:
  """Raises ValueError where the batch cannot be split evenly over the devices."""
  n = mesh.size
  if batch_size < 1 or batch_size % n:
    near = sorted({max(n, batch_size // n * n), (batch_size // n + 1) * n})
    raise ValueError(
      f"batch size {batch_size} does not split over {n} devices; take a multiple of {n}, "
      f"e.g. {' or '.join(map(str, near))}"
    )
