"""What a record has to hold: fields in their types, checked before anything is read from it."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

NUMBER = (int, float)
MAYBE_NUMBER = (int, float, type(None))
BACKBONE = {
  "name": str,
  "weights": str,
  "sha256": str,
  "image_size": NUMBER,
  "block_names": list,
  "block_params": dict,
  "head_params": int,
  "num_params": int,
}


def number(value: float | None) -> float:
  """`value`, or nan for None: how a training that diverged is recorded."""
  return math.nan if value is None else float(value)


def check_fields(value: Any, fields: Mapping[str, Any], where: str) -> None:
  """Raises unless `value` is a dict that holds all `fields` in their types."""
  if not isinstance(value, dict):
    raise ValueError(f"{where} has to be an object, got {type(value).__name__}.")
  missing = sorted(set(fields) - set(value))
  if missing:
    raise ValueError(
      f"{where} lacks {', '.join(missing)}; it has {', '.join(sorted(value)) or 'nothing'}. Is it "
      "the record of a subtune_jax run of this version? If not, run again in an empty workdir."
    )
  for key, types in fields.items():
    types = types if isinstance(types, tuple) else (types,)
    is_stray_bool = isinstance(value[key], bool) and bool not in types
    if not isinstance(value[key], types) or is_stray_bool:
      allowed = " or ".join(t.__name__ for t in types)
      raise ValueError(f"{where}: {key} is {value[key]!r}, it has to be {allowed}.")


def check_one_of(value: Any, allowed: Sequence[Any], where: str) -> None:
  """Raises unless `value` is in `allowed`."""
  if value not in allowed:
    listed = ", ".join(repr(a) for a in allowed)
    raise ValueError(f"{where} is {value!r}; the record knows {listed}.")
