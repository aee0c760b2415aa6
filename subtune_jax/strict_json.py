"""JSON as the standard has it: without NaN and Infinity, for which null stands.

A training whose numbers are not all finite has diverged. Its entry is kept without results: scores
null, no history. Files that hold the tokens NaN or Infinity all the same are read as that.
"""

from collections.abc import Mapping
import json
import math
from typing import Any

_RESULTS = ("accuracy", "loss", "validation_accuracy", "validation_loss", "moved")
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
  """`json.loads`; an entry that holds a number that is not finite is read as diverged.

  Such a number becomes None, and with it the accuracies and losses beside it, up to the training
  or the point of a grid that it belongs to; the history of that is empty.

  Raises:
    ValueError: not JSON.

  >>> loads('{"learning_rate": 3, "validation_accuracy": 0.7, "validation_loss": NaN}')
  {'learning_rate': 3, 'validation_accuracy': None, 'validation_loss': None}
  """
  return _settled(json.loads(text))[0]


def _settled(value: Any) -> tuple[Any, bool]:
  """The value without numbers that are not finite, and whether its parent diverged with it."""
  if isinstance(value, float) and not math.isfinite(value):
    return None, True
  if isinstance(value, list):
    pairs = [_settled(each) for each in value]
    return [each for each, _ in pairs], any(bad for _, bad in pairs)
  if not isinstance(value, dict):
    return value, False
  pairs = {key: _settled(each) for key, each in value.items()}
  made = {key: each for key, (each, _) in pairs.items()}
  if not any(bad for _, bad in pairs.values()):
    return made, False
  for key, each in made.items():
    if key in _RESULTS and not isinstance(each, dict | list):
      made[key] = None
    elif key in _EPOCHS and "history" in made:
      made[key] = []
  return made, not any(key in made for key in _TRAINING)
