"""A probe that says it has converged is within its tolerance, by scikit-learn's Newton solver."""

import warnings

import numpy as np
import pytest
from scipy import special
from sklearn import linear_model

from subtune_jax.training import probe

STRENGTHS = (1.0, 1e-2, 1e-4, 1e-6)


def _blobs(n, d, classes, apart, seed=0):
  generator = np.random.default_rng(seed)
  y = np.arange(n) % classes
  x = apart * generator.normal(size=(classes, d))[y] + generator.normal(size=(n, d))
  return x.astype(np.float32), y


def _duplicated(features):
  x, y = _blobs(40, features, 4, 1.0)
  rows = np.repeat(np.arange(40), np.random.default_rng(1).integers(1, 12, 40))
  return x[rows], y[rows]


def _rare():
  """Shares of 98, 1 and 1 %."""
  y = np.array([0] * 294 + [1] * 3 + [2] * 3)
  x = np.random.default_rng(0).normal(size=(300, 25)) + 0.7 * y[:, None]
  return x.astype(np.float32), y


def _unequal(seed):
  """Drawn with replacement, mostly from class 0."""
  x, y = _blobs(100, 30, 4, 0.4, seed)
  generator = np.random.default_rng(seed)
  rows = generator.integers(0, 100, 400)
  kept = (y[rows] == 0) | (generator.random(400) > 0.85)
  return x[rows][kept], y[rows][kept]


def _collinear():
  x, y = _blobs(200, 6, 4, 0.7)
  near = x + 1e-3 * np.random.default_rng(2).normal(size=x.shape)
  return np.concatenate([x, near, x.sum(1, keepdims=True)], 1).astype(np.float32), y


PROBLEMS = {
  "duplicated rows": _duplicated(20),
  "duplicated, fewer rows than features": _duplicated(60),
  "98:1:1": _rare(),
  "unequal 0": _unequal(5),
  "unequal 1": _unequal(6),
  "separable": _blobs(150, 10, 3, 5.0),
  "collinear": _collinear(),
  "fewer rows than features": _blobs(40, 80, 4, 0.3),
  "healthy": _blobs(400, 12, 2, 0.3),
}
QUICK = ("duplicated, fewer rows than features", "98:1:1", "healthy")  # each shape is a program


def _objective(x, y, kernel, bias, l2):
  z = x @ kernel + bias
  loss = special.logsumexp(z, axis=1) - z[np.arange(len(y)), y]
  return loss.mean() + 0.5 * l2 * np.sum(kernel**2)


def _optimum(x, y, l2):
  two = y.max() == 1
  c = (2 if two else 1) / (l2 * len(y))
  model = linear_model.LogisticRegression(C=c, solver="newton-cholesky", tol=1e-12, max_iter=1000)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it cannot reach 1e-12 everywhere
    model.fit(x, y)
  kernel, bias = model.coef_.T, model.intercept_
  if two:
    kernel, bias = kernel * [[-0.5, 0.5]], bias * [-0.5, 0.5]
  return _objective(x, y, kernel, bias, l2)


@pytest.mark.parametrize("standardize", ["scalar", "feature"])
@pytest.mark.parametrize(
  "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PROBLEMS]
)
def test_converged_is_within_the_tolerance_of_the_optimum(name, standardize):
  x, y = PROBLEMS[name]
  mean = x.mean(0, dtype=np.float64)
  scale = x.std(dtype=np.float64) if standardize == "scalar" else x.std(0, dtype=np.float64)
  scale = np.broadcast_to(scale, mean.shape)
  inputs = (x - mean) / scale
  optima = [_optimum(inputs, y, l2) for l2 in STRENGTHS]
  for tol, grid in ((1e-6, STRENGTHS), (1e-6, STRENGTHS[2:3]), (1e-4, STRENGTHS)):
    path = probe.fit_path(x, y, num_classes=y.max() + 1, l2=grid, standardize=standardize, tol=tol)
    assert path.converged.all()
    for kernel, bias, l2 in zip(path.kernel, path.bias, grid, strict=True):
      optimum = optima[STRENGTHS.index(l2)]
      reached = _objective(inputs, y, kernel * scale[:, None], bias + mean @ kernel, l2)
      assert -1e-9 < (reached - optimum) / optimum <= tol
