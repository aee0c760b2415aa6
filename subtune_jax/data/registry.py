"""The data sets by name.

A data set is a loader: a function `(split, image_size, *, interpolation) -> Dataset`. One that
reads its files through a heavy library imports that library inside the function.
"""

from collections.abc import Callable
import functools

from subtune_jax.data import choices, dataset, emoji_domains

SPLITS = ("train", "validation", "test")

Loader = Callable[..., dataset.Dataset]

_LOADERS: dict[str, Loader] = {
  f"emoji_domains/{domain}": functools.partial(emoji_domains.load, domain)
  for domain in emoji_domains.DOMAINS
}


_ATTRIBUTION = {
  f"emoji_domains/{domain}": text for domain, text in emoji_domains.ATTRIBUTION.items()
}


def attribution(name: str) -> str:
  """Returns whose images a data set holds and under which licence; "" where nobody asks for it."""
  return _ATTRIBUTION.get(name, "")


def names() -> tuple[str, ...]:
  """Returns the names that `load` takes, sorted."""
  return tuple(sorted(_LOADERS))


def register(name: str, loader: Loader) -> None:
  """Adds a data set.

  Args:
    name: the name that `load` will take.
    loader: `(split, image_size, *, interpolation) -> Dataset`, called when the data is asked for.

  Raises:
    ValueError: the name is taken.
  """
  if name in _LOADERS:
    raise ValueError(f"The data set {name!r} exists already; choose another name.")
  _LOADERS[name] = loader


def load(
  name: str, split: str, image_size: int, *, interpolation: str = "bicubic"
) -> dataset.Dataset:
  """Loads one split of a data set into memory.

  Args:
    name: one of `names()`, such as "emoji_domains/noto".
    split: "train", "validation" or "test".
    image_size: height and width of the images, in pixels.
    interpolation: how images of another size are resized, "bicubic" or "bilinear".

  Returns:
    A `Dataset` with images [n, image_size, image_size, 3], always in the same order.

  Raises:
    FileNotFoundError: the data set's files are missing.
    ValueError: an unknown name (the error has the nearest ones), split or interpolation, an image
      size that is not a positive integer, or damaged files.
  """
  choices.check("data set", name, names())
  choices.check("split", split, SPLITS)
  return _LOADERS[name](split, image_size, interpolation=interpolation)
