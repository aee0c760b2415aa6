"""Measures as means over examples: scikit-learn's values, a brute-force bootstrap's intervals."""

import numpy as np
import pytest
import scipy.special
from sklearn import metrics

from subtune_jax import calibration
from subtune_jax.statistics import classification, intervals, measures, power


def problem(seed, n=300, c=4, strength=1.0):
  rng = np.random.default_rng(seed)
  labels = rng.choice(c, n, p=np.arange(1, c + 1) / np.arange(1, c + 1).sum())
  logits = rng.normal(size=(n, c)) + strength * np.eye(c)[labels]
  return scipy.special.softmax(logits, -1), labels


REFERENCES = {
  "Balanced accuracy": lambda p, y: metrics.balanced_accuracy_score(y, p.argmax(-1)),
  "Macro F1": lambda p, y: metrics.f1_score(y, p.argmax(-1), average="macro"),
  "AUROC": lambda p, y: (
    metrics.roc_auc_score(y, p[:, 1]) if p.shape[1] == 2
    else metrics.roc_auc_score(y, p, multi_class="ovr", average="macro")
  ),
  "ECE": lambda p, y: calibration.ece(np.log(p), y),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.parametrize("measure", measures.MEASURES, ids=lambda m: m.name)
@pytest.mark.parametrize(("seed", "c"), [(0, 2), (1, 2), (2, 4), (3, 7)])
def test_the_mean_is_scikit_learns(measure, seed, c):
  p, labels = problem(seed, c=c)
  found = measure.scores(p, labels)
  assert found.shape == labels.shape
  assert found.mean() == pytest.approx(REFERENCES[measure.name](p, labels), abs=1e-9)


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_classes_without_examples_and_ties():
  p, labels = problem(4, c=5)
  p = np.round(p, 1)
  kept = (labels != 2) & (p.argmax(-1) != 4)
  p, labels = p[kept], labels[kept]
  for measure in measures.MEASURES[:2]:
    wanted = REFERENCES[measure.name](p, labels)
    assert measure.scores(p, labels).mean() == pytest.approx(wanted, abs=1e-9)
  areas = [metrics.roc_auc_score(labels == k, p[:, k]) for k in np.unique(labels)]
  assert measures.auroc(p, labels).mean() == pytest.approx(np.mean(areas))
  assert classification.macro_f1(p.argmax(-1), labels, 5) == pytest.approx(
    metrics.f1_score(labels, p.argmax(-1), average="macro")
  )
  matrix = metrics.confusion_matrix(labels, p.argmax(-1), labels=range(5))
  np.testing.assert_array_equal(classification.confusion(p.argmax(-1), labels, 5), matrix)
  recall = classification.recall_per_class(p.argmax(-1), labels, 5)
  assert np.isnan(recall[2])
  assert np.nanmean(recall) == metrics.balanced_accuracy_score(labels, p.argmax(-1))
  assert np.isnan(measures.auroc(p[labels == 1], labels[labels == 1])).all()


@pytest.mark.parametrize("measure", measures.MEASURES[:3], ids=lambda m: m.name)
def test_intervals_are_those_of_computing_the_measure_again_on_each_resample(measure):
  p, labels = problem(5, n=600, c=3)
  rng = np.random.default_rng(0)
  again = []
  for _ in range(1000):
    rows = rng.integers(0, len(labels), len(labels))
    again.append(measure.scores(p[rows], labels[rows]).mean())
  found = intervals.paired_bootstrap(
    {"own": measure.scores(p, labels)[None]}, np.arange(len(labels))
  ).intervals["own"]
  width = np.subtract(*np.quantile(again, [0.975, 0.025]))
  np.testing.assert_allclose(found, np.quantile(again, [0.025, 0.975]), atol=0.12 * width)


@pytest.mark.parametrize(("gain", "spread"), [(0.06, 0.0), (0.08, 0.03)])
def test_power_is_what_simulated_test_sets_show(gain, spread):
  """Of test sets of the size that is named, four in five decide."""
  rng = np.random.default_rng(0)

  def answers(n, seeds=3):
    hard = rng.random(n)
    moved = gain + spread * rng.normal(size=(seeds, 1))
    return (hard < 0.5 + moved).astype(float), np.repeat((hard < 0.5)[None], 1, 0).astype(float)

  def noisy(n):
    first, second = answers(n)
    flip = rng.random(first.shape) < 0.2
    return np.where(flip, 1 - first, first), second

  guesses = [power.paired(*noisy(4000), np.arange(4000)) for _ in range(60)]
  known = [g.images for g in guesses if g.images is not None]
  needed = int(np.median(known))
  seen = [power.paired(*noisy(needed), np.arange(needed)) for _ in range(400)]
  decided = np.mean([abs(own.difference) > 1.96 * own.error for own in seen])
  assert 0.68 < decided < 0.9


def test_power_of_groups_and_of_no_difference():
  rng = np.random.default_rng(1)
  first = (rng.random((1, 200)) < 0.6).astype(float)
  second = (rng.random((1, 200)) < 0.5).astype(float)
  alone = power.paired(first, second, np.arange(200))
  # Every image four times, as one group: four times the images say no more.
  fourfold = power.paired(
    np.repeat(first, 4, 1), np.repeat(second, 4, 1), np.repeat(np.arange(200), 4)
  )
  assert fourfold.error == pytest.approx(alone.error)
  assert fourfold.images == pytest.approx(4 * alone.images, abs=4)
  same = power.paired(first, first[:, ::-1] * 0 + first.mean(), np.arange(200))
  assert same.images is None
  assert alone.smallest == pytest.approx(2.8016 * alone.error, rel=1e-4)
  with pytest.raises(ValueError, match="1 of them different"):
    power.paired(first, second, np.zeros(200))
