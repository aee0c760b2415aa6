"""Interpolation, selection afterwards, the size of a shift, and the recommendation."""

import jax
import numpy as np
import pytest
from sklearn import linear_model, model_selection, preprocessing

from subtune_jax.robustness import domain_gap, interpolation, recommend, selection
from tests import tiny


def test_the_ends_of_an_interpolation_are_the_solutions_and_the_middle_by_hand():
  _, start = tiny.make(0)
  _, end = tiny.make(1)
  for alpha, wanted in ((0.0, start), (1.0, end)):
    found = interpolation.interpolate(start, end, alpha)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
      assert np.array_equal(np.asarray(a), np.asarray(b))
  middle = interpolation.interpolate(
    {"w": np.float32([1.0, 4.0])}, {"w": np.float32([3.0, 0.0])}, 0.25
  )
  np.testing.assert_array_equal(middle["w"], [1.5, 3.0])
  assert middle["w"].dtype == np.float32


def test_bad_interpolations():
  tree = {"a": np.ones(2)}
  with pytest.raises(ValueError, match="alpha is nan"):
    interpolation.interpolate(tree, tree, float("nan"))
  with pytest.raises(ValueError, match="differ in structure"):
    interpolation.interpolate(tree, {"b": np.ones(2)}, 0.5)
  with pytest.raises(ValueError, match=r"a is \(2,\) at the start and \(3,\)"):
    interpolation.interpolate(tree, {"a": np.ones(3)}, 0.5)


def training(rate, seed, validation, ood):
  epochs = [selection.Epoch(v, {"ood": o}) for v, o in zip(validation, ood, strict=True)]
  return selection.Training(rate, seed, tuple(epochs))


TRAININGS = [
  training(0.1, 0, [0.5, 0.9, 0.6], [0.1, 0.2, 0.3]),
  training(0.1, 1, [0.8, 0.5, 0.6], [0.1, 0.2, 0.3]),
  training(0.2, 0, [0.3, 0.4, 0.7], [0.9, 0.2, 0.1]),
  training(0.2, 1, [0.3, 0.4, 0.7], [0.2, 0.8, 0.1]),
]


def test_the_rules_by_hand():
  last = selection.choose(TRAININGS)
  assert (last.learning_rate, last.epochs, last.oracle) == (0.2, {0: 2, 1: 2}, False)
  early = selection.choose(TRAININGS, "early_stopping")
  assert (early.learning_rate, early.epochs) == (0.1, {0: 1, 1: 0})
  assert early.score == pytest.approx(0.85)
  oracle = selection.choose(TRAININGS, "oracle", oracle_sets=("ood",))
  assert (oracle.learning_rate, oracle.epochs, oracle.oracle) == (0.2, {0: 0, 1: 1}, True)
  assert last.at_edge
  assert not selection.choose(TRAININGS[:2]).at_edge


def test_no_rule_but_the_oracle_reads_a_test_set():
  poisoned = [
    training(t.learning_rate, t.seed, [e.validation for e in t.epochs], [float("nan")] * 3)
    for t in TRAININGS
  ]
  for rule in selection.RULES:
    assert selection.choose(poisoned, rule) == selection.choose(TRAININGS, rule)
  with pytest.raises(ValueError, match="the oracle needs the test sets"):
    selection.choose(TRAININGS, "oracle")
  with pytest.raises(ValueError, match="no other rule reads one"):
    selection.choose(TRAININGS, "last", oracle_sets=("ood",))
  with pytest.raises(ValueError, match="rule is 'best'"):
    selection.choose(TRAININGS, "best")


def test_ties_and_rates_with_fewer_seeds():
  tied = [training(rate, 0, [0.5, 0.5], [0, 0]) for rate in (0.3, 0.1)]
  found = selection.choose(tied, "early_stopping")
  assert (found.learning_rate, found.epochs) == (0.1, {0: 0})
  epochs = {0.3: selection.Epoch(0.5, {}, 1.0), 0.1: selection.Epoch(0.5, {}, 2.0)}
  tied = [selection.Training(rate, 0, (epoch,)) for rate, epoch in epochs.items()]
  assert selection.choose(tied).learning_rate == 0.3  # the lower loss
  on_first = [TRAININGS[0], *TRAININGS[2:]]  # seed 1 at the rate 0.2 only
  found = selection.choose(on_first, "early_stopping")  # 0.9 against 0.7 on seed 0
  assert (found.learning_rate, found.score, found.epochs) == (0.1, 0.9, {0: 1})
  found = selection.choose(on_first)
  assert (found.learning_rate, found.epochs) == (0.2, {0: 2, 1: 2})
  with pytest.raises(ValueError, match="no seed was trained at every rate"):
    selection.choose([TRAININGS[0], TRAININGS[3]])


def test_proxy_a_distance_against_scikit_learn_and_at_its_ends():
  rng = np.random.default_rng(0)
  first, second = rng.normal(size=(200, 5)), rng.normal(size=(120, 5)) + 0.8 * np.eye(5)[0]
  far = second + 50.0
  assert domain_gap.proxy_a_distance(first, far) == 2.0
  same = domain_gap.proxy_a_distance(first, rng.normal(size=(150, 5)))
  assert same < 0.35
  x, y = np.concatenate([first, second]), np.repeat([0, 1], [200, 120])
  scaled = preprocessing.StandardScaler().fit_transform(x)
  folds = model_selection.StratifiedKFold(5, shuffle=True, random_state=1)
  peer = linear_model.LogisticRegression(C=1 / (0.01 * 256))
  right = model_selection.cross_val_predict(peer, scaled, y, cv=folds) == y
  error = 1 - np.mean([right[y == label].mean() for label in (0, 1)])
  assert domain_gap.proxy_a_distance(first, second) == pytest.approx(2 * (1 - 2 * error), abs=0.12)
  with pytest.raises(ValueError, match="at least 10 of each"):
    domain_gap.proxy_a_distance(first, second[:9])


TITLES = {"lp": "Linear probing", "ft": "Full fine-tuning", "lp_ft": "LP-FT"}
MOVED = {"lp": 0.0, "ft": 0.5, "lp_ft": 0.1}


def answers(**accuracies):
  """Right answers of one seed on 400 images; the easier images are the same for all methods."""
  return {name: np.arange(400)[None] < 400 * accuracy for name, accuracy in accuracies.items()}


@pytest.mark.parametrize(
  ("correct", "shifts", "method", "strength"),
  [
    (answers(lp=0.5, ft=0.9, lp_ft=0.7), {"far": 1.9}, "ft", "clear"),
    (answers(lp=0.8, ft=0.8, lp_ft=0.8), {"near": 0.3, "far": 1.9}, "lp_ft", "weak"),
    (answers(lp=0.8, ft=0.8, lp_ft=0.8), {"near": 0.3}, "lp", "undecided"),
    (answers(lp=0.5, ft=0.8, lp_ft=0.8), {"far": 1.9}, "ft", "undecided"),
    (answers(lp=0.8, ft=0.8), {}, "lp", "undecided"),
  ],
)
def test_recommendations(correct, shifts, method, strength):
  found = recommend.recommend(correct, np.arange(400), MOVED, shifts, TITLES)
  assert (found.method, found.strength) == (method, strength)
  assert found.method in found.among
  text = " ".join(found.reasons)
  assert TITLES[found.among[0]] in text
  assert not shifts or "proxy A-distance" in text


def test_a_recommendation_needs_the_distortion_of_every_method():
  with pytest.raises(ValueError, match="give both"):
    recommend.recommend(answers(lp=0.5), np.arange(400), {}, {}, TITLES)
