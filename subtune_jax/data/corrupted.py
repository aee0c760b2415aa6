"""Corrupted copies of any data set: "NAME+corruption/severity", such as "emoji_domains/noto+fog/3".

The corruptions are those of `subtune_jax.data.corruptions`, 15 of them at severities 1 to 5. Images
are corrupted at the size that they are loaded in: up to 64 pixels with the parameters of CIFAR-10-C
(made for 32), above with those of ImageNet-C (made for 224). An image's noise depends on the name
of the data set, the split and its position there, so that it is the same in every run, in every
subset, and, in its draws, at every severity.

Sets that `cache.fits` are corrupted once into the cache; larger and lazy ones on demand.
"""

from collections.abc import Iterator
import dataclasses
import functools
import hashlib
import os
from typing import Any, NamedTuple

import numpy as np

from subtune_jax.data import cache, choices, corruptions, dataset, folder, lazy

VERSION = 1  # Of the pixels; raise it when the same name would give others.
SMALL = 64  # pixels: the largest images that CIFAR-10-C's parameters are used for
EXAMPLE = "emoji_domains/noto+fog/3"
_SMALLEST = 16
_BLOCK = 64  # images corrupted at a time into the cache


class Corrupted(NamedTuple):
  """A corrupted name, taken apart.

  Attributes:
    base: name of the data set whose images are corrupted.
    corruption: of `corruptions.NAMES`.
    severity: 1 to 5.
  """

  base: str
  corruption: str
  severity: int


def parse(name: object) -> Corrupted | None:
  """Returns the parts of a corrupted name; None for a name that asks for no corruption.

  What follows the last "+" is the corruption; a folder that is there by its whole name is that
  folder.

  Raises:
    ValueError: an unknown corruption or severity.
  """
  if not isinstance(name, str) or "+" not in name:
    return None
  base, _, given = name.rpartition("+")
  if folder.is_name(name) and "?on_broken=" not in base and (given[:1] == "/" or is_folder(name)):
    return None
  corruption, _, severity = given.partition("/")
  choices.check(f"corruption in {name!r},", corruption, corruptions.NAMES)
  if severity not in map(str, corruptions.SEVERITIES):
    raise ValueError(
      f"Unknown severity {severity!r} in {name!r}. Allowed: {base}+{corruption}/1 to 5."
    )
  return Corrupted(base, corruption, int(severity))


def is_folder(name: str) -> bool:
  """Returns whether there is a folder of that name, "folder:" and a path."""
  path = os.path.expanduser(name.removeprefix(folder.PREFIX))
  return os.path.isdir(path) or os.path.isdir(path.rpartition("?")[0])


def table_for(image_size: int) -> str:
  """Returns whose parameters fit images of this size, a key of `corruptions.TABLES`."""
  return "cifar10_c" if image_size <= SMALL else "imagenet_c"


def apply(data: dataset.Dataset, corruption: str, severity: int) -> dataset.Dataset:
  """Returns a data set with every image corrupted; labels, groups and ids stay.

  Args:
    data: as loaded, all of one split, at least 16 pixels high and wide.
    corruption: of `corruptions.NAMES`.
    severity: 1 to 5.

  Raises:
    ValueError: images of less than 16 pixels.
  """
  n, size = data.images.shape[:2]
  if size < _SMALLEST:
    raise ValueError(
      f"{data.name}+{corruption}/{severity}: image_size={size} is too small for a corruption; "
      f"give {_SMALLEST} or more."
    )
  name, table = f"{data.name}+{corruption}/{severity}", table_for(size)
  images = data.images
  read = functools.partial(_read, images, corruption, severity, table, seed(data.name, data.split))
  if isinstance(images, lazy.LazyImages) or not cache.fits(n, images.shape[1:]):
    made: np.ndarray | lazy.LazyImages = _on_demand(data, read, [name, table, VERSION])
  else:
    key = {"name": name, "split": data.split, "image_size": size, "table": table}
    key |= {"of": data.fingerprint(), "version": VERSION}
    made = cache.images(key, lambda: _blocks(read, n), n, images.shape[1:])
  return dataclasses.replace(data, images=made, name=name)


def seed(name: str, split: str) -> int:
  """Returns the seed of a data set's noise; where a folder lies does not matter."""
  if folder.is_name(name):
    name = folder.PREFIX + os.path.basename(name.rstrip("/"))
  return int.from_bytes(hashlib.sha256(f"{name}/{split}".encode()).digest()[:6], "big")


def _read(
  images: Any, corruption: str, severity: int, table: str, noise: int, index: int
) -> np.ndarray:
  return corruptions.corrupt(
    np.asarray(images[index]), corruption, severity, table=table, seed=noise, index=index
  )


def _blocks(read: Any, n: int) -> Iterator[np.ndarray]:
  for begin in range(0, n, _BLOCK):
    yield np.stack(list(lazy.workers().map(read, range(begin, min(begin + _BLOCK, n)))))


def _on_demand(data: dataset.Dataset, read: Any, what: list[Any]) -> lazy.LazyImages:
  of = functools.cache(data.fingerprint)
  return lazy.LazyImages(
    range(len(data)), read, data.images.shape[1], lambda index: [*what, of(), index]
  )
