"""What a set of units scored: a cell of held-out answers per fold, and means over them."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools

import numpy as np

# Names of the units that are trained beside the head, in the order of the network.
Units = tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
  """Held-out answers of one set of units.

  Attributes:
    units: the set; () is the head alone.
    cells: one per fold: [images] the share of seeds that got each held-out image right, or one
      number, the fold's accuracy, as an array [1]. None for a fold that was not trained, NaN for
      one of which a training diverged.
  """

  units: Units
  cells: tuple[np.ndarray | None, ...]

  @functools.cached_property
  def by_fold(self) -> np.ndarray:
    """[folds] accuracy; NaN for a fold that was not trained, or diverged."""
    return np.array([np.nan if cell is None else float(np.mean(cell)) for cell in self.cells])

  @functools.cached_property
  def mean(self) -> float:
    """Mean accuracy over the folds that were trained, each counting the same; 0 if diverged."""
    if self.diverged:
      return 0.0
    return float(np.nanmean(self.by_fold))

  @property
  def complete(self) -> bool:
    """Whether every fold was trained and none diverged."""
    return all(cell is not None for cell in self.cells) and not self.diverged

  @functools.cached_property
  def diverged(self) -> bool:
    """Whether a training diverged: such a set cannot be chosen."""
    return any(cell is not None and bool(np.isnan(cell).any()) for cell in self.cells)


# Scores of the sets asked for; a dict by set, every fold of each.
Evaluate = Callable[[Sequence[Units]], Mapping[Units, Score]]


def from_accuracies(units: Units, by_fold: Sequence[float]) -> Score:
  """A score from accuracies alone, one per fold; NaN where there is none."""
  cells = tuple(None if np.isnan(a) else np.array([a], np.float64) for a in by_fold)
  return Score(tuple(units), cells)
