"""JSON as the standard has it: without NaN and Infinity, for which null stands.

A training whose numbers are not all finite has diverged. Its entry is kept without results: scores
null, no history. Files that hold the tokens NaN or Infinity all the same are read as that.
"""

from collections.abc import Mapping
import json
import math
from typing import Any

_RESULTS = (
  "accuracy", "loss", "validation_accuracy", "validation_balanced_accuracy", "validation_auroc",
  "validation_loss", "moved",
)  # fmt: skip
_EPOCHS = ("history", "stages")  # of an entry that has a history
_TRAINING = ("key", "learning_rate")  # an entry with one of them stands for itself


def dumps(value: Any, **options: Any) -> str:
  """`json.dumps` with null in place of every number that is not finite.

  Args:
    value: of dicts, lists, tuples, strings, numbers, None.
    options: of `json.dumps`.
  """
  return json.dumps(_nulled(value), allow_nan=False, **options)


def _nulled(value: Any) -> Any:
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if isinstance(value, Mapping):
    return {key: _nulled(each) for key, each in value.items()}
  if isinstance(value, list | tuple):
    return [_nulled(each) for each in value]
  return value


def loads(text: str | bytes) -> Any:
  """`json.loads`; a training or a point of a grid with a number that is not finite has diverged.

  Such a number becomes None, and with it the accuracies and losses of the entry; its history is
  empty. Outside of trainings NaN stays NaN, for the checks of whoever reads it.

  Raises:
    ValueError: not JSON.

  >>> loads('{"learning_rate": 3, "validation_accuracy": 0.7, "validation_loss": NaN}')
  {'learning_rate': 3, 'validation_accuracy': None, 'validation_loss': None}
  """
  return _settled(json.loads(text))


def _settled(value: Any) -> Any:
  if isinstance(value, list):
    return [_settled(each) for each in value]
  if not isinstance(value, dict):
    return value
  made = {key: _settled(each) for key, each in value.items()}
  is_training = any(key in made for key in _TRAINING)
  return _emptied(made) if is_training and not _is_finite(made) else made


def _is_finite(value: Any) -> bool:
  if isinstance(value, dict | list):
    return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
  return not isinstance(value, float) or math.isfinite(value)


def _emptied(training: dict[str, Any]) -> dict[str, Any]:
  """Without results, and without a number that is not finite."""
  made = _nulled(training)
  for key, each in made.items():
    if key in _RESULTS and not isinstance(each, dict | list):
      made[key] = None
    elif key in _EPOCHS and "history" in made:
      made[key] = []
  return made
