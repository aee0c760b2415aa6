"""The data of a run: its splits, the images that are used of them, and the test sets."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from subtune_jax import data
from subtune_jax.data import dataset, shifts, splits

_NOT_ALLOWED = np.float32(-1e30)  # a logit; finite, as the report's reader asks


def load_data(
  config: Any,
) -> tuple[data.Dataset, data.Dataset, data.Dataset | None, np.ndarray | None]:
  """(train, validation and trainval split, indices of the images that are used of the first)."""
  train, validation = (load_split(config, config.data.train, s) for s in ("train", "validation"))
  trainval = load_split(config, config.data.train, "trainval") if config.data.retrain else None
  for name in config.data.ood:  # read last, but found missing now
    data.require(name)
  indices = train_indices(config, train)
  if indices is not None:
    if trainval:  # train comes first in it
      rest = np.arange(len(train), len(trainval))
      trainval = trainval.subset(np.concatenate([indices, rest]))
    train = train.subset(indices)
  return train, validation, trainval, indices


def train_indices(config: Any, train: data.Dataset) -> np.ndarray | None:
  """Sorted positions of the nested subset of `data.num_train` images; None for all."""
  number = config.data.num_train
  if not 0 <= number <= len(train):
    raise ValueError(
      f"data.num_train is {number}; {train.name} has {len(train)} training images: give 1 to "
      f"{len(train)}, or 0 for all"
    )
  if not number:
    return None
  return splits.nested_subsets(train.labels, [number], config.data.subset_seed, train.groups)[0]


def load_split(config: Any, name: str, split: str) -> data.Dataset:
  """A split of a data set, resized as the config says."""
  size, interpolation = config.data.image_size, config.data.interpolation
  loaded = data.load(name, split, size, interpolation=interpolation)
  flip = config.data.flip_labels and name == config.data.train
  return dataset.flip_labels(loaded) if flip else loaded


def test_sets(config: Any, class_names: tuple[str, ...]) -> Iterator[data.Dataset]:
  """The test splits, in the head's classes."""
  yield load_split(config, config.data.train, "test")
  for name in config.data.ood:
    test = load_split(config, name, "test")
    base = data.base_name(name)
    if config.data.shift and base != config.data.train:
      test = shift_of(config).map_labels(base, test, class_names)
    yield test


def masked(config: Any, test: data.Dataset, logits: np.ndarray) -> np.ndarray:
  """The logits, with classes that the benchmark does not allow on this set out of reach."""
  base = data.base_name(test.name)
  if not config.data.shift or base == config.data.train:
    return logits
  mask = shift_of(config).class_mask(base, test.labels, logits.shape[-1])
  return logits if mask is None else np.where(mask, logits, _NOT_ALLOWED)


def shift_of(config: Any) -> shifts.Shift:
  return shifts.SHIFTS[config.data.shift]
