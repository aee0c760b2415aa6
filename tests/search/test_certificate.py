"""Certificates against the model worked out densely, and their calibration on simulated tables."""

import time

import numpy as np
import pytest
from scipy import stats

from subtune_jax.search import certificate, scores
from tests import marks

NAN = np.nan


def as_scores(accuracy):
  return [scores.from_accuracies((f"block{i}",), row) for i, row in enumerate(accuracy)]


def simulated(rng, means, noise, overlap, folds=5):
  """[sets, folds] accuracies as the model has them."""
  shape = (len(means), folds)
  shared = np.sqrt(overlap) * rng.normal(size=(len(means), 1))
  fold_effects = rng.normal(0, 0.03, folds)
  return 0.7 + means[:, None] + fold_effects + noise * (rng.normal(size=shape) + shared)


def posterior_densely(accuracy, overlap, num_candidates, image_variance=0.0):
  """Mean and covariance of mu less its mean over the candidates, by the full covariance matrix.

  All flat priors are normal ones of standard deviation 30; tau and sigma are on a fine grid.
  """
  c, j = np.nonzero(np.isfinite(accuracy))
  y = accuracy[c, j] - np.nanmean(accuracy)
  own, fold = (c[:, None] == c).astype(float), (j[:, None] == j).astype(float)
  candidate = c < num_candidates
  to_mu = (np.arange(num_candidates)[:, None] == c).astype(float)
  centre = np.eye(num_candidates) - 1 / num_candidates
  tau, noise = np.meshgrid(np.geomspace(2e-5, 0.5, 50), np.geomspace(2e-5, 0.5, 80))
  # The grid is even in the logarithms.
  prior = tau / (1 + (tau / 0.05) ** 2)
  prior *= noise / (1 + (noise / 0.005) ** 2 / 3) ** 2 if image_variance else 1
  tau2, sigma2 = tau[..., None, None] ** 2, image_variance + noise[..., None, None] ** 2
  covariance = 900 * (fold + own * ~candidate) + tau2 * own * candidate
  covariance = covariance + sigma2 * (overlap * own + np.eye(len(y)))
  inverse = np.linalg.inv(covariance)
  log = -0.5 * np.linalg.slogdet(covariance)[1] - 0.5 * np.einsum("i,...ij,j", y, inverse, y)
  weights = prior * np.exp(log - log.max())
  weights = (weights / weights.sum())[..., None, None]
  gain = tau2 * to_mu @ inverse
  mu = centre @ gain @ y[:, None]
  left = centre @ (tau2 * (np.eye(num_candidates) - gain @ to_mu.T)) @ centre
  mean = np.sum(weights * mu, axis=(0, 1))
  square = np.sum(weights * (left + mu @ np.swapaxes(mu, -1, -2)), axis=(0, 1))
  return mean[:, 0], square - mean @ mean.T


TABLES = {
  "full": [[0.80, 0.75, 0.79], [0.78, 0.74, 0.78], [0.79, 0.72, 0.77], [0.75, 0.70, 0.76]],
  "dropped": [[0.80, 0.75, 0.79], [0.79, 0.76, 0.78], [0.78, 0.72, NAN], [0.75, NAN, NAN]],
  "chain": [
    [0.80, NAN, NAN],
    [0.79, 0.75, NAN],
    [0.785, 0.755, NAN],
    [NAN, 0.76, 0.79],
    [NAN, NAN, 0.78],
  ],
  "holes": [[0.80, NAN, 0.79], [NAN, 0.74, 0.78], [0.79, 0.72, NAN], [0.75, 0.71, 0.74]],
}


@pytest.mark.parametrize("overlap", [0, 0.5])
@pytest.mark.parametrize("references", [0, 1])
@pytest.mark.parametrize("name", TABLES)
def test_posterior_is_that_of_the_dense_model(name, references, overlap):
  table, count = np.array(TABLES[name]), len(TABLES[name])
  if references:
    table = np.vstack([table, [0.73, 0.69, 0.72]])
  made = as_scores(table)
  draws = certificate.draw_means(
    made[:count], overlap=overlap, references=made[count:], num_draws=20_000
  )
  draws = draws - draws.mean(axis=0)
  mean, covariance = posterior_densely(table, overlap, count)
  np.testing.assert_allclose(draws.mean(axis=1), mean, atol=2e-4)
  np.testing.assert_allclose(np.cov(draws), covariance, atol=0.06 * np.trace(covariance))


