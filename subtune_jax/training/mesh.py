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
  if is_local(mesh):
    return jax.tree.map(lambda x: jax.device_put(x, replicated(mesh), may_alias=False), tree)
  return jax.tree.map(lambda x: _spread(x, replicated(mesh), copy=True), tree)


def is_local(mesh: jax.sharding.Mesh) -> bool:
  """Whether all devices are this process's own."""
  return replicated(mesh).is_fully_addressable


def place(tree: Any, sharding: jax.sharding.NamedSharding) -> Any:
  """`jax.device_put`, also to devices of several processes, each of which has the same values."""
  if sharding.is_fully_addressable:
    return jax.device_put(tree, sharding)
  return jax.tree.map(lambda x: _spread(x, sharding, copy=False), tree)


def take(x: Any, rows: np.ndarray, mesh: jax.sharding.Mesh) -> jax.Array:
  """The rows [n] of `x`, split over the devices; a process reads those of its own devices alone.

  Args:
    x: an array, on the host or the devices, or lazy images.
    rows: positions; one that comes several times is read once.
    mesh: the devices; their number divides n.
  """
  sharding, shape = split(mesh), (len(rows), *x.shape[1:])
  if isinstance(x, jax.Array):
    return place(x[rows], sharding)
  places: Any = sharding.addressable_devices_indices_map(shape[:1]).values()
  own = np.concatenate([rows[at] for (at,) in sorted(places, key=lambda at: at[0].start or 0)])
  read, again = np.unique(own, return_inverse=True)
  values = np.asarray(x[own]) if len(read) == len(own) else np.asarray(x[read])[again]
  return jax.make_array_from_process_local_data(sharding, values, shape)


def _spread(x: Any, sharding: jax.sharding.NamedSharding, *, copy: bool) -> jax.Array:
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return jax.device_put(x, sharding, may_alias=False if copy else None)
  host = np.array(x) if copy else np.asarray(x)
  return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)


def check_batch_size(batch_size: int, mesh: jax.sharding.Mesh, parts: int = 1) -> None:
  """Raises ValueError where a batch, or each of its parts, does not split over the devices."""
  n = mesh.size * parts
  if batch_size < 1 or batch_size % n:
    near = sorted({max(n, batch_size // n * n), (batch_size // n + 1) * n})
    raise ValueError(
      f"batch size {batch_size} does not split over {mesh.size} devices"
      f"{f' in {parts} parts (accumulate)' if parts > 1 else ''}; take a multiple of {n}, "
      f"e.g. {' or '.join(map(str, near))}"
    )
