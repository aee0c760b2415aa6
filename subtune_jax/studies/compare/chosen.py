"""The training of a comparison that validation chose, and what it answered for each image."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np
import scipy.special

from subtune_jax import files
from subtune_jax.statistics import criteria
from subtune_jax.studies.compare import record as record_lib

Row = Mapping[str, Any]
VALIDATION = "logits/validation"
CROSS_VALIDATION = "logits/validation/cross_validation.npz"  # see label_check.py


@dataclasses.dataclass(frozen=True)
class Answers:
  """What one network answered for each of n images.

  Attributes:
    labels: true classes, int [n].
    ids: str [n].
    log_probabilities: float64 [n, classes].
  """

  labels: np.ndarray
  ids: np.ndarray
  log_probabilities: np.ndarray

  @property
  def predicted(self) -> np.ndarray:
    """The classes answered, int [n]."""
    return self.log_probabilities.argmax(-1)

  @property
  def loss(self) -> np.ndarray:
    """Cross-entropy of each image, float64 [n]: minus the log of its true class's probability."""
    return -self.log_probabilities[np.arange(len(self.labels)), self.labels]

  def probability(self, image: int, of: int) -> float:
    """What the network gave the class `of` for an image."""
    return float(np.exp(self.log_probabilities[image, of]))


def training(record: Mapping[str, Any], method: str | None = None) -> Row:
  """The chosen training of a method that validation puts first, by what the run's choices went by.

  Args:
    record: as in results.json.
    method: its name; None is that of the best mean over seeds of validation accuracy, or of the
      metric asked for (then the least mean loss of its last epoch, then the first).
  """
  criterion = criteria.of(record["config"])
  if method is None:
    names = [row["name"] for row in record["methods"]]
    method = max(names, key=lambda name: _score(record_lib.chosen_of(record, name), criterion))
  return max(record_lib.chosen_of(record, method), key=lambda row: _score([row], criterion))


def _score(rows: Sequence[Row], criterion: criteria.Criterion) -> tuple[float, float]:
  """Mean of the criterion, larger being better, and minus the mean loss; -inf for the unknown."""
  losses = [row["history"][-1].get("validation_loss") if row["history"] else None for row in rows]
  values = losses
  if criterion.field != "validation_loss":
    values = [row[criterion.field] for row in rows]
  return tuple(
    -np.inf if any(value is None for value in own) else sign * float(np.mean(own))
    for sign, own in ((criterion.sign, values), (-1, losses))
  )


def answers_on(run: record_lib.Run, row: Row, name: str) -> Answers:
  """What a chosen training answered on the test set `name`."""
  path = run.workdir / row["test"][name]["logits"]
  logits = files.read_npz(path, f"the logits of {name!r}", ["logits"])["logits"]
  test = run.tests[name]
  return Answers(test.labels, test.ids, _log_probabilities(logits))


def validation_arrays(workdir: pathlib.Path, row: Row) -> dict[str, np.ndarray] | None:
  """ "logits" after the last epoch, "labels", "ids", "groups" of validation images, or None.

  Raises:
    ValueError: a file is damaged.
  """
  if not row["history"] or "key" not in row:
    return None
  last, where = row["history"][-1], workdir / VALIDATION
  path = where / row["key"] / f"{last['stage']}-{last['epoch']}.npz"
  if not path.is_file():
    return None
  wanted = "what the network answers for validation images"
  examples = files.read_npz(where / "examples.npz", wanted, ["labels", "ids", "groups"])
  return examples | files.read_npz(path, wanted, ["logits"])


def answers_on_labelled(run: record_lib.Run, row: Row) -> tuple[Answers, bool] | None:
  """What networks that did not train on them answer for labelled images of the run.

  Of a linear probe under cross-validation for the training and validation images (True), where the
  run wrote that; else of the method of `row` for the validation images (False). None: neither.
  """
  path = run.workdir / CROSS_VALIDATION
  if path.is_file():
    arrays = files.read_npz(path, "what labels are checked by", ["logits", "labels", "ids"])
    return _answers(arrays), True
  # After a training on all labels, one of the same setting on the training split alone.
  same = [
    other for other in run.record["trainings"]
    if (other["method"], other["learning_rate"]) == (row["method"], row["learning_rate"])
  ]  # fmt: skip
  for candidate in (row, *same):
    arrays = validation_arrays(run.workdir, candidate)
    if arrays is not None and np.isfinite(arrays["logits"]).all():
      return _answers(arrays), False
  return None


def _answers(arrays: Mapping[str, np.ndarray]) -> Answers:
  return Answers(arrays["labels"], arrays["ids"].astype(str), _log_probabilities(arrays["logits"]))


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
  return scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