def test_one_fold_has_the_noise_of_its_images():
  rng = np.random.default_rng(0)
  common = rng.random(300)
  answers = [(0.5 * common + 0.5 * rng.random(300) < p) * 1.0 for p in (0.55, 0.6, 0.62)]
  made = [scores.Score((f"block{i}",), (cell,)) for i, cell in enumerate(answers)]
  # By hand: residuals of sets by images.
  residual = answers - np.mean(answers, axis=0) - np.mean(answers, axis=1, keepdims=True)
  residual += np.mean(answers)
  variance = np.sum(residual**2) / (2 * 299) / 300
  mean, covariance = posterior_densely(np.mean(answers, axis=1, keepdims=True), 0.25, 3, variance)
  draws = certificate.draw_means(made, overlap=0.25, num_draws=20_000)
  draws = draws - draws.mean(axis=0)
  np.testing.assert_allclose(draws.mean(axis=1), mean, atol=2e-4)
  np.testing.assert_allclose(np.cov(draws), covariance, atol=0.06 * np.trace(covariance))


def test_two_leaders_far_from_the_rest_are_a_t_test():
  """Without shrinkage mu_0 - mu_1 has the t distribution of the pooled residuals."""
  rng = np.random.default_rng(1)
  means = np.array([0.3, 0.3, *np.linspace(-0.3, 0, 10)])
  accuracy = 0.5 + simulated(rng, means, 0.005, 0.25) - 0.7
  accuracy[0] += 0.004 - np.mean(accuracy[0] - accuracy[1])
  residual = accuracy - accuracy.mean(axis=0) - accuracy.mean(axis=1, keepdims=True)
  residual += accuracy.mean()
  freedom = 11 * 4
  error = np.sqrt(2 * np.sum(residual**2) / freedom * (1 / 5 + 0.25))
  expected = stats.t.cdf(0.004 / error, freedom)
  assert 0.7 < expected < 0.95
  found = certificate.certify(as_scores(accuracy), ("block0",), overlap=0.25, num_draws=40_000)
  assert found.probability_best == pytest.approx(expected, abs=0.01)
  assert found.undecided[0] == (("block0",), found.probability_best)
  assert [units for units, _ in found.undecided] == [("block0",), ("block1",)]


# --- Calibration ---------------------------------------------------------------------------------

FLAT = 1e-9  # sets that are equal but for a number that says which is the best


def one_good(rng):
  means = rng.normal(0, FLAT, 16)
  means[rng.integers(16)] += 0.02
  return means


POPULATIONS = {
  "normal": lambda rng: rng.normal(0, 0.01, 16),
  "equal": lambda rng: rng.normal(0, FLAT, 16),
  "one good": one_good,
  "evenly spaced": lambda rng: 0.002 * rng.permutation(16),
  "heavy tails": lambda rng: 0.005 * rng.standard_t(2, 16),
}


def prior(rng):
  tau = 0.5
  while tau >= 0.5:
    tau = 0.05 * abs(np.tan(np.pi * (rng.random() - 0.5)))
  return rng.normal(0, tau, 16)


def judge(population, num_tables, true_overlap, noise=None, seed=0):
  """Certificates of 16 sets on 5 folds.

  Returns:
    [num_tables] each: probability that the winner is the best; whether it is; whether the best is
    in `undecided`; expected regret; true regret.
  """
  rng = np.random.default_rng(seed)
  rows = []
  for _ in range(num_tables):
    means = population(rng)
    sigma = noise or np.exp(rng.uniform(np.log(0.003), np.log(0.03)))
    accuracy = simulated(rng, means, sigma, true_overlap)
    winner, best = accuracy.mean(axis=1).argmax(), means.argmax()
    found = certificate.certify(
      as_scores(accuracy), (f"block{winner}",), overlap=0.25, num_draws=500
    )
    kept = (f"block{best}",) in dict(found.undecided)
    regret = means.max() - means[winner]
    rows.append((found.probability_best, winner == best, kept, found.expected_regret, regret))
  return np.array(rows, float).T


def test_calibration_where_the_model_holds():
  """Stated is true: in bins of stated probability, within three standard errors."""
  stated, hit, kept, expected, regret = judge(prior, 800, 0.25)
  for low, high in [(0, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.01)]:
    own = (stated >= low) & (stated < high)
    assert own.sum() > 40
    error = np.sqrt(np.mean(stated[own] * (1 - stated[own])) / own.sum())
    assert abs(stated[own].mean() - hit[own].mean()) < 3 * error + 0.005, (low, high)
  assert abs(stated.mean() - hit.mean()) < 0.03
  assert kept.mean() > 0.95
  assert abs(expected.mean() - regret.mean()) < 3 * regret.std() / np.sqrt(800)


