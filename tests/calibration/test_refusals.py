"""What outside jit is an error is NaN inside it; low precision is computed in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import calibration

N, C = 12, 4
ABSENT = np.array([False, False, True, True])
LABELS = np.arange(N) % C
SEEN = np.arange(N) % 2
Z = np.random.default_rng(0).normal(size=(N, C)).astype(np.float32)
SETS = np.stack([ABSENT, ~ABSENT])


def curve_numbers(z, y):
  curve = calibration.seen_unseen_curve(z, y, ABSENT)
  return jnp.stack([
    curve.ausuc(), curve.best_gamma(), *curve.best_harmonic_mean(), curve.seen[0], curve.unseen[0],
    curve.overall[0],
  ])  # fmt: skip


def pseudo(z, y):
  left_out = [[False, True, False, False]]
  return calibration.pseudo_cross_validation_gamma([z], [y], left_out, ABSENT)


# Function of logits and labels; the labels that it takes; the label that it refuses.
OF_LABELS = {
  "nll": (calibration.nll, LABELS, (-1, C)),
  "brier": (calibration.brier, LABELS, (-1, C)),
  "ece": (calibration.ece, LABELS, (-1, C)),
  "mass": (lambda z, y: calibration.ece(z, y, binning="mass"), LABELS, (-1, C)),
  "curve": (curve_numbers, LABELS, (-1, C)),
  "accuracy": (lambda z, y: calibration.accuracy_matrix(z, y, SETS, SETS), LABELS, (-1, C)),
  "temperature": (calibration.fit_temperature, LABELS, (-1, C)),
  "means": (lambda z, y: calibration.class_means(z, y, C)[0], LABELS, (-1, C)),
  "ALG": (lambda z, y: calibration.average_logit_gap(z, y, ABSENT), SEEN, (-1, 2, C)),
  "PCV": (pseudo, SEEN, (-1, 2, C)),
}
OF_LOGITS = {
  "calibrate": lambda z: calibration.calibrate(z, ABSENT, 0.5),
  "margins": lambda z: calibration.margins(z, ABSENT),
  "decompose": lambda z: jnp.concatenate([x.ravel() for x in calibration.decompose(z, ABSENT)]),
  "divided": lambda z: calibration.apply_temperature(z, 2.0),
  "ncm": lambda z: calibration.ncm_logits(z, np.eye(C), np.ones(C, int)),
}


def refused_and_nan(f, good, bad):
  """The good arguments give numbers under vmap beside the bad ones, which give NaN."""
  pairs = [jnp.stack([jnp.asarray(a), jnp.asarray(b)]) for a, b in zip(good, bad, strict=True)]
  got = np.asarray(jax.jit(jax.vmap(f))(*pairs))
  assert np.isfinite(got[0]).all()
  np.testing.assert_allclose(got[0], np.asarray(f(*good)), rtol=1e-3, atol=1e-5)
  assert np.isnan(got[1]).any()
  if got[1].ndim == 0 or not np.isfinite(got[1]).any():
    assert np.isnan(got[1]).all()
  with pytest.raises(ValueError, match=r"NaN|inf|label|class"):
    f(*bad)


@pytest.mark.parametrize("name", OF_LABELS)
def test_labels_that_are_refused_are_nan_under_jit(name):
  f, labels, wrong = OF_LABELS[name]
  for label in wrong:
    refused_and_nan(f, (Z, labels), (Z, np.where(np.arange(N) == 3, label, labels)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", [*OF_LABELS, *OF_LOGITS])
def test_logits_that_are_refused_are_nan_under_jit(name, value):
  z = Z.copy()
  z[5, 1] = value
  if name in OF_LABELS:
    f, labels, _ = OF_LABELS[name]
    refused_and_nan(f, (Z, labels), (z, labels))
  else:
    refused_and_nan(OF_LOGITS[name], (Z,), (z,))


def test_masks_and_numbers_that_are_refused_are_nan_under_jit():
  curve = lambda y, absent: calibration.ausuc(Z, y, absent)  # noqa: E731
  refused_and_nan(curve, (LABELS, ABSENT), (LABELS, np.ones(C, bool)))
  refused_and_nan(curve, (LABELS, ABSENT), (SEEN, ABSENT))
  shifted = lambda gamma: calibration.calibrate(Z, ABSENT, gamma)  # noqa: E731
  for bad in (np.nan,):
    refused_and_nan(shifted, (np.float32(1),), (np.float32(bad),))
  divided = jax.jit(lambda t: calibration.apply_temperature(Z, t))
  assert np.isnan(divided(0.0)).all()
  gap = jax.jit(lambda absent: calibration.average_logit_gap(Z, SEEN, absent))
  assert np.isnan(gap(np.array([False, True, True, True])))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_reaches_the_best_accuracy(dtype):
  generator = np.random.default_rng(1)
  for _ in range(100):
    z = jnp.asarray(4 * generator.normal(size=(40, 6)), dtype)
    labels, absent = generator.integers(0, 6, 40), np.arange(6) >= 3
    curve = calibration.seen_unseen_curve(z, labels, absent)
    moved = calibration.calibrate(z, absent, curve.best_gamma())
    assert moved.dtype == jnp.float32
    exact = np.asarray(z, np.float64) + np.where(absent, curve.best_gamma(), 0)
    right = int((exact.argmax(1) == labels).sum())
    assert int((np.asarray(moved).argmax(1) == labels).sum()) == right == curve.right.max()
  far = calibration.calibrate(z, absent, 1e5)
  assert np.isfinite(far).all()
  assert absent[np.asarray(far).argmax(1)].all()
  numpy = calibration.calibrate(np.asarray(z), absent, 1e5)
  np.testing.assert_array_equal(numpy, far)
  assert calibration.calibrate(np.asarray(z, np.float64), absent, 1e5).dtype == np.float64
  np.testing.assert_array_equal(
    calibration.apply_temperature(z, 3.0), calibration.apply_temperature(z.astype("float32"), 3.0)
  )
