"""The target domain of a study of holistic transfer: its splits, its classes, and some of them."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from subtune_jax import data
from subtune_jax.calibration import class_splits
from subtune_jax.data import dataset, registry, splits
from subtune_jax.training import batches
from subtune_jax.training import prefix as prefix_lib


@dataclasses.dataclass(frozen=True)
class Target:
  """The target domain, in the classes that occur in it.

  Attributes:
    train: of all classes; trainings get those of some, see `select`.
    validation: likewise.
    test: read for test numbers alone.
    columns: [C] positions of its classes among those of the data set as loaded.
    all_names: of those.
  """

  train: data.Dataset
  validation: data.Dataset
  test: data.Dataset
  columns: np.ndarray
  all_names: tuple[str, ...]


def load_target(config: Any) -> Target:
  """Loads the target and drops classes that occur nowhere in it, as 800 of ImageNet-R's 1,000.

  A set that lacks splits is divided by `holistic.target_split`, each class likewise.
  """
  parts = _splits(config)
  labels = np.concatenate([part.labels for part in parts])
  columns = np.unique(labels)
  if len(columns) < 3:
    raise ValueError(
      f"{config.data.train} has images of {len(columns)} classes; two seen ones and an absent one "
      "are needed"
    )
  return Target(*(_renumbered(part, columns) for part in parts), columns, parts[0].class_names)


def _splits(config: Any) -> list[data.Dataset]:
  """Train, validation and test."""
  name, size = config.data.train, config.data.image_size
  there = registry.splits_of(name)

  def load(split: str) -> data.Dataset:
    return data.load(name, split, size, interpolation=config.data.interpolation)

  if {"train", "validation", "test"} <= set(there):
    return [load(split) for split in ("train", "validation", "test")]
  shares = tuple(config.holistic.target_split)
  if len(shares) != 3 or min(shares) < 1:
    raise ValueError(f"holistic.target_split is {shares}; give three positive integers")
  if {"train", "test"} <= set(there):
    return [*_divided(load("train"), shares[:2]), load("test")]
  return _divided(load(there[-1]), shares)


def _divided(whole: data.Dataset, shares: tuple[int, ...]) -> list[data.Dataset]:
  rows = splits.share_indices(whole.labels, whole.groups, shares, 0)
  names = ("train", "validation", "test")
  return [
    dataclasses.replace(whole.subset(own), split=name)
    for own, name in zip(rows, names[: len(shares)], strict=True)
  ]


def _renumbered(part: data.Dataset, columns: np.ndarray) -> data.Dataset:
  if len(columns) == len(part.class_names):
    return part
  names = tuple(part.class_names[c] for c in columns)
  labels = np.searchsorted(columns, part.labels).astype(np.int32)
  return dataclasses.replace(part, labels=labels, class_names=names)


@dataclasses.dataclass(frozen=True, eq=False)
class Selected(prefix_lib.Rows):
  """Training images of some classes; all trainings share the images on the devices.

  So the compiled step does not depend on which classes these are. The labels of the images that are
  not selected are out of reach: `all_labels` has a selected one in their place.

  Attributes:
    content: the selected images as a data set of their own.
    columns: name -> [N, ...] of the whole set, for a penalty.
  """

  content: data.Dataset = None
  columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  @property
  def class_names(self) -> tuple[str, ...]:
    """Of all classes."""
    return self.content.class_names

  def fingerprint(self) -> str:
    """Of the selected images and labels alone."""
    return self.content.fingerprint()


def select(
  prefix: prefix_lib.Prefix,
  train: dataset.Dataset,
  classes: np.ndarray,
  columns: Mapping[str, np.ndarray] = batches.NO_COLUMNS,
) -> Selected:
  """The images of `train`, on which `prefix` is, whose class is in the mask `classes` [C]."""
  rows = class_splits.rows_of(train.labels, classes)
  require(rows, train, classes)
  labels = np.full_like(train.labels, train.labels[rows[0]])
  labels[rows] = train.labels[rows]
  return Selected(prefix, labels, rows, train.subset(rows), columns)


def subset(part: dataset.Dataset, classes: np.ndarray) -> dataset.Dataset:
  """The examples whose class is in the mask `classes` [C]."""
  rows = class_splits.rows_of(part.labels, classes)
  require(rows, part, classes)
  return part.subset(rows)


def require(rows: np.ndarray, part: dataset.Dataset, classes: np.ndarray) -> None:
  """Raises ValueError where no example is left."""
  if not rows.size:
    names = [part.class_names[c] for c in np.flatnonzero(classes)[:5]]
    raise ValueError(
      f"{part.name}, split {part.split!r}, has no image of the classes {names}; choose more seen "
      "classes or another seed"
    )
