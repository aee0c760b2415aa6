"""Rules of acquisition against scipy, scikit-learn, jax's gradient and brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from subtune_jax import acquisition


def pool(size=40, classes=4, width=5, labelled=6, seed=0):
  rng = np.random.default_rng(seed)
  logits = rng.normal(0, 2, (size, classes))
  probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  known = rng.normal(size=(labelled, width)) if labelled else None
  return acquisition.Pool(size, probabilities, rng.normal(size=(size, width)), known)


def choose(rule, given, count, seed=0):
  return acquisition.RULES[rule].choose(given, count, seed)


def test_entropy_is_scipy_s_and_the_largest_come_first():
  given = pool()
  wanted = stats.entropy(given.probabilities, axis=1)
  assert acquisition.entropies(given.probabilities) == pytest.approx(wanted, abs=1e-12)
  assert choose("entropy", given, 7).places.tolist() == np.argsort(-wanted)[:7].tolist()
  assert acquisition.entropies(np.array([[1.0, 0.0]])) == [0.0]


def test_the_smallest_margins_come_first_and_ties_in_the_pool_s_order():
  given = pool()
  first = [max(row) - sorted(row)[-2] for row in given.probabilities.tolist()]
  found = choose("margin", given, 5)
  assert found.places.tolist() == sorted(range(40), key=first.__getitem__)[:5]
  assert found.scores.tolist() == sorted(first)[:5]
  even = acquisition.Pool(3, np.full((3, 2), 0.5))
  assert choose("margin", even, 3).places.tolist() == [0, 1, 2]


def test_random_is_uniform_and_by_the_seed():
  given = acquisition.Pool(6)
  draws = [choose("random", given, 2, seed).places for seed in range(3000)]
  assert all(len(set(draw.tolist())) == 2 for draw in draws)
  counts = np.bincount(np.concatenate(draws), minlength=6)
  assert stats.chisquare(counts).pvalue > 1e-3
  assert draws[7].tolist() == choose("random", given, 2, 7).places.tolist()


def brute_force_centres(features, known, count):
  taken, order, scores = [tuple(row) for row in known], [], []
  for _ in range(count):
    distances = metrics.pairwise_distances(features, np.array(taken)).min(1)
    distances[order] = -1
    order.append(int(distances.argmax()))
    scores.append(distances.max())
    taken.append(tuple(features[order[-1]]))
  return order, scores


def test_coreset_is_k_centre_greedy():
  given = pool()
  found = choose("coreset", given, 12)
  places, scores = brute_force_centres(given.features, given.labelled, 12)
  assert found.places.tolist() == places
  assert found.scores == pytest.approx(scores, abs=1e-9)


def test_coreset_s_radius_is_at_most_twice_the_best_one():
  given = pool(size=12, labelled=2)
  distances = metrics.pairwise_distances(given.features)
  known = metrics.pairwise_distances(given.features, given.labelled).min(1)

  def radius(places):
    return np.minimum(distances[:, list(places)].min(1), known).max()

  best = min(map(radius, itertools.combinations(range(12), 3)))
  assert best <= radius(choose("coreset", given, 3).places) <= 2 * best


def test_coreset_without_labelled_examples_starts_in_the_middle():
  given = pool(labelled=0)
  found = choose("coreset", given, 9)
  middle = np.linalg.norm(given.features - given.features.mean(0), axis=1).argmin()
  assert found.places[0] == middle
  rest, _ = brute_force_centres(given.features, given.features[[middle]], 8)
  assert found.places[1:].tolist() == rest


def gradients(given, kernel):
  """The head's gradient of each example for its own prediction, by jax."""

  def loss(w, feature, offset):
    logits = feature @ w + offset
    return -jax.nn.log_softmax(logits)[jnp.argmax(logits)]

  offset = np.log(given.probabilities) - given.features @ kernel
  return np.array([
    jax.grad(loss)(kernel, feature, own).ravel()
    for feature, own in zip(given.features, offset, strict=True)
  ])  # fmt: skip


def test_badge_is_k_means_plus_plus_on_the_head_s_gradients():
  given = pool(size=25)
  with jax.enable_x64(True):
    vectors = gradients(given, np.random.default_rng(1).normal(size=(5, 4)))
  found = choose("badge", given, 8, seed=3)
  rng, taken = np.random.default_rng(3), [int(np.linalg.norm(vectors, axis=1).argmax())]
  while len(taken) < 8:
    squares = metrics.pairwise_distances(vectors, vectors[taken]).min(1) ** 2
    squares[taken] = 0
    taken.append(int(rng.choice(25, p=squares / squares.sum())))
  assert found.places.tolist() == taken
  assert found.scores == pytest.approx(np.linalg.norm(vectors[taken], axis=1), rel=1e-6)


@pytest.mark.parametrize("rule", acquisition.RULES)
def test_every_example_comes_once_even_among_copies(rule):
  whole = pool(size=9)
  copies = acquisition.Pool(
    9, whole.probabilities[[0] * 9], whole.features[[0] * 9], whole.features[:1]
  )
  for given in (whole, copies):
    found = choose(rule, given, 9)
    assert sorted(found.places.tolist()) == list(range(9))
    assert len(found.scores) == 9


@pytest.mark.parametrize(
  ("rule", "given", "count", "said"),
  [
    ("margin", pool(), 41, "41 examples are wanted of a pool of 40; give 1 to 40"),
    ("margin", pool(), 0, "0 examples are wanted"),
    ("coreset", pool()._replace(features=None), 3, "'Coreset' needs features of 40 examples"),
    ("badge", pool()._replace(probabilities=np.ones((3, 2))), 3, r"found shape \(3, 2\)"),
    ("entropy", pool()._replace(probabilities=np.full((40, 2), np.nan)), 3, "not finite"),
  ],
)
def test_bad_pools_are_refused(rule, given, count, said):
  with pytest.raises(ValueError, match=said):
    choose(rule, given, count)
