"""Races by hand, and what they cost and save on simulated answers to images."""

import math

import numpy as np
import pytest

from subtune_jax.search import certificate, racing, scores

SETS = [(f"block{i}",) for i in range(4)]


def answers(right, images=100):
  return np.repeat([1.0, 0.0], [right, images - right])


class Trainer:
  """Hands out cells of a table: units -> cells of the folds."""

  def __init__(self, cells):
    self.cells, self.calls = cells, []

  def __call__(self, sets, fold):
    self.calls.append((fold, list(sets)))
    return [self.cells[units][fold] for units in sets]


def test_a_clear_winner_takes_one_fold():
  train = Trainer({units: [answers(95 if i == 2 else 30)] * 5 for i, units in enumerate(SETS)})
  race = racing.race(SETS, train, 5, regret=0.01, overlap=0.25)
  assert race.winner == SETS[2]
  assert train.calls == [(0, SETS), *((fold, [SETS[2]]) for fold in range(1, 5))]
  assert (race.trained, race.saved) == (8, 12)
  assert race.rungs == (racing.Rung(0, tuple(SETS), (SETS[0], SETS[1], SETS[3])),)
  assert race.scores[SETS[2]].complete
  assert race.scores[SETS[0]].by_fold == pytest.approx([0.3] + [np.nan] * 4, nan_ok=True)
  assert race.expected_regret <= 0.01
  short = racing.race(SETS, train, 5, regret=0.01, overlap=0.25, finish_winner=False)
  assert (short.winner, short.trained, short.saved) == (SETS[2], 4, 16)


def test_the_hopeless_are_dropped_and_the_close_go_on():
  level = dict(zip(SETS, (20, 80, 79, 25), strict=True))
  rng = np.random.default_rng(0)
  cells = {
    units: [rng.permutation(answers(p + wiggle)) for wiggle in (0, 2, 1, -1, 0)]
    for units, p in level.items()
  }
  race = racing.race(SETS, Trainer(cells), 5, regret=0.001, overlap=0.25)
  assert race.rungs[0] == racing.Rung(0, tuple(SETS), (SETS[0], SETS[3]))
  assert [(rung.fold, rung.trained) for rung in race.rungs[1:]] == [
    (fold, (SETS[1], SETS[2])) for fold in range(1, 5)
  ]
  assert (race.trained, race.saved) == (12, 8)
  assert race.expected_regret > 0.001  # the folds ran out
  complete = racing.race(SETS, Trainer(cells), 5, regret=0, overlap=0.25)
  assert race.expected_regret == pytest.approx(complete.expected_regret, abs=0.0005)


def test_regret_0_trains_everything():
  train = Trainer({units: [answers(90 if i == 2 else 10)] * 3 for i, units in enumerate(SETS)})
  race = racing.race(SETS, train, 3, regret=0, overlap=0.5)
  assert train.calls == [(fold, SETS) for fold in range(3)]
  assert (race.winner, race.trained, race.saved) == (SETS[2], 12, 0)
  assert all(score.complete for score in race.scores.values())
  assert not any(rung.dropped for rung in race.rungs)


def test_accuracies_alone_take_two_folds():
  accuracy = np.array([[0.3], [0.9], [0.4], [0.35]]) + np.array([0.0, 0.05, 0.01])
  accuracy[0, 0] += 0.01
  train = Trainer({u: list(row) for u, row in zip(SETS, accuracy, strict=True)})
  race = racing.race(SETS, train, 3, regret=0.01, overlap=0.5)
  assert train.calls == [(0, SETS), (1, SETS), (2, [SETS[1]])]
  assert race.winner == SETS[1]
  once = racing.race(SETS, train, 1, regret=0.01, overlap=0)
  assert once.winner == SETS[1]
  assert math.isnan(once.expected_regret)


def test_one_set():
  train = Trainer({("block0",): [answers(50)] * 3})
  race = racing.race([("block0",)], train, 3, regret=0.01, overlap=0.5)
  assert (race.winner, race.trained, race.saved) == (("block0",), 3, 0)
  assert race.expected_regret == 0