# By population: how much more often than it is the best the winner may be said to be; how often
# `undecided` may miss the best; how far the true regret may exceed the expected one, in accuracy.
TOLERANCES = {
  "normal": (0.04, 0.05, 0.0004),
  # Where all sets are equal there is no best to be found: no choice costs anything.
  "equal": (0.17, 0.2, 0.0),
  "one good": (0.0, 0.01, 0.001),
  "evenly spaced": (0.07, 0.06, 0.0002),
  "heavy tails": (0.0, 0.05, 0.0006),
}


@pytest.mark.parametrize("name", marks.first(3, POPULATIONS))
def test_calibration_of_other_candidates(name):
  says_too_much, misses, costs = TOLERANCES[name]
  stated, hit, kept, expected, regret = judge(POPULATIONS[name], 300, 0.25, noise=0.01)
  assert stated.mean() - hit.mean() < says_too_much
  assert kept.mean() > 1 - misses
  assert regret.mean() - expected.mean() < costs


def answers_of_images(rng, means, training, overlap, folds=2, images=600):
  """Scores of sets whose answers to images are drawn, with noise of training of a given size."""
  shape = (len(means), folds)
  accuracy = 0.7 + means[:, None] + training * rng.normal(size=shape)
  accuracy += training * np.sqrt(overlap) * rng.normal(size=(len(means), 1))
  cells = (rng.random((*shape, images)) < accuracy[..., None]).astype(np.float64)
  return [scores.Score((f"block{i}",), tuple(row)) for i, row in enumerate(cells)]


def test_claims_are_not_above_the_frequency_whether_or_not_folds_share_noise():
  """Two folds, overlap 1, with images: right where noise is shared, too low where none is."""
  for training, least, most in ((0.0, -0.45, -0.1), (0.02, -0.08, 0.08)):
    rng = np.random.default_rng(5)
    rows = []
    for _ in range(300):
      means = rng.normal(0, 0.02, 8)
      made = answers_of_images(rng, means, training, 1.0)
      winner = int(np.argmax([score.mean for score in made]))
      found = certificate.certify(made, made[winner].units, overlap=1.0, num_draws=500)
      rows.append((found.probability_best, winner == means.argmax()))
    stated, hit = np.mean(rows, axis=0)
    assert least < stated - hit < most, training  # the standard error of a frequency is 0.03


@pytest.mark.parametrize("name", ["normal", "heavy tails"])
def test_calibration_without_overlap_errs_on_the_safe_side(name):
  stated, hit, kept, expected, regret = judge(POPULATIONS[name], 150, 0.0, noise=0.01)
  assert stated.mean() < hit.mean()
  assert kept.mean() > 0.97
  assert regret.mean() < expected.mean()


# --- Edges ---------------------------------------------------------------------------------------


def test_one_set():
  found = certificate.certify(as_scores([[0.5]]), ("block0",), overlap=0)
  assert (found.probability_best, found.expected_regret) == (1, 0)
  assert found.undecided == ((("block0",), 1.0),)
  assert found.decided
  assert certificate.describe(found) == "block0 is the only set tried"


def test_equal_scores():
  found = certificate.certify(as_scores(np.full((4, 5), 0.7)), ("block2",), overlap=0.25)
  assert [p for _, p in found.undecided] == pytest.approx([0.25] * 4, abs=0.03)
  assert found.expected_regret < 1e-5


def test_equal_answers_on_one_fold():
  made = [scores.Score((f"block{i}",), (np.ones(50),)) for i in range(4)]
  found = certificate.certify(made, ("block2",), overlap=0.25)
  assert found.probability_best == pytest.approx(0.25, abs=0.03)
  assert found.expected_regret < 1e-5


def test_no_residual_variance():
  """Sets that differ by the same on every fold are certain; ties are halved."""
  accuracy = np.array([[0.5], [0.6], [0.6], [0.55]]) + np.array([0.0, 0.1, 0.05])
  found = certificate.certify(as_scores(accuracy), ("block1",), overlap=0.5)
  assert found.probability_best == pytest.approx(0.5, abs=0.03)
  assert found.expected_regret < 1e-5
  accuracy[1] += 0.01
  found = certificate.certify(as_scores(accuracy), ("block1",), overlap=0.5)
  assert found.probability_best == 1
  found = certificate.certify(as_scores(accuracy), ("block0",), overlap=0.5)
  assert (found.probability_best, found.undecided) == (0, ((("block1",), 1.0),))
  assert found.expected_regret == pytest.approx(0.11, abs=1e-4)
  assert not found.decided


