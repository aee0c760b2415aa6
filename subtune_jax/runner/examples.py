"""The data of a run: its splits, the images that are used of them, and the test sets."""

from typing import Any

import numpy as np

from subtune_jax import data
from subtune_jax.data import classes, dataset, shifts, splits

_NOT_ALLOWED = np.float32(-1e30)  # a logit; finite, as the report's reader asks


def load_data(
  config: Any,
) -> tuple[data.Dataset, data.Dataset, data.Dataset | None, np.ndarray | None]:
  """(train, validation and trainval split, indices of the images that are used of the first)."""
  train, validation = (load_split(config, config.data.train, s) for s in ("train", "validation"))
  trainval = load_split(config, config.data.train, "trainval") if config.data.retrain else None
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


def load_tests(
  config: Any, class_names: tuple[str, ...]
) -> tuple[tuple[data.Dataset, ...], list[str]]:
  """The test sets in the head's classes, that of `data.train` first.

  A further set is read whole, unless it gives splits or holds the images of `data.train`.

  Args:
    config: of a comparison, or of anything with its section `data`.
    class_names: of the head.

  Returns:
    The sets, and what to say of how their classes were matched.

  Raises:
    ValueError: a set has a class that the head lacks and `data.label_map` does not name, or the map
      names one that no set has.
  """
  for name in config.data.ood:  # all, before any of them is read
    data.require(name)
  tests, notes = [load_split(config, config.data.train, "test")], []
  trained = _images_of(config.data.train)
  others = [
    load_split(config, name, "test" if _images_of(name) == trained else data.tested_split(name))
    for name in config.data.ood
  ]
  named = list(zip(config.data.ood, others, strict=True))
  matched = [test for name, test in named if _images_of(name) != trained]
  pairs = classes.parse(config.data.label_map, class_names, matched)
  for name, test in named:
    base = data.base_name(name)
    if config.data.shift and base != config.data.train:
      test = shift_of(config).map_labels(base, test, class_names)
    elif _images_of(name) != trained:
      test, own = classes.by_name(test, class_names, pairs)
      notes += own
    _class_mask(config, test, len(class_names))
    tests.append(test)
  names = [test.name for test in tests]
  if len(set(names)) < len(names):
    raise ValueError(f"test sets have one name: {', '.join(names)}; give each loader's set its own")
  return tuple(tests), notes


def masked(config: Any, test: data.Dataset, logits: np.ndarray) -> np.ndarray:
  """The logits, with classes that the benchmark does not allow on this set out of reach."""
  mask = _class_mask(config, test, logits.shape[-1])
  return logits if mask is None else np.where(mask, logits, _NOT_ALLOWED)


def _images_of(name: str) -> str:
  """The data set whose images a set holds, as they are or corrupted."""
  return data.base_name(data.canonical(name))


def _class_mask(config: Any, test: data.Dataset, num_classes: int) -> np.ndarray | None:
  base = data.base_name(test.name)
  if not config.data.shift or base == config.data.train:
    return None
  return shift_of(config).class_mask(base, test.labels, num_classes)


def shift_of(config: Any) -> shifts.Shift:
  return shifts.SHIFTS[config.data.shift]
