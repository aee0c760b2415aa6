"""Records: WORKDIR/results.json of every study, declared as types for its writer and its reader.

A study's record.py has its own. Accuracies are fractions, intervals are of 95 %, and null stands
for a number that was not finite.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import json
import math
import os
import pathlib
import types
import typing
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec

from subtune_jax import strict_json
from subtune_jax.report import estimate as estimate_lib

RESULTS = "results.json"
VERSION = 1  # of the records that this library writes; older ones have none
# A field of older records that do not say their kind, and the kind.
_OLDER = {
  "robustness": "robustness", "holistic": "holistic_transfer", "tasks": "vtab",
  "trainings": "compare",
}  # fmt: skip
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Ends = Annotated[list[float | None], msgspec.Meta(min_length=2, max_length=2)]  # of an interval


class Header(TypedDict):  # how every record begins
  kind: NotRequired[str]  # the study's folder
  record_version: NotRequired[int]
  name: str
  title: str
  command: str
  config: dict[str, Any]


class Backbone(TypedDict):
  name: str
  weights: str
  revision: NotRequired[str]  # of a file on a hub
  sha256: str  # of the weights
  image_size: float  # pixels
  block_names: list[str]  # from input to head
  block_params: dict[str, int]
  head_params: int
  num_params: int  # the head's too


class Record(Header):  # what records of trainings have; that of vtab leaves it to its tasks
  created: str  # ISO 8601, UTC
  versions: dict[str, str]
  devices: str
  backbone: Backbone


class Data(TypedDict):
  class_names: list[str]
  attribution: NotRequired[str | list[str] | dict[str, str]]  # whose images; by data set


class Accuracy(TypedDict):  # on test images; null where there is no interval
  accuracy: float
  low: float | None
  high: float | None


def header(config: Any, command: str) -> dict[str, Any]:
  """The `Header` of a run's record, but for its config."""
  return {
    "kind": config.experiment, "record_version": VERSION, "name": config.name,
    "title": config.title, "command": command,
  }  # fmt: skip


def read(workdir: str | os.PathLike) -> dict[str, Any]:
  """The record in a workdir, of whatever study, its fields unchecked.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged, or of a newer version of this library.
  """
  path = pathlib.Path(workdir) / RESULTS
  if not path.is_file():
    raise FileNotFoundError(
      f"No {path.name} in {path.parent}: it is written when a run ends. Give the workdir of a "
      "finished run, or start the run again with this workdir and it goes on where it stopped."
    )
  try:
    record = strict_json.loads(path.read_text(encoding="utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f"{path} is damaged, not JSON: {error}. Remove it and run again.") from error
  check(record, dict, str(path))
  version = record.get("record_version", 0)
  check(version, int, f"{path}: record_version")
  if version > VERSION:
    raise ValueError(
      f"{path}: record_version is {version}, and this subtune_jax reads up to {VERSION}. A newer "
      "one wrote it: update subtune_jax."
    )
  return record


def load(workdir: str | os.PathLike, check_whole: Callable[[Any, str], None]) -> Any:
  """The record in a workdir, that `check_whole` of its study has let pass. Raises: see `read`."""
  record = read(workdir)
  check_whole(record, str(pathlib.Path(workdir) / RESULTS))
  return record


def kind_of(record: Mapping[str, Any]) -> str | None:
  """The study of a record; older ones do not all say it. None: it is of none."""
  older = (kind for field, kind in _OLDER.items() if field in record)
  return record["kind"] if "kind" in record else next(older, None)


def check_record(record: Mapping[str, Any], shape: Any, where: str, *kinds: str) -> None:
  """Raises ValueError unless `record` is of one of the kinds and has the fields of `shape`."""
  kind = kind_of(record)
  if kind is not None and kind not in kinds:
    raise ValueError(f"{where}: kind is {kind!r}, wanted {' or '.join(map(repr, kinds))}.")
  check(record, shape, where)


def check(value: Any, shape: Any, where: str, path: str = "") -> None:
  """Raises ValueError unless `value` is of the type `shape`, such as a TypedDict.

  The message has the path of the field, what is there and what is allowed. Types are strict: no
  bool is a number, an int may stand for a float; a dict may have further keys.
  """
  try:
    msgspec.convert(value, shape)
    return
  except msgspec.ValidationError as error:
    text = str(error)
  place, inner = f"{where}: {path.lstrip('.')}" if path else where, _plain(shape)
  if typing.is_typeddict(inner) and isinstance(value, dict):
    check_has(value, sorted(inner.__required_keys__), place)
  for step, part, its_type in _parts(value, inner):
    check(part, its_type, where, path + step)
  if typing.get_origin(inner) is Literal:
    check_one_of(value, typing.get_args(inner), place)
  if " - at " not in text:  # else of an element of a union
    text = f"it has to be {text.removeprefix('Expected ').partition(', got')[0]}"
  raise ValueError(f"{place} is {value!r:.80}, {text}.")


def _plain(shape: Any) -> Any:
  """A type without its bounds and without None."""
  while typing.get_origin(shape) in (Annotated, typing.Union, types.UnionType):
    shape = next(own for own in typing.get_args(shape) if own is not type(None))
  return shape


def _parts(value: Any, shape: Any) -> Iterator[tuple[str, Any, Any]]:
  """(path, part, its type) of what a dict or list holds."""
  if isinstance(value, dict) and typing.is_typeddict(shape):
    for key, own in typing.get_type_hints(shape, include_extras=True).items():
      if key in value:
        is_optional = typing.get_origin(own) is NotRequired
        yield f".{key}", value[key], typing.get_args(own)[0] if is_optional else own
  elif isinstance(value, dict) and typing.get_origin(shape) is dict:
    yield from ((f".{key}", part, typing.get_args(shape)[1]) for key, part in value.items())
  elif isinstance(value, list) and typing.get_origin(shape) is list:
    yield from ((f"[{i}]", part, typing.get_args(shape)[0]) for i, part in enumerate(value))


def check_has(found: Mapping[str, Any], wanted: Iterable[str], where: str) -> None:
  """Raises unless `found` has all that is wanted."""
  missing = [name for name in wanted if name not in found]
  if missing:
    raise ValueError(
      f"{where} lacks {', '.join(missing)}; it has {', '.join(found) or 'nothing'}. Is it the "
      "record of a subtune_jax run of this version? If not, run again in an empty workdir."
    )


def check_one_of(value: Any, allowed: Sequence[Any], where: str) -> None:
  """Raises unless `value` is in `allowed`."""
  if value not in allowed:
    listed = ", ".join(repr(a) for a in allowed)
    raise ValueError(f"{where} is {value!r}; the record knows {listed}.")


def number(value: float | None) -> float:
  """`value`, or nan for None: how a training that diverged is recorded."""
  return math.nan if value is None else float(value)


def estimate(entry: Mapping[str, Any], key: str = "mean") -> estimate_lib.Estimate:
  """A number of an entry and its interval, NaN where the record has none."""
  return estimate_lib.Estimate(
    number(entry[key]), number(entry.get("low")), number(entry.get("high"))
  )