def test_known_scores_are_not_trained_again():
  cells = {units: [answers(90 if i == 1 else 30)] * 5 for i, units in enumerate(SETS)}
  train = Trainer(cells)
  known = [
    scores.Score(SETS[0], tuple(cells[SETS[0]])),
    scores.Score(SETS[1], (cells[SETS[1]][0], None, cells[SETS[1]][2], None, None)),
    scores.Score((), tuple([answers(20)] * 5)),  # the head alone is no candidate
  ]
  race = racing.race(SETS, train, 5, regret=0.01, overlap=0.25, known=known)
  assert train.calls == [(0, SETS[2:]), *((fold, [SETS[1]]) for fold in (1, 3, 4))]
  assert race.winner == SETS[1]
  assert list(race.scores) == SETS
  assert (race.trained, race.saved) == (5, 8)


def falling_winner():
  """block0 leads on fold 0, but what is known of another set says that fold was its lucky one."""
  rng = np.random.default_rng(0)
  level = {
    SETS[0]: (90, 62, 61, 60, 62),
    SETS[1]: (82, 81, 80, 82, 82),
    SETS[2]: (81, 77, 75, 76, 75),
    SETS[3]: (31, 29, 30, 30, 30),
  }
  cells = {u: [rng.permutation(answers(p)) for p in row] for u, row in level.items()}
  other = tuple(rng.permutation(answers(p)) for p in (80, 80, 81, 80, 79))
  return cells, scores.Score((), other)


def test_a_winner_that_falls_goes_back_to_the_race():
  cells, other = falling_winner()
  train = Trainer(cells)
  options = {"regret": 0.02, "overlap": 0.25}
  race = racing.race(SETS, train, 5, known=[other], **options)
  assert train.calls[:5] == [(0, SETS), *((fold, [SETS[0]]) for fold in range(1, 5))]
  assert race.rungs[0].dropped == tuple(SETS[1:])
  # Two come back.
  assert race.rungs[1] == racing.Rung(1, (SETS[1], SETS[2]), (SETS[2],))
  assert race.winner == SETS[1]
  assert race.scores[SETS[1]].complete
  assert race.expected_regret <= 0.02
  # With no other set on its last folds, they may have been hard ones as well.
  assert racing.race(SETS, Trainer(cells), 5, **options).winner == SETS[0]


def test_the_regret_is_that_of_the_scores():
  cells, other = falling_winner()
  race = racing.race(SETS, Trainer(cells), 5, regret=0.02, overlap=0.25, known=[other])
  draws = certificate.draw_means(list(race.scores.values()), overlap=0.25, references=[other])
  expected = np.mean(draws.max(axis=0) - draws[SETS.index(race.winner)])
  assert race.expected_regret == pytest.approx(expected, abs=5e-4)


# --- Simulated races -----------------------------------------------------------------------------


class Images:
  """16 candidates on 5 folds of 200 images, each of which has a difficulty for all.

  A candidate is right where ability + difficulty + noise of its own > 0. Its accuracy on all images
  of the world is known. The noise of training shifts a cell by about `training` in accuracy, a
  fifth of its variance in all folds of a candidate alike.
  """

  def __init__(self, gaps, training, seed):
    rng = np.random.default_rng(seed)
    slope = 0.28  # of accuracy by ability at 0.8
    self.ability = 0.84 + np.asarray(gaps) / slope
    self.accuracy = np.array([0.5 * math.erfc(-a / math.sqrt(2)) for a in self.ability])
    self.difficulty = rng.normal(0, math.sqrt(0.7), (5, 200))
    shared, own = math.sqrt(0.25) * rng.normal(size=(16, 1)), rng.normal(size=(16, 5))
    self.shift = training / slope * (shared + own)
    self.sets = [(f"block{i}",) for i in range(16)]
    self.seed = seed

  def __call__(self, sets, fold):
    return [self._cell(self.sets.index(units), fold) for units in sets]

  def _cell(self, i, fold):
    own = np.random.default_rng((self.seed, i, fold)).normal(0, math.sqrt(0.3), 200)
    right = self.ability[i] + self.shift[i, fold] + self.difficulty[fold] + own > 0
    return right.astype(np.float64)


