"""Metrics that weigh classes alike, against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from subtune_jax.statistics import classification


def drawn(n=300, classes=5, seed=0, levels=None):
  rng = np.random.default_rng(seed)
  labels = rng.choice(classes, n, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
  scores = rng.dirichlet(np.ones(classes), n) + 0.3 * np.eye(classes)[labels]
  if levels:
    scores = np.ceil(scores * levels)
  return scores / scores.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("classes", [2, 5])
def test_scikit_learns_numbers(classes, levels):
  scores, labels = drawn(classes=classes, levels=levels)
  predicted = scores.argmax(axis=1)
  found = classification.balanced_accuracy(predicted, labels, classes + 3)
  assert found == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
  assert found != pytest.approx(np.mean(predicted == labels))
  theirs = metrics.roc_auc_score(
    labels, scores if classes > 2 else scores[:, 1], multi_class="ovr", average="macro"
  )
  assert classification.auroc(scores, labels) == pytest.approx(theirs, abs=1e-12)


def test_a_class_without_examples_is_left_out():
  scores, labels = drawn()
  kept = labels != 2
  own = [metrics.roc_auc_score(labels[kept] == c, scores[kept, c]) for c in (0, 1, 3, 4)]
  assert classification.auroc(scores[kept], labels[kept]) == pytest.approx(np.mean(own))


@pytest.mark.parametrize(
  ("scores", "labels", "message"),
  [
    (np.ones((3, 2)), [1, 1, 1], "AUROC needs examples of two classes, and all 3 labels"),
    (np.full((2, 2), np.nan), [0, 1], "a score is NaN"),
    (np.ones(2), [0, 1], "must be"),
  ],
)
def test_what_has_no_area_is_refused(scores, labels, message):
  with pytest.raises(ValueError, match=message):
    classification.auroc(scores, np.array(labels))
  with pytest.raises(ValueError, match="n > 0"):
    classification.balanced_accuracy(np.zeros(0, int), np.zeros(0, int), 2)
