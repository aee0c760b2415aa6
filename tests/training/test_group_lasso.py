"""The group lasso against plain proximal gradient steps in float64, and in bounded memory."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.special

from subtune_jax.training import feature_store, group_lasso
from tests import marks

STRENGTHS = (0.5, 0.1, 0.02)


def problem(seed):
  """(features [n, N], labels, weights of classes): a signal in some features, and noise."""
  rng = np.random.default_rng(seed)
  n, width, classes = int(rng.integers(40, 100)), int(rng.integers(20, 150)), 2 + seed % 4
  labels = rng.integers(0, classes, n)
  labels[:classes] = range(classes)
  x = np.abs(rng.normal(size=(n, width)) + rng.normal(size=(classes, width))[labels] * 0.4)
  x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
  return x, labels, rng.uniform(0.5, 2, classes) if seed % 2 else None


def stored(x, **fields):
  store = feature_store.FeatureStore(*x.shape, **fields)
  for begin in range(0, len(x), 7):
    store.write(begin, x[begin : begin + 7])
  return store


def objective(x, labels, weights, kernel, bias, strength):
  logits = x.astype(np.float64) @ kernel + bias
  losses = scipy.special.logsumexp(logits, axis=1) - logits[np.arange(len(x)), labels]
  return np.mean(weights * losses) + strength * np.linalg.norm(kernel, axis=1).sum()


def reference(x, labels, weights, classes, strength):
  """Accelerated proximal gradient steps on all features as they are, until nothing moves."""
  x = np.c_[x.astype(np.float64), np.ones(len(x))]
  rate = len(x) / (0.5 * np.linalg.norm(x * np.sqrt(weights)[:, None], 2) ** 2)
  now = ahead = np.zeros((x.shape[1], classes))
  truth, momentum = np.eye(classes)[labels], 1.0
  for _ in range(50_000):
    left = (scipy.special.softmax(x @ ahead, axis=1) - truth) * weights[:, None]
    new = ahead - rate * x.T @ left / len(x)
    norms = np.linalg.norm(new[:-1], axis=1, keepdims=True)
    new[:-1] *= np.maximum(1 - rate * strength / np.maximum(norms, 1e-300), 0)
    momentum = 1.0 if np.sum((ahead - new) * (new - now)) > 0 else momentum
    grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
    ahead = new + (momentum - 1) / grown * (new - now)
    moved, now, momentum = np.abs(new - now).max(), new, grown
    if moved < 1e-8:
      break
  return now[:-1], now[-1]


@pytest.mark.parametrize("seed", marks.first(4, range(10)))
def test_the_objective_is_that_of_a_plain_solver(seed):
  x, labels, given = problem(seed)
  weights = np.ones(len(x)) if given is None else given[labels] / given[labels].mean()
  classes = labels.max() + 1
  fits = group_lasso.fit_path(stored(x), labels, strengths=STRENGTHS, class_weights=given)
  assert len(fits[-1].index) > len(fits[0].index)
  for fit in fits:
    kernel = np.zeros((x.shape[1], classes))
    kernel[fit.index] = fit.weights
    found = objective(x, labels, weights, kernel, fit.bias, fit.strength)
    best = objective(
      x, labels, weights, *reference(x, labels, weights, classes, fit.strength), fit.strength
    )
    assert fit.converged
    assert found == pytest.approx(best, rel=1e-5)
    assert fit.objective == pytest.approx(found, rel=1e-6)
    np.testing.assert_allclose(fit.relevance, (kernel**2).sum(axis=1), rtol=1e-6)


def test_at_the_strength_of_one_all_weights_are_zero_and_just_below_one_feature_is_not():
  x, labels, _ = problem(0)
  none, some = group_lasso.fit_path(stored(x), labels, strengths=(0.97, 1.0))
  assert len(none.index) == 0
  assert none.gradient.max() == pytest.approx(1, rel=1e-4)
  assert list(some.index) == [none.gradient.argmax()]


def test_a_table_in_a_file_gives_the_same(monkeypatch):
  monkeypatch.setattr(feature_store, "_CHUNK_BYTES", 4 * 1000)
  x, labels, _ = problem(1)
  store = stored(x, memory_bytes=0)
  assert sum(1 for _ in store.chunks()) > 3
  np.testing.assert_array_equal(store.columns(np.array([1, 5, 17])), x[:, [1, 5, 17]])
  (ours,), (theirs,) = (
    group_lasso.fit_path(s, labels, strengths=(0.05,)) for s in (store, stored(x))
  )
  np.testing.assert_array_equal(ours.index, theirs.index)
  np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-3, atol=1e-4)
  store.close()


@pytest.mark.parametrize("strengths", [(), (0.0,), (1.5,), (float("nan"),)])
def test_a_strength_lies_between_0_and_1(strengths):
  x, labels, _ = problem(0)
  with pytest.raises(ValueError, match="give at least one, each in"):
    group_lasso.fit_path(stored(x), labels, strengths=strengths)


_LARGE = r"""
import re, sys
import numpy as np
from subtune_jax.training import feature_store, group_lasso
rows, columns = 1000, 1_000_000
rng = np.random.default_rng(0)
labels = np.arange(rows) % 10
store = feature_store.FeatureStore(rows, columns)
for begin in range(0, rows, 20):
  x = rng.standard_normal((20, columns), dtype=np.float32)
  x[np.arange(20), labels[begin : begin + 20] * 1000] += 3
  store.write(begin, x / np.linalg.norm(x, axis=1, keepdims=True))
(fit,) = group_lasso.fit_path(store, labels, strengths=(0.7,))
assert fit.converged and set(range(0, 10_000, 1000)) <= set(fit.index.tolist()), fit.index
store.close()
print(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
def test_a_million_features_of_a_thousand_images_fit_in_four_gib():
  done = subprocess.run([sys.executable, "-c", _LARGE], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert int(done.stdout) < 4 << 20  # KiB