def simulate(monkeypatch, gaps, training, regret, num_races):
  """Returns [num_races] true regrets, expected ones and trainings saved."""
  monkeypatch.setattr(racing, "NUM_DRAWS", 500)
  rows = []
  for seed in range(num_races):
    images = Images(gaps(np.random.default_rng((7, seed))), training, seed)
    race = racing.race(images.sets, images, 5, regret=regret, overlap=0.25)
    assert race.trained + race.saved == 80
    lost = images.accuracy.max() - images.accuracy[images.sets.index(race.winner)]
    rows.append((lost, race.expected_regret, race.saved))
  return np.array(rows).T


# Candidates, noise of training, regret allowed, races; least share of the 80 trainings saved.
RACES = {
  "far apart": (lambda rng: rng.normal(0, 0.1, 16), 0.0, 0.005, 60, 0.5),
  "apart": (lambda rng: rng.normal(0, 0.03, 16), 0.01, 0.01, 60, 0.5),
  "close": (lambda rng: rng.normal(0, 0.01, 16), 0.01, 0.01, 60, 0.5),
  "equal": (lambda rng: np.zeros(16), 0.01, 0.01, 30, 0.5),
  "evenly spaced": (lambda rng: 0.004 * rng.permutation(16), 0.0, 0.01, 60, 0.4),
  "heavy tails": (lambda rng: 0.01 * rng.standard_t(2, 16), 0.0, 0.01, 60, 0.4),
}


@pytest.mark.parametrize("name", RACES)
def test_true_regret_is_within_the_bound(name, monkeypatch):
  gaps, training, regret, num_races, saving = RACES[name]
  lost, expected, saved = simulate(monkeypatch, gaps, training, regret, num_races)
  assert lost.mean() <= regret
  assert lost.mean() <= expected.mean() + 2 * lost.std() / np.sqrt(num_races)
  assert saved.mean() / 80 > saving


def test_a_smaller_regret_costs_more_trainings(monkeypatch):
  gaps, training, *_ = RACES["apart"]
  saved = [simulate(monkeypatch, gaps, training, r, 10)[2].mean() for r in (0.003, 0.01, 0.03)]
  assert saved == sorted(saved)
  assert saved[0] < saved[2] - 10


def test_refusals():
  train = Trainer({units: [answers(50)] * 2 for units in SETS})

  def race(sets=SETS, train=train, num_folds=2, **options):
    return racing.race(sets, train, num_folds, **{"regret": 0.01, "overlap": 1.0} | options)

  with pytest.raises(ValueError, match=r"sets are \[\]"):
    race([])
  with pytest.raises(ValueError, match="each once"):
    race([SETS[0], SETS[0]])
  with pytest.raises(ValueError, match="num_folds is 0"):
    race(num_folds=0)
  with pytest.raises(ValueError, match=r"regret is -0\.1"):
    race(regret=-0.1)
  with pytest.raises(ValueError, match="overlap is -1"):
    race(overlap=-1)
  with pytest.raises(ValueError, match="train gave 0 cells for 4 sets"):
    race(train=lambda sets, fold: [])
  with pytest.raises(ValueError, match="known score of block0 has 1 folds, not 2"):
    race(known=[scores.from_accuracies(SETS[0], [0.5])])
  with pytest.raises(ValueError, match="known scores are of the sets"):
    race(known=[scores.from_accuracies(SETS[0], [0.5, 0.5])] * 2)
  with pytest.raises(ValueError, match="without a finite accuracy"):
    race(train=lambda sets, fold: [np.array([np.nan])] * len(sets))
