"""The metrics on the validation split that choices may go by: `select_by` of a config."""

from collections.abc import Mapping
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Criterion:
  """A metric.

  Attributes:
    name: in configs.
    title: in sentences, tables and figures.
    field: in rows of ledgers and records.
    percent: whether it is shown in per cent.
    sign: 1 where larger is better, else -1.
  """

  name: str
  title: str
  field: str
  percent: bool
  sign: int

  @property
  def best(self) -> str:
    """ "highest" or "lowest"."""
    return "highest" if self.sign > 0 else "lowest"

  @property
  def label(self) -> str:
    """The title on an axis."""
    return f"validation {self.title}{', %' if self.percent else ''}"

  def score(self, row: Mapping[str, Any]) -> float:
    """What is to be maximised, of a row that has the field."""
    return self.sign * row[self.field]

  def shown(self, row: Mapping[str, Any]) -> float | None:
    """The value as it is drawn: in per cent where it is shown so; None where there is none."""
    value = row[self.field]
    return None if value is None else 100 * value if self.percent else value


ACCURACY = "accuracy"
CRITERIA = {
  own.name: own
  for own in (
    Criterion(ACCURACY, "accuracy", "validation_accuracy", True, 1),
    Criterion("balanced_accuracy", "balanced accuracy", "validation_balanced_accuracy", True, 1),
    Criterion("auroc", "AUROC", "validation_auroc", False, 1),
    Criterion("nll", "negative log-likelihood", "validation_loss", False, -1),
  )
}
# Fields of rows whatever choices go by.
FIELDS = ("validation_accuracy", "validation_loss")


def of(config: Mapping[str, Any]) -> Criterion:
  """The criterion of a config or of a record's; records of older runs have none.

  Raises:
    ValueError: an unknown one.
  """
  name = config.get("select_by", ACCURACY)
  if name not in CRITERIA:
    raise ValueError(f"select_by is {name!r}; allowed: {', '.join(map(repr, CRITERIA))}")
  return CRITERIA[name]


def fields(criterion: Criterion) -> tuple[str, ...]:
  """What rows hold of the validation split, the criterion's own among them."""
  return tuple(dict.fromkeys((*FIELDS, criterion.field)))
