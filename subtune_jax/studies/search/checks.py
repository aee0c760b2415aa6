"""What the records of a search and of studies made of searches share, and how it is checked."""

from collections.abc import Mapping, Sequence
import itertools
import math
import pathlib
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
import numpy as np

from subtune_jax.studies import fields

Row = Mapping[str, Any]
Units = tuple[str, ...]


class Interval(TypedDict):  # of an accuracy; null on both sides where there is none
  low: fields.Fraction | None
  high: fields.Fraction | None


class Mean(Interval):
  mean: fields.Fraction


class OfUnit(Mean):  # a unit trained alone
  unit: str
  by_fold: list[fields.Fraction | None]  # null: not trained


class Tested(Interval):  # a method on test images
  title: str
  accuracy: fields.Fraction


class Unit(TypedDict):
  name: str
  blocks: list[str]
  params: int
  macs: float  # multiply-adds of an image


class FoldedData(fields.Data):
  train: str
  split: NotRequired[str]
  num_examples: int
  num_folds: Annotated[int, msgspec.Meta(ge=1)]
  fold_sizes: NotRequired[list[int]]
  fold_seed: NotRequired[int]
  seeds: NotRequired[list[int]]


class Probable(TypedDict):
  units: list[str]
  probability: fields.Fraction


class Certificate(TypedDict):
  """How sure it is that the chosen set is the best of those that were tried."""

  chosen: list[str]
  probability_best: fields.Fraction
  expected_regret: fields.Fraction  # of accuracy
  undecided: list[Probable]
  level: fields.Fraction  # of the probability that `undecided` has together
  text: str


def check_interval(entry: Row, where: str) -> None:
  """Raises unless both ends are there, or none."""
  low, high = entry["low"], entry["high"]
  if (low is None) != (high is None) or (low is not None and low > high):
    raise ValueError(f"{where}: the interval is [{low}, {high}]; low has to be at most high.")


def check_folds(entry: Row, num_folds: int, where: str) -> None:
  """Raises unless `by_fold` has an accuracy or null per fold, whose mean is that of the entry."""
  values = entry["by_fold"]
  if len(values) != num_folds:
    raise ValueError(
      f"{where}: by_fold has {len(values)} values, data.num_folds is {num_folds}; every fold needs "
      "one, null if it was not trained."
    )
  trained = [value for value in values if value is not None]
  if not trained:
    raise ValueError(f"{where}: by_fold is null in every fold; leave the entry out.")
  if not math.isclose(np.mean(trained), entry["mean"], rel_tol=0, abs_tol=1e-6):
    raise ValueError(
      f"{where}: mean is {entry['mean']:.6f}, that of its folds {np.mean(trained):.6f}."
    )
  check_interval(entry, where)


def check_units(names: Sequence[str], allowed: Sequence[str], where: str) -> None:
  """Raises unless `names` are units, each once and in the order of the network."""
  for name in names:
    fields.check_one_of(name, allowed, f"{where}: a unit")
  places = [allowed.index(name) for name in names]
  if any(a >= b for a, b in itertools.pairwise(places)):
    raise ValueError(
      f"{where} is {names}; it has to name each unit once, in the order of the network."
    )


def check_candidates(record: Row, where: str) -> Units:
  """Checks the field `units`, returns the names."""
  for i, unit in enumerate(record["units"]):
    for block in unit["blocks"]:
      fields.check_one_of(
        block, record["backbone"]["block_names"], f"{where}: a block of units[{i}]"
      )
  names = tuple(unit["name"] for unit in record["units"])
  if not names or len(set(names)) != len(names):
    raise ValueError(f"{where}: units are {list(names)}; at least one is needed, each named once.")
  return names


def check_folder(folder: str, where: str) -> None:
  """Raises unless `folder` is a path below the workdir: it becomes a link of the page."""
  path = pathlib.PurePosixPath(folder)
  if not folder or path.is_absolute() or ".." in path.parts or ":" in folder or "\\" in folder:
    raise ValueError(f"{where}: folder is {folder!r}; it has to be a path inside of the workdir.")


def check_certificate(entry: Certificate | None, units: Units, where: str) -> None:
  """Raises unless `entry` is None or a certificate of sets of `units`."""
  if entry is None:
    return
  check_units(entry["chosen"], units, f"{where}: chosen")
  for i, other in enumerate(entry["undecided"]):
    check_units(other["units"], units, f"{where}: undecided[{i}].units")
