"""Held-out ridge scores, against scikit-learn."""

import numpy as np
import pytest
from sklearn import linear_model

from subtune_jax.data import splits
from subtune_jax.statistics import held_out


def problem(n: int, d: int, classes: int = 3):
  rng = np.random.default_rng(n)
  labels = rng.integers(0, classes, n)
  features = rng.normal(size=(n, d)) + 3.0 + rng.normal(size=(classes, d))[labels]
  groups = np.array([f"g{i // 2}" for i in range(n)])
  return features, labels, splits.fold_indices(labels, groups, 5, seed=0)


def theirs(features, labels, folds, strength: float) -> np.ndarray:
  """scikit-learn's, fold by fold."""
  targets = np.eye(3)[labels]
  scores = np.empty_like(targets)
  for rest, held in folds:
    x = features[rest] - features[rest].mean(0)
    alpha = strength * (x**2).sum() / min(x.shape)
    scores[held] = (
      linear_model.Ridge(alpha=alpha)
      .fit(x, targets[rest])
      .predict(features[held] - features[rest].mean(0))
    )
  return scores


@pytest.mark.parametrize(("n", "d"), [(60, 7), (40, 90)])
def test_scores_and_the_strength_are_those_of_scikit_learn(n, d):
  features, labels, folds = problem(n, d)
  strengths = (1e-3, 0.1, 1.0, 30.0)
  scores, strength = held_out.ridge_scores(features, labels, 3, folds, strengths)
  peers = [theirs(features, labels, folds, own) for own in strengths]
  errors = [((own - np.eye(3)[labels]) ** 2).sum() for own in peers]
  assert strength == strengths[int(np.argmin(errors))]
  np.testing.assert_allclose(scores, peers[int(np.argmin(errors))], rtol=1e-7, atol=1e-9)


def test_an_image_has_no_part_in_its_own_score():
  features, labels, folds = problem(40, 90)
  scores, _ = held_out.ridge_scores(features, labels, 3, folds, (1.0,))
  held = folds[0][1]
  changed = labels.copy()
  changed[held] = (changed[held] + 1) % 3
  again, _ = held_out.ridge_scores(features, changed, 3, folds, (1.0,))
  np.testing.assert_array_equal(again[held], scores[held])
  assert not np.allclose(again, scores)
