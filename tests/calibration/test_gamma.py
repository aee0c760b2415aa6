"""ALG, PCV and eq. 4 by hand; no data of absent classes reach them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import calibration

INF = np.inf
ANIMALS = np.array([0.1, 0.2, 0.4, 0.3])  # dog, cat, horse, cow
ABSENT = np.array([True, True, False, False])


def training_data(seed=0, n=50, c=6):
  generator = np.random.default_rng(seed)
  absent = np.arange(c) % 2 == 1
  return generator.normal(size=(n, c)), generator.choice(np.flatnonzero(~absent), n), absent


@pytest.mark.parametrize("xp", [np, jnp])
def test_calibrate(xp):
  logits = xp.asarray(ANIMALS)
  assert int(logits.argmax()) == 2
  moved = calibration.calibrate(logits, ABSENT, 0.5)
  assert int(moved.argmax()) == 1
  np.testing.assert_allclose(moved, [0.6, 0.7, 0.4, 0.3], rtol=1e-6)
  assert isinstance(moved, np.ndarray if xp is np else jax.Array)
  assert moved.dtype == logits.dtype
  np.testing.assert_array_equal(calibration.calibrate(logits, ABSENT, INF)[2:], [-INF, -INF])
  np.testing.assert_array_equal(calibration.calibrate(logits, ABSENT, -INF)[2:], logits[2:])
  many = jax.vmap(calibration.calibrate, (None, None, 0))(
    jnp.asarray(logits)[None, None], ABSENT, jnp.array([-INF, 0, 0.5, INF])
  )
  assert many.argmax(-1).ravel().tolist() == [2, 2, 1, 1]


def test_calibrate_refuses():
  with pytest.raises(ValueError, match="gamma is NaN"):
    calibration.calibrate(ANIMALS, ABSENT, np.nan)
  with pytest.raises(ValueError, match=r"jax\.vmap"):
    calibration.calibrate(ANIMALS, ABSENT, np.zeros(4))


def test_average_logit_gap_is_its_formula():
  logits, labels, absent = training_data()
  gaps = []
  for z, y in zip(logits, labels, strict=True):
    others = [z[c] for c in range(6) if not absent[c] and c != y]
    gaps.append(np.mean(others) - np.mean(z[absent]))
  gamma = calibration.average_logit_gap(logits, labels, absent)
  assert gamma == pytest.approx(np.mean(gaps), abs=1e-14)
  z = jnp.asarray(logits, jnp.float32)
  for f in (calibration.average_logit_gap, jax.jit(calibration.average_logit_gap)):
    assert float(f(z, labels, absent)) == pytest.approx(gamma, abs=1e-6)
  shifted = logits + np.arange(50)[:, None]
  assert calibration.average_logit_gap(shifted, labels, absent) == pytest.approx(gamma, abs=1e-12)


def test_average_logit_gap_does_not_see_the_answers_logit():
  logits, labels, absent = training_data()
  gamma = calibration.average_logit_gap(logits, labels, absent)
  logits[np.arange(50), labels] += 3
  assert calibration.average_logit_gap(logits, labels, absent) == pytest.approx(gamma, abs=1e-14)


def test_mean_of_a_long_array():
  logits = np.full((300_000, 4), [0.1, 0.1, 0.0, 0.0], np.float32)
  labels, absent = np.zeros(300_000, int), np.array([False, False, True, True])
  expected = float(np.float32(0.1))
  assert calibration.average_logit_gap(logits, labels, absent) == pytest.approx(expected, abs=1e-15)
  traced = jax.jit(calibration.average_logit_gap)(logits, labels, absent)
  assert float(traced) == pytest.approx(expected, abs=1e-8)


def test_absent_labels_cannot_reach_average_logit_gap():
  logits, labels, absent = training_data()
  labels[7] = 3
  with pytest.raises(ValueError, match="row 7 has the label 3 of an absent class"):
    calibration.average_logit_gap(logits, labels, absent)


def test_average_logit_gap_refuses():
  with pytest.raises(ValueError, match="at least 2 seen"):
    calibration.average_logit_gap([[1.0, 2.0]], [0], [False, True])
  with pytest.raises(ValueError, match="-inf"):
    calibration.average_logit_gap([[1.0, 2.0, -INF]], [0], [False, False, True])


def pcv_data(seed=1):
  """Three splits of six classes, of which class 5 is absent."""
  absent = np.arange(6) == 5
  splits = calibration.pseudo_splits(absent, 3, seed)
  generator = np.random.default_rng(seed)
  labels = [generator.permutation(np.arange(40) % 5) for _ in splits]
  logits = [generator.normal(size=(40, 6)) + 2 * np.eye(6)[y] - 1.5 * s
            for y, s in zip(labels, splits, strict=True)]  # fmt: skip
  return logits, labels, splits, absent


def test_pseudo_cross_validation_balances():
  logits, labels, splits, absent = pcv_data()
  gammas = []
  for z, y, split in zip(logits, labels, splits, strict=True):
    gamma = calibration.pseudo_cross_validation_gamma([z], [y], [split], absent)
    gammas.append(gamma)

    grid = np.append(np.linspace(-8, 8, 4001), gamma)
    right = (z + grid[:, None, None] * split)[..., :5].argmax(-1) == y
    difference = abs(right[:, ~split[y]].mean(1) - right[:, split[y]].mean(1))
    assert difference[-1] == pytest.approx(difference.min(), abs=1e-12)
    assert 0.5 < gamma < 3
  together = calibration.pseudo_cross_validation_gamma(logits, labels, splits, absent)
  assert together == pytest.approx(np.mean(gammas), abs=1e-14)
  traced = jax.jit(lambda z: calibration.pseudo_cross_validation_gamma(z, labels, splits, absent))
  assert float(traced(logits)) == pytest.approx(together, abs=1e-6)


def test_absent_classes_cannot_reach_pseudo_cross_validation():
  logits, labels, splits, absent = pcv_data()
  gamma = calibration.pseudo_cross_validation_gamma(logits, labels, splits, absent)
  for poison in (1e6, -1e6, np.nan, INF):
    poisoned = [np.where(absent, poison, z) for z in logits]
    again = calibration.pseudo_cross_validation_gamma(poisoned, labels, splits, absent)
    assert again == gamma
  labels[1][4] = 5
  with pytest.raises(ValueError, match="split 1: row 4 has the label 5 of an absent class"):
    calibration.pseudo_cross_validation_gamma(logits, labels, splits, absent)


def test_pseudo_cross_validation_refuses():
  logits, labels, splits, absent = pcv_data()
  pcv = calibration.pseudo_cross_validation_gamma
  with pytest.raises(ValueError, match="got 3, 2 and 3"):
    pcv(logits, labels[:2], splits, absent)
  with pytest.raises(ValueError, match=r"split 0: classes \[5\] are absent"):
    pcv(logits, labels, splits | absent, absent)
  with pytest.raises(ValueError, match="split 0: no example has the label of a pseudo-absent"):
    pcv(logits, [np.flatnonzero(~splits[0])[:1].repeat(40)] * 3, splits, absent)


def test_pseudo_splits():
  absent = np.arange(11) >= 6
  splits = calibration.pseudo_splits(absent, 4, seed=3)
  assert splits.shape == (4, 11)
  assert (splits.sum(1) == 3).all()
  assert not (splits & absent).any()
  assert len({tuple(s) for s in splits}) > 1
  np.testing.assert_array_equal(splits, calibration.pseudo_splits(absent, 4, seed=3))
  with pytest.raises(ValueError, match="two seen classes"):
    calibration.pseudo_splits([True, False])
