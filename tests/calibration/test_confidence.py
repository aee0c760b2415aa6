"""NLL, Brier, ECE and the scalings against hand values, scikit-learn and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special
from sklearn import linear_model, metrics

from subtune_jax import calibration
from subtune_jax.calibration import scaling


def case(seed=0, n=400, c=4, scale=2.5):
  generator = np.random.default_rng(seed)
  logits = generator.normal(size=(n, c))
  p = special.softmax(logits, 1)
  labels = (p.cumsum(1) > generator.random((n, 1))).argmax(1)
  return scale * logits, labels


def test_nll_and_brier_are_scikit_learns():
  logits, labels = case()
  p = special.softmax(logits, 1)
  nll = metrics.log_loss(labels, p)
  brier = np.mean(np.sum((p - np.eye(4)[labels]) ** 2, 1))
  two = metrics.brier_score_loss(labels == 1, special.expit(logits[:, 1]))
  assert calibration.nll(logits, labels) == pytest.approx(nll, abs=1e-12)
  assert calibration.brier(logits, labels) == pytest.approx(brier, abs=1e-12)
  binary = np.stack([0 * logits[:, 1], logits[:, 1]], 1)
  got = calibration.brier(binary, (labels == 1).astype(int))
  assert got == pytest.approx(2 * two, abs=1e-12)
  for f, expected in ((calibration.nll, nll), (calibration.brier, brier)):
    batches = jax.jit(jax.vmap(f))(logits.reshape(4, 100, 4), labels.reshape(4, 100))
    assert float(batches.mean()) == pytest.approx(expected, abs=1e-6)


def test_extreme_logits():
  logits = [[1e4, 0.0], [0.0, 1e4]]
  assert calibration.nll(logits, [0, 0]) == 5000
  assert calibration.brier(logits, [0, 0]) == 1
  assert calibration.nll([[0.0, -np.inf]], [1]) == np.inf


def loop_bins(logits, labels, num_bins):
  p = special.softmax(logits, 1)
  confidence, right = p.max(1), p.argmax(1) == labels
  total = 0
  for k in range(num_bins):
    inside = (confidence > k / num_bins) & (confidence <= (k + 1) / num_bins)
    if inside.any():
      total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
  return total


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_ece(binning):
  logits, labels = case(1)
  got = calibration.ece(logits, labels, num_bins=10, binning=binning)
  if binning == "width":
    assert got == pytest.approx(loop_bins(logits, labels, 10), abs=1e-12)
  counts = calibration.reliability(logits, labels, num_bins=10, binning=binning).counts
  assert counts.sum() == 400
  if binning == "mass":
    assert counts.tolist() == [40] * 10
  traced = jax.jit(lambda z, y: calibration.ece(z, y, num_bins=10, binning=binning))
  assert float(traced(logits, labels)) == pytest.approx(got, abs=1e-5)
  order = np.random.default_rng(2).permutation(400)
  again = calibration.ece(logits[order], labels[order], num_bins=10, binning=binning)
  assert again == pytest.approx(got, abs=1e-12)


def test_equal_confidences_share_a_bin():
  logits, labels = np.tile([1.0, 0.0], (6, 1)), np.array([0, 0, 0, 1, 1, 1])
  bins = calibration.reliability(logits, labels, num_bins=3, binning="mass")
  assert bins.counts.tolist() == [6, 0, 0]
  assert bins.accuracy[0] == 0.5


def test_edges_belong_to_the_lower_bin():
  logits = np.log([[0.5, 0.25, 0.25]])
  assert calibration.reliability(logits, [0], num_bins=2).counts.tolist() == [1, 0]
  assert calibration.reliability([[99.0, -99.0]], [0], num_bins=2).counts.tolist() == [0, 1]


def test_temperature_is_scipys():
  for seed in range(5):
    logits, labels = case(seed, scale=[0.3, 1, 2.5, 10, 40][seed])
    t = calibration.fit_temperature(logits, labels)
    found = optimize.minimize_scalar(
      lambda b: calibration.nll(logits * b, labels),  # noqa: B023
      bounds=(1e-4, 20), method="bounded", options={"xatol": 1e-12},
    )  # fmt: skip
    assert 1 / t == pytest.approx(found.x, rel=1e-5)
    scaled = calibration.apply_temperature(logits, t)
    assert calibration.nll(scaled, labels) <= found.fun + 1e-12
    assert scaled.argmax(1).tolist() == logits.argmax(1).tolist()
    slope = np.mean(np.sum(special.softmax(scaled, 1) * logits, 1) - logits[range(400), labels])
    assert abs(slope) < 1e-10  # the mean logit is that of the labels


def test_temperature_takes_few_passes(monkeypatch):
  logits, labels = case(8)
  passes, step = [], scaling._newton_step
  monkeypatch.setattr(scaling, "_newton_step", lambda *args: passes.append(0) or step(*args))
  calibration.fit_temperature(logits, labels)
  assert len(passes) <= 8


def test_temperature_under_jit():
  logits, labels = case(3)
  expected = calibration.fit_temperature(logits, labels)
  z = jnp.asarray(logits, jnp.float32)
  assert calibration.fit_temperature(z, labels) == pytest.approx(expected, rel=1e-4)
  assert float(jax.jit(calibration.fit_temperature)(z, labels)) == pytest.approx(expected, rel=1e-4)


def test_temperature_refuses():
  with pytest.raises(ValueError, match="T -> 0 is best"):
    calibration.fit_temperature([[1.0, 0.0], [0.0, 1.0]], [0, 1])
  with pytest.raises(ValueError, match="no better than chance"):
    calibration.fit_temperature([[1.0, 0.0], [0.0, 1.0]], [1, 0])
  with pytest.raises(ValueError, match="temperature is 0"):
    calibration.apply_temperature([1.0], 0)


def test_vector_scaling_is_scipys():
  logits, labels = case(4, n=600, c=3)
  labels = np.where(np.random.default_rng(5).random(600) < 0.2, 2, labels)
  for l2 in (0.0, 0.1):
    start = np.concatenate([np.ones(3), np.zeros(3)])

    def loss(x, l2=l2, start=start):
      return calibration.nll(logits * x[:3] + x[3:], labels) + l2 * np.sum((x - start) ** 2) / 2

    found = optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-7})
    fitted = calibration.fit_vector(logits, labels, l2=l2)
    assert fitted.gradient <= 1e-7
    np.testing.assert_allclose(fitted.scale, found.x[:3], atol=1e-4)
    np.testing.assert_allclose(fitted.bias, found.x[3:] - found.x[3:].mean(), atol=1e-4)
  on_device = calibration.fit_vector(jnp.asarray(logits, jnp.float32), labels, l2=0.1)
  np.testing.assert_allclose(on_device.scale, fitted.scale, atol=1e-3)
  scaled = calibration.apply_vector(logits, fitted)
  assert calibration.nll(scaled, labels) < calibration.nll(logits, labels) - 0.1


def test_vector_scaling_of_two_classes_is_a_logistic_regression():
  logits, labels = case(6, c=2)
  one_side = np.stack([np.zeros(400), logits[:, 1]], 1)
  fitted = calibration.fit_vector(one_side, labels)
  peer = linear_model.LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, 1:], labels)
  assert fitted.scale[1] == pytest.approx(peer.coef_[0, 0], abs=1e-4)
  assert fitted.bias[1] - fitted.bias[0] == pytest.approx(peer.intercept_[0], abs=1e-4)


def test_vector_scaling_refuses():
  logits, labels = case(7)
  with pytest.raises(ValueError, match=r"classes \[3\] have no examples"):
    calibration.fit_vector(logits[labels < 3], labels[labels < 3])
  with pytest.raises(ValueError, match="l2 is -1"):
    calibration.fit_vector(logits, labels, l2=-1)
  with pytest.raises(ValueError, match="outside jit"):
    jax.jit(calibration.fit_vector)(logits, labels)
  with pytest.raises(ValueError, match="for 4 classes"):
    calibration.apply_vector(np.zeros(3), calibration.fit_vector(logits, labels))


def test_confidence_refuses():
  with pytest.raises(ValueError, match="binning is 'equal'"):
    calibration.ece([[0.0, 1.0]], [0], binning="equal")
  with pytest.raises(ValueError, match="num_bins is 0"):
    calibration.ece([[0.0, 1.0]], [0], num_bins=0)
  with pytest.raises(ValueError, match="NaN"):
    calibration.nll([[0.0, np.nan]], [0])


@pytest.mark.parametrize("binning", ["width", "mass"])
@pytest.mark.parametrize("dtype", [np.float64, jnp.float32])
def test_confidences_that_differ_by_rounding_share_a_bin(binning, dtype):
  generator = np.random.default_rng(9)
  for classes in (7, 100):
    row = generator.normal(size=classes)
    row[0] = special.logsumexp(row[1:])  # of probability one half: at an edge between two bins
    z = np.stack([generator.permutation(row) for _ in range(400)])
    z = z if dtype is np.float64 else jnp.asarray(z, dtype)
    found = calibration.reliability(z, np.zeros(400, int), num_bins=4, binning=binning)
    assert found.counts.max() == 400
    traced = jax.jit(lambda z: calibration.reliability(z, np.zeros(400, int), num_bins=4,
                                                       binning=binning))  # fmt: skip
    assert traced(z).counts.max() == 400


def test_bins_of_equal_mass_are_split_at_quantiles():
  """Against a loop over examples in ascending order; confidences here tie exactly or not at all."""
  generator = np.random.default_rng(10)
  for n, num_bins in ((50, 7), (5, 8), (400, 15)):
    p = generator.integers(1, 30, n) / 100 + 0.6
    z = np.log(np.stack([p, 1 - p], 1))
    ordered, expected = np.sort(p), np.zeros(num_bins, int)
    for value in p:
      first = np.flatnonzero(np.isclose(ordered, value))[0]
      expected[max(k for k in range(num_bins) if k * n <= first * num_bins)] += 1
    got = calibration.reliability(z, np.zeros(n, int), num_bins=num_bins, binning="mass")
    assert got.counts.tolist() == expected.tolist()