def test_undecided_is_the_smallest_set():
  rng = np.random.default_rng(3)
  made = as_scores(simulated(rng, rng.normal(0, 0.01, 16), 0.01, 0.25))
  draws = certificate.draw_means(made, overlap=0.25)
  best = np.sort(np.bincount(draws.argmax(axis=0), minlength=16) / draws.shape[1])[::-1]
  for level in (0.3, 0.8, 0.95):
    found = certificate.certify(made, ("block0",), overlap=0.25, level=level)
    assert [p for _, p in found.undecided] == best[: len(found.undecided)].tolist()
    assert best[: len(found.undecided)].sum() >= level
    assert best[: len(found.undecided) - 1].sum() < level


def test_same_seed_same_certificate():
  made = as_scores(simulated(np.random.default_rng(0), np.zeros(5), 0.01, 0))
  first, again, other = (
    certificate.certify(made, ("block1",), overlap=0.2, seed=seed) for seed in (1, 1, 2)
  )
  assert first == again != other
  assert first.probability_best == pytest.approx(other.probability_best, abs=0.03)


def test_folds_of_one_set_say_nothing():
  accuracy = np.array([[0.80, 0.75, NAN], [0.78, 0.76, NAN], [0.77, 0.71, NAN]])
  before = certificate.draw_means(as_scores(accuracy), overlap=0.5)
  accuracy[0, 2] = 0.1
  np.testing.assert_array_equal(certificate.draw_means(as_scores(accuracy), overlap=0.5), before)


def test_many_sets_take_little_time():
  rng = np.random.default_rng(0)
  accuracy = simulated(rng, rng.normal(0, 0.01, 250), 0.01, 0.25)
  accuracy[50:, 2:] = NAN
  start = time.process_time()
  found = certificate.certify(as_scores(accuracy), ("block0",), overlap=0.25)
  assert time.process_time() - start < 2
  assert found.tried == 250


def test_refusals():
  made = as_scores([[0.5, 0.6], [0.4, 0.6]])

  def certify(made, chosen=("block0",), **options):
    return certificate.certify(made, chosen, **{"overlap": 0.5} | options)

  with pytest.raises(ValueError, match=r"chosen set \('block7',\) was not tried"):
    certify(made, ("block7",))
  with pytest.raises(ValueError, match=r"two scores: \['block0'\]"):
    certify([*made, made[0]])
  with pytest.raises(ValueError, match=r"scores have \[1, 2\] folds"):
    certify([made[0], scores.from_accuracies(("block1",), [0.4])])
  with pytest.raises(ValueError, match="use two folds or more, or scores that hold the answers"):
    certify(as_scores([[0.5], [0.6], [0.7]]))
  with pytest.raises(ValueError, match="no two sets were trained on the same fold"):
    certify(as_scores([[0.5, NAN], [NAN, 0.6]]))
  with pytest.raises(ValueError, match="leave out sets without a finite accuracy"):
    certify(as_scores([[0.5, 0.6], [NAN, NAN]]))
  with pytest.raises(ValueError, match="leave out sets without a finite accuracy"):
    certify([made[0], scores.Score(("block1",), (np.array([NAN]), np.array([0.5])))])
  with pytest.raises(ValueError, match=r"fold 0 has cells of \[2, 3\] images"):
    certify([scores.Score((f"block{n}",), (np.ones(2 + n),)) for n in range(2)])
  with pytest.raises(ValueError, match="scores are empty"):
    certificate.draw_means([], overlap=0)
  with pytest.raises(ValueError, match="num_draws is 0"):
    certify(made, num_draws=0)
  with pytest.raises(ValueError, match="level is 1"):
    certify(made, level=1)
  with pytest.raises(ValueError, match="overlap is nan"):
    certify(made, overlap=NAN)


def test_describe():
  def text(undecided, probability=0.62, tried=16, chosen=("block14",)):
    return certificate.describe(
      certificate.Certificate(chosen, probability, 0.0031, undecided, 0.95, tried)
    )

  three = ((("block14",), 0.62), (("block13", "block14"), 0.3), ((), 0.05))
  assert text(three) == (
    "block14 is the best of 16 sets tried with probability 0.62 (expected regret 0.3 points);\n"
    "undecided between block14, block13+block14, the head alone"
  )
  assert text(((("block14",), 0.97),), 0.97).endswith("; decided at the level 0.95")
  assert text(((("block13",), 0.97),), 0.01).endswith("block13 is the best with probability 0.97")
  many = tuple(((f"block{i}",), 0.1) for i in range(10))
  assert text(many).endswith("between block0, block1, block2, block3, block4 and 5 more")


def test_a_long_set_is_named_by_its_ends():
  units = tuple(f"block{i}" for i in range(7))
  assert certificate.label(units[:6]) == "+".join(units[:6])
  assert certificate.label(units) == "block0+...+block6 (7 units)"
  assert certificate.label(()) == "the head alone"
