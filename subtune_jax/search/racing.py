"""Finding the best of many sets of units without training all of them on all folds.

All sets are trained on fold 0. After each fold the sets that a paired test says will not win are
dropped, and the race ends as soon as the leader is good enough. Races among models go back to Maron
and Moore ("Hoeffding Races", NIPS 6, 1994); Birattari et al. ("A Racing Algorithm for Configuring
Metaheuristics", GECCO 2002) drop by paired tests.

Here the test is a Bayesian one, on the posterior of `certificate`, which pairs the scores by fold
and by image. The user states `regret`, the accuracy that the race may cost. With true accuracies mu
and the leader l, the set with the highest posterior mean,

* sets are dropped, those with the least E[max(mu_c - mu_l, 0)] first, while the sum of it over all
  that are out is at most regret / 2. This is judged anew after each fold: should the leader fall, a
  set may come back.
* the race ends as soon as E[max_c mu_c - mu_l] over all sets, the dropped ones too, is at most
  `regret`, or when all sets that are not dropped have all folds.

So, under the model, a race that ends early returns a set whose expected regret in terms of true
accuracy is at most `regret`: a posterior does not depend on the rule for stopping. Where the folds
run out first, no more than regret / 2 of the expected regret is due to what was dropped; the rest
is left by training every set on every fold as well. `Race.expected_regret` is the sum.

What to expect. The bound is an average over candidates like those of the model, whose true
accuracies are about normal. One good set among equals is the hard case: a race that ends after one
fold can miss it (simulated: for a `regret` of 1 point and a set that is better by 2, the races lost
1.5 on average). After one fold the noise of training is known from its prior alone. And scores on
few images leave a regret themselves, say half a point for sixteen close sets on five folds of 200
images: a race that is to do better than that trains nearly all.
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from subtune_jax.search import certificate, significance
from subtune_jax.search import scores as scores_lib

NUM_DRAWS = 4000  # from the posterior, after each fold

# train(sets, fold): the cell of each set, as in `Score.cells`.
Train = Callable[[Sequence[scores_lib.Units], int], Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Rung:
  """A fold of a race.

  Attributes:
    fold: its number.
    trained: the sets trained on it.
    dropped: the sets given up after it; the last rung gives up all that are not complete but the
      winner.
  """

  fold: int
  trained: tuple[scores_lib.Units, ...]
  dropped: tuple[scores_lib.Units, ...]


@dataclasses.dataclass(frozen=True)
class Race:
  """A finished race.

  Attributes:
    winner: the set with the highest posterior mean.
    scores: by set, with the folds that were trained.
    trained: number of trainings, a set on a fold each.
    saved: number of trainings that scoring all sets on all folds would have taken besides.
    expected_regret: of the winner, in accuracy; NaN where nothing tells of the noise.
    rungs: in order, without the last folds of the winner.
  """

  winner: scores_lib.Units
  scores: dict[scores_lib.Units, scores_lib.Score]
  trained: int
  saved: int
  expected_regret: float
  rungs: tuple[Rung, ...]


def race(
  sets: Sequence[scores_lib.Units],
  train: Train,
  num_folds: int,
  *,
  regret: float,
  overlap: float,
  known: Sequence[scores_lib.Score] = (),
  finish_winner: bool = True,
) -> Race:
  """Finds the best set, or one that is expected to be worse by `regret` at most.

  Args:
    sets: the candidates.
    train: trains sets on a fold. Cells that hold the answers to images let the race judge after one
      fold; with one accuracy per cell it takes two.
    num_folds: of a complete score.
    regret: in accuracy, 0.005 is half a point; see above for what it bounds. With 0 all sets are
      trained on all folds.
    overlap: held-out images / training images: 1 / (num_folds - 1) for folds, 0 for cells that
      share no training image.
    known: scores on the same folds from before. Those of candidates are not trained again; those of
      other sets tell of the folds and of the noise.
    finish_winner: train the winner on all folds, so that its score compares with complete ones. If
      that lowers it so that its expected regret exceeds `regret`, the race goes on.

  Returns:
    A `Race`.

  Raises:
    ValueError: no set, a set twice, an option is not allowed, scores that do not fit, or a training
      of every set diverged (its cell is NaN).
  """
  sets = [tuple(units) for units in sets]
  _check(sets, num_folds, regret, known)
  significance.check_overlap(overlap)
  board = _Board(sets, train, num_folds, known)
  rungs = [Rung(0, board.train(sets, 0), ())]
  racing, finished = set(sets), None
  while True:
    view = board.view(regret, overlap)
    if finished is not None and view.regrets[finished] <= regret:
      break
    settled = regret > 0 and view.regrets[view.leader] <= regret
    behind = [] if settled else [sets[i] for i in view.hopeful if not board.complete(sets[i])]
    out = racing - {sets[view.leader], *behind}
    dropped = tuple(units for units in sets if units in out and not board.complete(units))
    rungs[-1] = dataclasses.replace(rungs[-1], dropped=rungs[-1].dropped + dropped)
    racing = {sets[view.leader], *behind}
    if behind:
      fold = min(board.missing(units)[0] for units in behind)
      rungs.append(Rung(fold, board.train(behind, fold), ()))
    elif finish_winner and not board.complete(sets[view.leader]):
      finished = view.leader
      for fold in board.missing(sets[finished]):
        board.train([sets[finished]], fold)
    else:
      finished = view.leader
      break
  saved = sum(len(board.missing(units)) for units in sets)
  regrets = float(view.regrets[finished])
  return Race(sets[finished], board.scores(), board.trained, saved, regrets, tuple(rungs))


@dataclasses.dataclass(frozen=True)
class _View:
  """What the scores so far say.

  Attributes:
    leader: place of the set with the highest posterior mean.
    regrets: [sets] expected regret of each, were it chosen; NaN where nothing tells of the noise,
      infinite for a set that diverged.
    hopeful: places of the sets that are not dropped.
  """

  leader: int
  regrets: np.ndarray
  hopeful: list[int]


class _Board:
  """The scores of a race as it goes."""

  def __init__(
    self,
    sets: Sequence[scores_lib.Units],
    train: Train,
    num_folds: int,
    known: Sequence[scores_lib.Score],
  ):
    self._train = train
    self.trained = 0
    self._cells: dict[scores_lib.Units, list[np.ndarray | None]]
    self._cells = {units: [None] * num_folds for units in sets}
    self._cells.update({s.units: list(s.cells) for s in known if s.units in self._cells})
    others = [score for score in known if score.units not in self._cells]
    self._references = [score for score in others if not score.diverged]

  def scores(self) -> dict[scores_lib.Units, scores_lib.Score]:
    return {units: scores_lib.Score(units, tuple(cells)) for units, cells in self._cells.items()}

  def missing(self, units: scores_lib.Units) -> list[int]:
    """Folds that a set was not trained on."""
    return [fold for fold, cell in enumerate(self._cells[units]) if cell is None]

  def complete(self, units: scores_lib.Units) -> bool:
    return not self.missing(units)

  def train(self, sets: Sequence[scores_lib.Units], fold: int) -> tuple[scores_lib.Units, ...]:
    """Trains those of the sets that miss the fold on it, and returns them."""
    todo = tuple(units for units in sets if self._cells[units][fold] is None)
    cells = list(self._train(todo, fold)) if todo else []
    if len(cells) != len(todo):
      raise ValueError(f"train gave {len(cells)} cells for {len(todo)} sets; give one for each")
    for units, cell in zip(todo, cells, strict=True):
      self._cells[units][fold] = np.atleast_1d(np.asarray(cell, np.float64))
    self.trained += len(todo)
    return todo

  def view(self, regret: float, overlap: float) -> _View:
    """Judges the scores so far; sets that diverged are out."""
    every = list(self.scores().values())
    sound = [place for place, score in enumerate(every) if not score.diverged]
    if not sound:
      raise ValueError(
        f"the {len(every)} sets of the race are all without a finite accuracy: a training of each "
        "diverged; lower the learning rate"
      )
    view = self._view([every[place] for place in sound], regret, overlap)
    regrets = np.full(len(every), np.inf)
    regrets[sound] = view.regrets
    return _View(sound[view.leader], regrets, [sound[place] for place in view.hopeful])

  def _view(self, scores: list[scores_lib.Score], regret: float, overlap: float) -> _View:
    every = list(range(len(scores)))
    if not certificate.informed(scores, self._references):
      leader = int(np.argmax([score.mean for score in scores]))
      return _View(leader, np.full(len(scores), np.nan), every)
    means = certificate.draw_means(
      scores, overlap=overlap, references=self._references, num_draws=NUM_DRAWS
    )
    regrets = np.mean(means.max(axis=0) - means, axis=1)
    leader = int(regrets.argmin())
    if regret == 0:
      return _View(leader, regrets, every)
    gains = np.maximum(means - means[leader], 0).mean(axis=1)
    gains[leader] = np.inf  # always last
    order = np.argsort(gains, kind="stable")
    kept = order[np.cumsum(gains[order]) > regret / 2]
    return _View(leader, regrets, sorted(kept.tolist()))


def _check(
  sets: Sequence[scores_lib.Units],
  num_folds: int,
  regret: float,
  known: Sequence[scores_lib.Score],
) -> None:
  if not sets or len(set(sets)) < len(sets):
    raise ValueError(f"sets are {sets}; give at least one, each once")
  if num_folds < 1:
    raise ValueError(f"num_folds is {num_folds}; give at least 1")
  if not 0 <= regret < 1:
    raise ValueError(f"regret is {regret}; it is an accuracy in [0, 1): 0.005 is half a point")
  units = [score.units for score in known]
  if len(set(units)) < len(units):
    raise ValueError(f"known scores are of the sets {units}; pass each set once")
  for score in known:
    if len(score.cells) != num_folds:
      raise ValueError(
        f"the known score of {certificate.label(score.units)} has {len(score.cells)} folds, not"
        f" {num_folds}; score it on the folds of the race"
      )
