"""Activations of one set of images at any unit of a frozen network, computed once within a budget.

What comes before the first tuned block is the same for every training that starts there: whatever
the fold, the seed or the other blocks. So a search keeps it, on the devices or on disk.

Activations are computed a unit at a time from the nearest earlier ones that are kept. Each unit is
a program of its own and every row is computed in the same batch, so the numbers do not depend on
what was kept: a search that was killed goes on with the same bits.
"""

import dataclasses
import functools
import math
import os
import pathlib
import tempfile
from typing import Any

from absl import logging
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from subtune_jax.data import lazy, preprocess
from subtune_jax.training import evaluate, trainable_split
from subtune_jax.training import mesh as mesh_lib

PyTree = Any


@functools.partial(jax.jit, donate_argnums=0)
def _write(buffer: jax.Array, rows: jax.Array, begin: jax.Array) -> jax.Array:
  return lax.dynamic_update_slice_in_dim(buffer, rows, begin, axis=0)


class Prefix:
  """Activations of a set of images, by the unit that reads them.

  Args:
    model: a backbone.
    variables: its variables; they must not change.
    images: [n, h, w, 3] uint8, an array or lazy.
    preprocessing: the backbone's statistics.
    batch_size: rows at a time.
    mesh: the devices.
    memory_bytes: of activations on the devices; 0 keeps none. The images themselves are put there
      too, once, where they fit beside (`images_on_device`), and do not count.
    disk_bytes: of activations in a scratch folder, for what does not fit in memory; 0 keeps none.
    directory: where the scratch folder goes; the system's default when None.
  """

  def __init__(
    self,
    model: Any,
    variables: PyTree,
    images: Any,
    *,
    preprocessing: preprocess.Preprocessing,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    memory_bytes: int,
    disk_bytes: int = 0,
    directory: str | os.PathLike | None = None,
  ):
    self.model, self.images, self.preprocessing = model, images, preprocessing
    self.batch_size, self.mesh = -(-batch_size // mesh.size) * mesh.size, mesh
    self.variables = mesh_lib.place(variables, mesh_lib.replicated(mesh))
    self.memory_bytes, self.disk_bytes = memory_bytes, disk_bytes
    self.units = (*model.block_names, trainable_split.HEAD)
    self.peak_bytes = 0  # most bytes of activations on the devices at a time
    self.notes: dict[str, str] = {}  # unit -> why its activations are computed anew in every step
    self._kept: dict[str, jax.Array] = {}  # the least recently used first
    self._files: dict[str, np.memmap] = {}
    self._shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    self._folder = (
      tempfile.TemporaryDirectory(prefix="prefix-", dir=directory) if disk_bytes else None
    )
    self._resident: jax.Array | None = None

  def images_on_device(self) -> Any:
    """The images, on the devices where they are an array; lazy ones as they are."""
    if isinstance(self.images, lazy.LazyImages):
      return self.images
    if self._resident is None:
      self._resident = mesh_lib.place(np.asarray(self.images), mesh_lib.replicated(self.mesh))
    return self._resident

  def nbytes(self, unit: str) -> int:
    """What the activations that `unit` reads take, of all images."""
    shape, dtype = self._row(unit)
    return len(self.images) * math.prod(shape) * dtype.itemsize

  def at(self, unit: str) -> jax.Array | np.memmap | None:
    """What `unit` reads, [n, ...]; on the devices, in a file, or None where neither has room.

    None is also the answer for the first block, which reads images.
    """
    if unit == self.units[0]:
      return None
    if unit in self._kept:
      self._kept[unit] = self._kept.pop(unit)  # the most recently used
      return self._kept[unit]
    size = self.nbytes(unit)
    if size <= self.memory_bytes:
      self._make_room(size)
      made = self._on_device(unit)
      self._kept[unit] = made
      self.peak_bytes = max(self.peak_bytes, self.nbytes_kept)
      return made
    if size <= self.disk_bytes:
      return self._on_disk(unit)
    if unit not in self.notes:
      self.notes[unit] = (
        f"what comes before {unit} is run in every step: keeping it would take "
        f"{size / 1e9:.3g} GB, and {self.memory_bytes / 1e9:.3g} GB of memory and "
        f"{self.disk_bytes / 1e9:.3g} GB of disk are allowed"
      )
      logging.info("%s", self.notes[unit])
    return None

  @property
  def nbytes_kept(self) -> int:
    """Bytes of activations on the devices now."""
    return sum(x.nbytes for x in self._kept.values())

  def close(self) -> None:
    """Frees the memory and removes the files."""
    self._kept.clear()
    self._files.clear()
    self._resident = None
    if self._folder:
      self._folder.cleanup()

  def _make_room(self, size: int) -> None:
    while self._kept and self.nbytes_kept + size > self.memory_bytes:
      unit, array = next(iter(self._kept.items()))
      if self._disk_used() + array.nbytes <= self.disk_bytes and unit not in self._files:
        self._file(unit)[:] = np.asarray(array)
      del self._kept[unit]

  def _disk_used(self) -> int:
    return sum(x.nbytes for x in self._files.values())

  def _file(self, unit: str) -> np.memmap:
    shape, dtype = self._row(unit)
    assert self._folder is not None  # disk_bytes is above 0
    path = pathlib.Path(self._folder.name, unit.replace("/", "-"))
    self._files[unit] = np.memmap(path, dtype, "w+", shape=(len(self.images), *shape))
    return self._files[unit]

  def _on_disk(self, unit: str) -> np.memmap:
    if unit not in self._files:
      while self._files and self._disk_used() + self.nbytes(unit) > self.disk_bytes:
        self._files.pop(next(iter(self._files)))
      rows = self._file(unit)
      for begin, part in self._parts(unit):
        rows[begin : begin + len(part)] = np.asarray(part)
    return self._files[unit]

  def _on_device(self, unit: str) -> jax.Array:
    sharding = mesh_lib.replicated(self.mesh)
    if unit in self._files:
      return mesh_lib.place(np.asarray(self._files[unit]), sharding)
    shape, dtype = self._row(unit)
    empty = functools.partial(jnp.zeros, (len(self.images), *shape), dtype)
    buffer = jax.jit(empty, out_shardings=sharding)()
    for begin, part in self._parts(unit):
      buffer = _write(buffer, mesh_lib.place(part, sharding), begin)
    return buffer

  def _parts(self, unit: str):
    """(first row, activations that `unit` reads) of each batch."""
    start, source = self._nearest(unit)
    forward = evaluate.program_in_pieces(self.model, start, unit, self.preprocessing)
    begin = 0
    for batch, real in evaluate.batches(source, self.batch_size, mesh=self.mesh):
      x = forward(self.variables, batch)
      yield begin, x[:real]
      begin += real

  def _nearest(self, unit: str) -> tuple[str, Any]:
    """The last unit up to `unit` whose activations are there, and those; or the images."""
    for name in reversed(self.units[1 : self.units.index(unit) + 1]):
      if name in self._kept:
        return name, self._kept[name]
      if name in self._files and name != unit:
        return name, self._files[name]
    return self.units[0], self.images_on_device()

  def _row(self, unit: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of what `unit` reads of one image."""
    if unit not in self._shapes:
      image = jax.ShapeDtypeStruct((1, *self.images.shape[1:]), jnp.float32)
      apply = functools.partial(self.model.apply, stop=unit)
      out = jax.eval_shape(apply, self.variables, image)
      self._shapes[unit] = out.shape[1:], np.dtype(out.dtype)
    return self._shapes[unit]


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
  """Some examples of a set whose activations are shared between trainings; `loop.fit` takes it.

  Attributes:
    prefix: the activations of the whole set.
    all_labels: [N] labels of the whole set.
    rows: [n] positions of these examples in it.
  """

  prefix: Prefix
  all_labels: np.ndarray
  rows: np.ndarray

  @property
  def images(self) -> Any:
    """[n, h, w, 3] uint8."""
    images = self.prefix.images
    return images.take(self.rows) if isinstance(images, lazy.LazyImages) else images[self.rows]

  @property
  def labels(self) -> np.ndarray:
    """[n] integers."""
    return self.all_labels[self.rows]
