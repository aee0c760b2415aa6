"""Held-out accuracy of any set of units without training one, from kernels of gradients.

To first order, training the head and the blocks of a set S is kernel regression with
K_S = K_head + sum over b in S of eta_b K_b (docs/selection.md); K_head is of the features as the
blocks' own statistics of BatchNorm make them. Each set is fitted on the training
part of each fold, in closed form, and answers the images that the fold holds out; scores read as
those of trained sets do, so greedy search, intervals and certificate take them as they are. Labels
of held-out images are read for nothing but that score: strength and eta are chosen by leaving out
groups of the training part.
"""

from collections.abc import Callable, Sequence
import dataclasses
import time
from typing import Any

import numpy as np

from subtune_jax.data import choices
from subtune_jax.search import kernels as kernels_lib
from subtune_jax.search import ridge, scores

Start = Callable[[np.ndarray], np.ndarray]
Folds = Sequence[tuple[np.ndarray, np.ndarray]]
RATES = (1.0,)  # eta, of kernels scaled to the trace of the head's


@dataclasses.dataclass(frozen=True)
class Choice:
  """What the training part of a fold chose for a set: `ridge.Fit` without its arrays, and eta."""

  rate: float
  strength: float
  error: float


class Predictor:
  """Scores sets of units by kernel ridge regression.

  Args:
    kernels: of the images; the units are its groups.
    labels: [n] classes.
    folds: (rows to fit on, rows held out) of each fold.
    groups: [n] images that stay together when strength and eta are chosen; None: each by itself.
    start: what a training starts from, of features [n, D] the outputs [n, classes] (probabilities
      of a pretrained head); None starts from nothing. What is fitted is what they leave of the
      labels; they must not depend on the labels. It needs `kernels.base`.
    rates: eta to choose from, shared by the units of a set.
    strengths: see `ridge.fit`.

  Raises:
    ValueError: sizes that do not fit, or an option out of range.
  """

  def __init__(
    self,
    kernels: kernels_lib.Kernels,
    labels: np.ndarray,
    folds: Folds,
    *,
    groups: np.ndarray | None = None,
    start: Start | None = None,
    rates: Sequence[float] = RATES,
    strengths: Sequence[float] = ridge.STRENGTHS,
  ):
    self.kernels, self.labels = kernels, np.asarray(labels, np.int64)
    self.folds = [(np.asarray(rest), np.asarray(held)) for rest, held in folds]
    count = len(self.labels)
    self.groups = np.arange(count) if groups is None else np.asarray(groups)
    self.start = start
    self.rates, self.strengths = tuple(rates), tuple(strengths)
    self._check(count)
    self.names = tuple(kernels.groups)
    self.targets = np.eye(self._num_classes(count))[self.labels]
    self.choices: dict[tuple[scores.Units, int], Choice] = {}
    self.seconds = 0.0
    self._cells: dict[tuple[scores.Units, int], np.ndarray] = {}
    self._places: dict[int, int] = {}
    self._last: tuple[scores.Units, np.ndarray, np.ndarray] | None = None

  def evaluate(self, sets: Sequence[scores.Units]) -> dict[scores.Units, scores.Score]:
    """The predicted score of each set; `scores.Evaluate`. Cells hold one answer an image."""
    folds = range(len(self.folds))
    return {
      units: scores.Score(units, tuple(self._cell(units, fold) for fold in folds)) for units in sets
    }

  def outputs(self, units: scores.Units, fold: int) -> np.ndarray:
    """[held out, classes] predictions of a set for the images that a fold holds out."""
    rest, held = self.folds[fold]
    first = self._place(fold) if units else None
    columns = self._columns(rest)
    tried = (
      (self._fit(kernel, columns, rest, self.residual(units, rest), first), rate, kernel)
      for rate in (self.rates if units else self.rates[:1])
      for kernel in [self.kernel(units, rest, rate)]
    )
    found, rate, kernel = min(tried, key=lambda one: one[0].error)
    if not units:
      self._places[fold] = found.place
    self.choices[units, fold] = Choice(rate, found.strength, found.error)
    fitted = kernel[np.ix_(rest, columns)]
    return self.start_of(units)[held] + found.predict(kernel[np.ix_(held, columns)], fitted)

  def _fit(self, kernel, columns, rest, targets, first) -> ridge.Fit:
    """Of the images `rest`, by the columns that are among them."""
    own, groups = kernel[np.ix_(rest, columns)], self.groups[rest]
    if self.kernels.landmarks is None:
      return ridge.fit(own, targets, groups, self.strengths, first)
    of_landmarks = kernel[np.ix_(self.kernels.landmarks[columns], columns)]
    return ridge.fit_landmarks(own, of_landmarks, targets, groups, self.strengths)

  def _columns(self, rest: np.ndarray) -> np.ndarray:
    """The columns of the kernels that are of the images `rest`."""
    landmarks = self.kernels.landmarks
    return rest if landmarks is None else np.flatnonzero(np.isin(landmarks, rest))

  def _place(self, fold: int) -> int:
    """The place of the head's own strength, from which those of sets are sought downhill."""
    if fold not in self._places:
      self.outputs((), fold)
    return self._places[fold]

  def start_of(self, units: scores.Units) -> np.ndarray:
    """[n, classes] outputs that the training of a set starts from."""
    return self._of(units)[1]

  def residual(self, units: scores.Units, rows: np.ndarray) -> np.ndarray:
    """[rows, classes] what the start of a set leaves of the labels."""
    return self.targets[rows] - self.start_of(units)[rows]

  def head(self, units: scores.Units) -> np.ndarray:
    """[n, m] inner products of the features that the head of a set reads, m columns.

    To first order each unit's own statistics add what they change; exact for one unit.
    """
    return self._of(units)[0]

  def _of(self, units: scores.Units) -> tuple[np.ndarray, np.ndarray]:
    """(`head`, `start_of`) of a set; those of the last set are kept for its other folds."""
    if self._last is None or self._last[0] != units:
      base: Any = self.kernels.base  # None where nothing reads it
      features = self.kernels.features
      changed = [features[name] - base for name in units if name in features]
      own = base + sum(changed) if changed else base
      head = self.kernels.head
      if changed:
        head = self.kernels.features_gram(own, f"the features of {' + '.join(units)}")
      start = np.zeros_like(self.targets) if self.start is None else self.start(own)
      self._last = units, head, np.asarray(start, np.float64)
    return self._last[1:]

  def kernel(self, units: scores.Units, rest: np.ndarray, rate: float = 1.0) -> np.ndarray:
    """[n, m] K_S; each part has the mean centred square length 1, times its eta, on the rows `rest`
    (with landmarks, on those among them).
    """
    for name in units:
      choices.check("unit", name, self.names)
    columns = self._columns(rest)
    rows = rest if self.kernels.landmarks is None else self.kernels.landmarks[columns]
    own = np.ix_(rows, columns)
    head = self.head(units)
    total: np.ndarray = head * _weight(head[own])
    for name in units:
      part = self.kernels.groups[name]
      total = total + part * np.float32(rate * _weight(part[own]))
    return total

  def _cell(self, units: scores.Units, fold: int) -> np.ndarray:
    if (units, fold) not in self._cells:
      begin = time.perf_counter()
      _, held = self.folds[fold]
      right = self.outputs(units, fold).argmax(axis=1) == self.labels[held]
      self._cells[units, fold] = right.astype(np.float64)
      self.seconds += time.perf_counter() - begin
    return self._cells[units, fold]

  def _check(self, count: int) -> None:
    shape, landmarks = np.shape(self.kernels.head), self.kernels.landmarks
    columns = count if landmarks is None else len(landmarks)
    if shape != (count, columns) or self.groups.shape != (count,):
      raise ValueError(
        f"kernels of {shape[0]} images, {count} labels and {len(self.groups)} groups; all need one "
        "for each image, in one order"
      )
    if landmarks is not None:
      fewest = min(len(self._columns(rest)) for rest, _ in self.folds)
      if fewest < 2:
        raise ValueError(f"a fold has {fewest} of {columns} landmarks; give more, or None for all")
    if self.kernels.base is None and (self.start or self.kernels.features):
      raise ValueError("kernels.base is None; start and kernels.features need the features in it")
    if not self.rates or not min(self.rates) > 0:
      raise ValueError(f"rates are {self.rates}; give at least one, each above 0")

  def _num_classes(self, count: int) -> int:
    """What the start gives, or the labels have."""
    if self.start is None:
      return int(self.labels.max()) + 1
    assert self.kernels.base is not None  # `_check` has looked
    shape = self.start(self.kernels.base).shape
    if len(shape) != 2 or shape[0] != count:
      raise ValueError(f"start gives {shape}; it has to give [{count}, classes]")
    return shape[1]


def _weight(kernel: np.ndarray) -> np.float32:
  """1 / the mean diagonal of the centred kernel; 0 where the images are all alike."""
  own = kernel.astype(np.float64)
  mean, diagonal = own.mean(), own.trace() / len(own)
  alike = diagonal - mean <= 1e-6 * abs(diagonal)
  return np.float32(0.0 if alike else 1 / (diagonal - mean))
