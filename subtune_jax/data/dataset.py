"""A labelled set of images: in memory, memory-mapped, or decoded on demand."""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import json
from typing import Any

import numpy as np

from subtune_jax.data import lazy


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """Images and labels as arrays, checked when made, read-only afterwards.

  Attributes:
    images: [n, height, width, 3] uint8, RGB; an array, a memory-mapped one, or `lazy.LazyImages`.
    labels: [n] int32, positions in `class_names`.
    groups: [n] str. Examples of one group are variants of one thing: folds keep a group whole and
      bootstraps resample groups.
    ids: [n] str, the name of each example at its source.
    class_names: one name per class.
    name: the name in the registry, such as "emoji_domains/noto".
    split: "train", "validation", "trainval" or "test"; "whole" is all images of a folder.

  Raises:
    ValueError: on making one whose fields do not fit the above or each other.
  """

  images: np.ndarray | lazy.LazyImages
  labels: np.ndarray
  groups: np.ndarray
  ids: np.ndarray
  class_names: tuple[str, ...]
  name: str
  split: str

  def __post_init__(self):
    _check_images(self)
    _check_columns(self)
    _check_classes(self)
    for field in ("images", "labels", "groups", "ids"):
      if isinstance(getattr(self, field), lazy.LazyImages):
        continue
      view = getattr(self, field).view()
      view.flags.writeable = False
      object.__setattr__(self, field, view)

  def __len__(self) -> int:
    return len(self.images)

  def subset(self, indices: Sequence[int] | np.ndarray) -> "Dataset":
    """Returns the examples at `indices` ([m] integers in 0..n-1, repeats allowed), in that order.

    Lazy images stay lazy; of a memory-mapped array, the rows are copied into memory.

    Raises:
      ValueError: no index, an index out of range, or not a vector of integers.
    """
    indices = np.asarray(indices)
    if indices.ndim != 1 or indices.size == 0 or indices.dtype.kind not in "iu":
      raise ValueError(
        f"{self._where}: indices must be a vector of at least one integer, got shape "
        f"{indices.shape} and dtype {indices.dtype}. For a mask, pass np.flatnonzero(mask)."
      )
    outside = indices[(indices < 0) | (indices >= len(self))]
    if outside.size:
      raise ValueError(
        f"{self._where}: index {outside[0]} is out of range; allowed: 0 to {len(self) - 1}."
      )
    is_lazy = isinstance(self.images, lazy.LazyImages)
    return dataclasses.replace(
      self,
      images=self.images.take(indices) if is_lazy else self.images[indices],
      labels=self.labels[indices],
      groups=self.groups[indices],
      ids=self.ids[indices],
    )

  def in_memory(self) -> "Dataset":
    """Returns the same set, with the same fingerprint, that reads no file any more."""
    images = self.images
    images = images.decoded() if isinstance(images, lazy.LazyImages) else np.asarray(images)
    made = dataclasses.replace(self, images=images)
    made.__dict__["_fingerprint"] = self._fingerprint
    return made

  def fingerprint(self) -> str:
    """Returns the SHA-256 (hex) of the content: images, labels, groups, ids, class names, in order.

    `name` and `split` are left out: the same content under another name is the same data. The
    value does not depend on the machine's byte order or on the width of the string arrays.

    Of lazy images it covers the stamps of their sources instead of the pixels: for files, the size
    and time of modification. So it differs from the fingerprint of the same images in memory, and
    a file changed without a trace in either is not noticed.
    """
    return self._fingerprint

  @functools.cached_property
  def _fingerprint(self) -> str:
    header = {
      "shape": self.images.shape,
      "groups": self.groups.tolist(),
      "ids": self.ids.tolist(),
      "class_names": self.class_names,
    }
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(self.labels, dtype="<i4").data)
    if isinstance(self.images, lazy.LazyImages):
      digest.update(self.images.fingerprint().encode())
    else:
      digest.update(np.ascontiguousarray(self.images).data)
    return digest.hexdigest()

  @property
  def _where(self) -> str:
    return f"Dataset {self.name!r}, split {self.split!r}"


def concatenate(parts: Sequence[Dataset], split: str) -> Dataset:
  """Returns the examples of several splits of one data set, one split after the other.

  Args:
    parts: of one name, with the same class names and images in memory of one size.
    split: name of the result.

  Raises:
    ValueError: parts that are not of one data set.
  """
  first = parts[0]
  for part in parts[1:]:
    if (part.name, part.class_names) != (first.name, first.class_names):
      raise ValueError(
        f"{part._where} and {first._where} cannot be joined: their names or classes differ."
      )
  columns: dict[str, Any] = {
    field: np.concatenate([getattr(part, field) for part in parts])
    for field in ("images", "labels", "groups", "ids")
  }
  return dataclasses.replace(first, split=split, **columns)


def flip_labels(data: Dataset) -> Dataset:
  """Returns the examples with class c called num_classes - 1 - c.

  The output-level shift of "Surgical fine-tuning" (Lee et al. 2023): the images do not change.
  """
  return dataclasses.replace(data, labels=len(data.class_names) - 1 - data.labels)


def _check_images(data: Dataset) -> None:
  images = data.images
  if not isinstance(images, np.ndarray | lazy.LazyImages) or images.dtype != np.uint8:
    raise ValueError(
      f"{data._where}: images must be a uint8 array of values 0 to 255, got {_describe(images)}."
    )
  if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
    raise ValueError(
      f"{data._where}: images must have the shape [n, height, width, 3] with at least one image, "
      f"got {images.shape}."
    )


def _check_columns(data: Dataset) -> None:
  for field, wanted in (("labels", np.int32), ("groups", np.str_), ("ids", np.str_)):
    column = getattr(data, field)
    if not isinstance(column, np.ndarray) or not np.issubdtype(column.dtype, wanted):
      raise ValueError(
        f"{data._where}: {field} must be a NumPy array of {wanted.__name__}, "
        f"got {_describe(column)}."
      )
    if column.shape != (len(data.images),):
      raise ValueError(
        f"{data._where}: {field} must have one value per image, shape ({len(data.images)},), "
        f"got {column.shape}."
      )


def _check_classes(data: Dataset) -> None:
  names = data.class_names
  if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
    raise ValueError(f"{data._where}: class_names must be a tuple of str, got {names!r}.")
  repeated = sorted({name for name in names if names.count(name) > 1})
  if repeated:
    raise ValueError(f"{data._where}: class_names must differ, repeated: {repeated}.")
  outside = np.flatnonzero((data.labels < 0) | (data.labels >= len(names)))
  if outside.size:
    first = outside[0]
    raise ValueError(
      f"{data._where}: label {data.labels[first]} of {str(data.ids[first])!r} (index {first}) is "
      f"out of range; allowed: 0 to {len(names) - 1}, for {len(names)} class names."
    )


def _describe(value: object) -> str:
  if isinstance(value, np.ndarray):
    return f"an array of {value.dtype}"
  return f"a {type(value).__name__}"
