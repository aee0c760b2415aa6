"""What stands behind the colon of --config=file.py:..., and what it sets."""

from collections.abc import Iterable, Mapping
import re

import ml_collections

from subtune_jax import data, methods, models
from subtune_jax.data import choices, shifts
from subtune_jax.runner import recipes


def parse_argument(argument: str, allowed: tuple[str, ...]) -> dict[str, str]:
  """The "key=value,key=value" behind the colon of --config=file.py:...

  Raises:
    ValueError: a key that is not allowed or is given twice, or a part without "=".
  """
  given: dict[str, str] = {}
  for part in filter(None, argument.split(",")):
    key, equals, value = part.partition("=")
    if not equals or not value:
      raise ValueError(
        f"config argument {part!r} is not of the form key=value; a value that holds a comma goes "
        "into its field, such as --config.data.train=..."
      )
    if key not in allowed or key in given:
      problem = "is given twice" if key in given else "is unknown"
      raise ValueError(
        f"config argument {key!r} {problem}; allowed, once each: {', '.join(allowed)}"
      )
    given[key] = value
  return given


def joined(text: str, beginnings: Iterable[str]) -> tuple[str, ...]:
  """The names in "a+b"; a plus sign before anything but one of `beginnings` belongs to a name."""
  ends = "|".join(map(re.escape, beginnings))
  return tuple(filter(None, re.split(rf"\+(?={ends})", text)))


def integer(name: str, text: str) -> int:
  """A positive integer from the command line."""
  if not text.isdecimal() or int(text) < 1:
    raise ValueError(f"{name} is {text!r}; give a positive integer")
  return int(text)


def use_method(config: ml_collections.ConfigDict, name: str) -> None:
  """Runs one method, with its full grid of learning rates."""
  recipes.check_method(name)
  config.methods, config.title = (name,), methods.DECLARED[name].title
  use_full_grids(config, (name,))


def use_full_grids(config: ml_collections.ConfigDict, names: Iterable[str]) -> None:
  """Tries the declared learning rates, over decades, of the methods that take gradient steps."""
  for name in names:
    if methods.DECLARED[name].gradient is not None:
      config[name].learning_rates = methods.DECLARED[name].grid


def use_dataset(config: ml_collections.ConfigDict, name: str) -> None:
  """Trains on `name`; of a set that is shipped, its other domains are out of distribution."""
  family = name.partition("/")[0] + "/"
  shipped = family in ("emoji_domains/", "glyph_domains/")
  config.data.train = name
  config.data.ood = tuple(
    other for other in data.names() if shipped and other.startswith(family) and other != name
  )


def use_blocks_from(config: ml_collections.ConfigDict, names: Iterable[str], first: str) -> None:
  """Trains the blocks of the config's backbone from `first` on, by each of the named methods."""
  blocks = models.create(config.backbone.name, num_classes=2).block_names
  choices.check("first block", first, blocks)
  for name in names:
    config[name].blocks = blocks[blocks.index(first) :]


def check_weights(given: Mapping[str, str]) -> None:
  """Raises ValueError where arguments give one of backbone and weights alone."""
  if ("backbone" in given) != ("weights" in given):
    raise ValueError(
      "give backbone and weights together, such as backbone=vit_b16,weights=vit_b16/augreg-in21k"
    )


def use_network(config: ml_collections.ConfigDict, given: Mapping[str, str]) -> None:
  """Backbone, weights, preprocessing and image size, where arguments give them."""
  for field, key in (("name", "backbone"), ("weights", "weights"),
                     ("preprocessing", "preprocessing")):  # fmt: skip
    config.backbone[field] = given.get(key, config.backbone[field])
  if "image_size" in given:
    config.data.image_size = integer("image_size", given["image_size"])


def use_shift(config: ml_collections.ConfigDict, name: str) -> None:
  """Trains on the source of a shift benchmark and tests on all of its shifted sets."""
  choices.check("shift", name, shifts.SHIFTS)
  shift = shifts.SHIFTS[name]
  config.data.shift = name
  config.data.train, config.data.ood = shift.id_data, shift.ood_data
