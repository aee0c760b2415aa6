"""The paired test by hand and on noise; against scipy and by permutations."""

import math

import numpy as np
import pytest
from scipy import stats

from subtune_jax.search import scores, significance


def score(by_fold):
  return scores.from_accuracies(("block1",), by_fold)


def test_paired_gain_is_the_t_test_of_scipy():
  """Without an overlap the test is the ordinary paired one, also far out in the tail."""
  rng = np.random.default_rng(0)
  for gain, folds in ((0.0, 2), (0.01, 5), (-0.02, 8), (0.3, 20)):
    old = rng.uniform(0.4, 0.5, folds)
    new = old + gain + rng.normal(0, 0.01, folds)
    found = significance.paired_gain(score(new), score(old), overlap=0)
    expected = stats.ttest_rel(new, old, alternative="greater")
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-8)


def test_p_value_is_near_that_of_all_permutations_of_signs():
  """Under the null the sign of each difference is a coin; with 12 folds all 4096 are counted."""
  differences = np.random.default_rng(3).normal(0.006, 0.01, 12)
  signs = 1 - 2 * ((np.arange(4096)[:, None] >> np.arange(12)) & 1)
  counted = np.mean((signs * differences).mean(axis=1) >= differences.mean() - 1e-12)
  found = significance.paired_gain(score(0.5 + differences), score([0.5] * 12), overlap=0)
  assert 0.005 < counted < 0.2
  assert found.p_value == pytest.approx(counted, abs=0.01)


def test_paired_gain_by_hand():
  # Differences 0.01, 0.02, 0.03: mean 0.02, standard deviation 0.01.
  new, old = score([0.81, 0.72, 0.93]), score([0.80, 0.70, 0.90])
  gain = significance.paired_gain(new, old, overlap=0.5)
  assert gain.mean == pytest.approx(0.02)
  assert gain.standard_error == pytest.approx(0.01 * math.sqrt(1 / 3 + 1 / 2))
  t = 0.02 / gain.standard_error
  assert gain.p_value == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)))
  back = significance.paired_gain(old, new, overlap=0.5)
  assert back.p_value == pytest.approx(1 - gain.p_value)
  independent = significance.paired_gain(new, old, overlap=0)
  assert independent.standard_error == pytest.approx(0.01 / math.sqrt(3))
  best = significance.paired_gain(new, old, overlap=0.5, comparisons=16)
  assert best.p_value == pytest.approx(1 - (1 - gain.p_value) ** 16)


def test_paired_gain_uses_common_folds():
  new, old = score([0.81, 0.72, np.nan, 0.93]), score([0.80, 0.70, 0.1, 0.90])
  expected = significance.paired_gain(score([0.81, 0.72, 0.93]), score([0.8, 0.7, 0.9]), overlap=0)
  assert significance.paired_gain(new, old, overlap=0) == pytest.approx(expected)


@pytest.mark.parametrize(("gain", "p_value"), [(0.1, 0.0), (0.0, 1.0), (-0.1, 1.0)])
def test_equal_differences(gain, p_value):
  old = np.array([0.3, 0.7, 0.6, 0.1])
  found = significance.paired_gain(score(old + gain), score(old), overlap=0.3, comparisons=9)
  assert found.mean == pytest.approx(gain, abs=1e-12)
  assert (found.standard_error, found.p_value) == (0, p_value)


def test_refusals():
  two = score([0.5, 0.6])
  with pytest.raises(ValueError, match="1 folds in common: a paired test needs two"):
    significance.paired_gain(two, score([0.5, np.nan]), overlap=0)
  with pytest.raises(ValueError, match="2 and 3 folds"):
    significance.paired_gain(two, score([0.5, 0.6, 0.7]), overlap=0)
  with pytest.raises(ValueError, match=r"overlap is -0\.1"):
    significance.paired_gain(two, two, overlap=-0.1)
  with pytest.raises(ValueError, match="comparisons is 0"):
    significance.paired_gain(two, two, overlap=0, comparisons=0)
  with pytest.raises(ValueError, match="level is 95"):
    significance.interval(two, 0, level=95)
  with pytest.raises(ValueError, match="1 folds, images=False"):
    significance.interval(score([0.5]), 0)
  with pytest.raises(ValueError, match="1 folds, images=True"):
    significance.interval(score([0.5]), 0, images=True)


def test_interval_by_hand():
  # Two folds: t of one degree of freedom, tan(0.475 pi) at 95 %.
  low, high = significance.interval(score([0.50, 0.52]), 0.5)
  half = math.tan(0.475 * math.pi) * math.sqrt(2) * 0.01 * math.sqrt(1 / 2 + 1 / 2)
  assert (low, high) == pytest.approx((0.51 - half, 0.51 + half))
  assert significance.interval(score([0.0, 0.9]), 0) == (0, 1)  # an accuracy stays in [0, 1]
  assert significance.interval(score([0.5, 0.5]), 0) == (0.5, 0.5)


def test_interval_of_images():
  answers = np.repeat([1.0, 0.0], [80, 20])
  one = scores.Score((), (answers,))
  low, high = significance.interval(one, 0, images=True)
  error = math.sqrt(0.8 * 0.2 / 99)
  assert high - low == pytest.approx(2 * 1.98422 * error, rel=1e-5)  # t of 99 degrees of freedom
  # Folds that agree by luck are no surer than their images.
  agree = scores.Score((), (answers,) * 4)
  assert significance.interval(agree, 0) == pytest.approx((0.8, 0.8))
  low, high = significance.interval(agree, 0, images=True)
  assert high - low == pytest.approx(2 * 1.966 * error / 2, rel=1e-3)
  apart = scores.Score((), (answers, 1 - answers))
  wide = significance.interval(apart, 0)
  assert significance.interval(apart, 0, images=True) == wide


@pytest.mark.parametrize(("true_overlap", "low", "high"), [(0.25, 0.04, 0.06), (0, 0.01, 0.025)])
def test_false_alarms(true_overlap, low, high):
  """At 5 %, of 2,000 comparisons of equal sets; 1.7 % where the training sets do not overlap."""
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(2000, 5)) + np.sqrt(true_overlap) * rng.normal(size=(2000, 1))
  old = score([0.5] * 5)
  p_values = [significance.paired_gain(score(0.5 + x / 100), old, overlap=0.25)[2] for x in noise]
  assert low <= np.mean(np.array(p_values) <= 0.05) <= high
