"""Model selection afterwards, on the records: which learning rate, and which epoch of it.

  last            every training's last epoch; the rate of the highest mean validation accuracy,
                  or of another score that the run's choices go by
  early_stopping  every training's best epoch on validation; then the rate likewise (LP-FT's code)
  oracle          epoch and rate by mean accuracy on the out-of-distribution test sets

The oracle answers whether early stopping could have saved full fine-tuning (LP-FT, section 4). It
reads what no honest choice may read: it has to be asked for with the sets to read, and its results
are marked.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

RULES = ("last", "early_stopping")
ORACLE = "oracle"


@dataclasses.dataclass(frozen=True)
class Epoch:
  """What a training scored after an epoch of its last stage.

  Attributes:
    validation: accuracy on the validation split in distribution, or another score of it that is
      better when it is larger.
    tests: test set -> accuracy.
    loss: cross-entropy on the validation split; breaks ties between rates.

  Raises:
    ValueError: a number is not finite.
  """

  validation: float
  tests: Mapping[str, float]
  loss: float = 0.0

  def __post_init__(self):
    _check_finite({"validation": self.validation, "loss": self.loss})


@dataclasses.dataclass(frozen=True)
class Training:
  """A training: its learning rate, its seed, its epochs in order."""

  learning_rate: float
  seed: int
  epochs: tuple[Epoch, ...]


@dataclasses.dataclass(frozen=True)
class Choice:
  """What a rule chose.

  Attributes:
    rule: which.
    learning_rate: the rate.
    at_edge: whether it is the first or the last of several.
    epochs: seed -> index of the epoch.
    score: what the rule maximises, mean over the seeds that all rates share.
    oracle: whether the rule read test sets.
  """

  rule: str
  learning_rate: float
  at_edge: bool
  epochs: Mapping[int, int]
  score: float
  oracle: bool


def choose(
  trainings: Sequence[Training], rule: str = "last", *, oracle_sets: Sequence[str] = ()
) -> Choice:
  """Chooses the learning rate of a method, and an epoch of each of its trainings.

  Rates are compared on the seeds that all of them have, be it the first alone; the epochs chosen
  are of all seeds of the rate. Ties go to the earlier epoch; to the rate of the
  lower validation loss (the oracle: the lower rate), then to the lower rate.

  Args:
    trainings: of one method, without rates of which a training diverged.
    rule: one of `RULES`, or "oracle".
    oracle_sets: test sets whose mean accuracy the oracle maximises; of no other rule.

  Raises:
    ValueError: an unknown rule, an oracle without sets or sets without an oracle, no training, no
      seed that all rates share.
  """
  if rule not in (*RULES, ORACLE):
    raise ValueError(f"rule is {rule!r}; allowed: {', '.join((*RULES, ORACLE))}")
  if (rule == ORACLE) != bool(oracle_sets):
    raise ValueError(
      f"rule is {rule!r} with oracle_sets {tuple(oracle_sets)}; the oracle needs the test sets "
      "that it reads, and no other rule reads one"
    )
  if not trainings or not all(t.epochs for t in trainings):
    raise ValueError("a method has no finished training to choose from")
  rates = sorted({t.learning_rate for t in trainings})
  by_rate = {rate: [t for t in trainings if t.learning_rate == rate] for rate in rates}
  shared = set.intersection(*({t.seed for t in found} for found in by_rate.values()))
  if not shared:
    raise ValueError(f"no seed was trained at every rate of {rates}; train one at all of them")
  picked = {}
  for rate, found in by_rate.items():
    epochs = {t.seed: _epoch(t, rule, oracle_sets) for t in found}
    scores = [
      _score(t.epochs[epochs[t.seed]], rule, oracle_sets) for t in found if t.seed in shared
    ]
    losses = [t.epochs[epochs[t.seed]].loss for t in found if t.seed in shared]
    loss = 0.0 if rule == ORACLE else float(np.mean(losses))
    picked[rate] = float(np.mean(scores)), -loss, epochs
  rate = max(picked, key=lambda r: (*picked[r][:2], -r))
  edge = len(rates) > 1 and rate in (rates[0], rates[-1])
  score, _, epochs = picked[rate]
  return Choice(rule, rate, edge, epochs, score, rule == ORACLE)


def _check_finite(numbers: Mapping[str, float]) -> None:
  for name, value in numbers.items():
    if not np.isfinite(value):
      raise ValueError(f"{name} is {value}; leave out trainings that diverged")


def _score(epoch: Epoch, rule: str, oracle_sets: Sequence[str]) -> float:
  if rule == ORACLE:
    found = {name: epoch.tests[name] for name in oracle_sets}
    _check_finite(found)
    return float(np.mean(list(found.values())))
  return epoch.validation


def _epoch(training: Training, rule: str, oracle_sets: Sequence[str]) -> int:
  if rule == "last":
    return len(training.epochs) - 1
  return int(np.argmax([_score(epoch, rule, oracle_sets) for epoch in training.epochs]))
