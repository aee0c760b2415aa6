"""Resampled numbers against those of data that repeat each example; coverage; what is refused."""

import numpy as np
import pytest

from subtune_jax import calibration
from subtune_jax.calibration import resampling


def case(rng, n=40, c=6, ties=True):
  logits = rng.integers(-4, 5, (n, c)) / 4 if ties else rng.normal(size=(n, c))
  labels = rng.integers(0, c, n)
  labels[:c] = np.arange(c)
  absent = np.zeros(c, bool)
  absent[rng.permutation(c)[: rng.integers(1, c)]] = True
  return logits, labels, absent


@pytest.mark.parametrize("seed", range(20))
def test_numbers_are_those_of_repeated_examples(seed):
  rng = np.random.default_rng(seed)
  logits, labels, absent = case(rng, ties=seed % 2 == 0)
  gammas = (0.0, 0.5, -0.3)
  judged = resampling.judge(logits, labels, absent, gammas)
  counts = rng.integers(0, 4, (5, len(labels)))
  counts[:, :6] += 1  # every class
  found, by_class = judged.resampled(counts), judged.resampled_by_class(counts)
  for b, count in enumerate(counts):
    z, y = np.repeat(logits, count, axis=0), np.repeat(labels, count)
    assert found["AUSUC"][b] == pytest.approx(calibration.ausuc(z, y, absent), abs=1e-12)
    for k, gamma in enumerate(gammas):
      shifted = calibration.calibrate(z, absent, gamma)
      for balanced, own in ((False, found), (True, by_class)):
        table = calibration.accuracy_table(shifted, y, absent, balanced=balanced)
        for name in ("Y/Y", "S/Y", "U/Y"):
          assert own[name][k, b] == pytest.approx(table[name], abs=1e-12)


def test_classes_that_a_resample_lacks_leave_the_mean_over_classes():
  logits = np.array([[2.0, 0, 0], [0, 2.0, 0], [2.0, 0, 0]])
  judged = resampling.judge(logits, [0, 1, 2], np.array([False, False, True]))
  counts = [[1, 1, 1], [2, 0, 1], [1, 1, 0]]
  found = judged.resampled_by_class(counts)
  np.testing.assert_allclose(found["S/Y"], [[1, 1, 1]])
  np.testing.assert_allclose(found["Y/Y"], [[2 / 3, 1 / 2, 1]])
  np.testing.assert_array_equal(found["U/Y"], [[0, 0, np.nan]])
  assert np.isnan(judged.resampled(counts)["AUSUC"][2])


def test_rows_ruled_out_on_one_side_and_no_right_answer():
  logits = np.array([[1.0, -np.inf], [2.0, -np.inf], [-np.inf, 1.0], [0.0, 1.0]])
  labels, absent = np.array([0, 0, 1, 1]), np.array([False, True])
  judged = resampling.judge(logits, labels, absent)
  area = judged.resampled(np.ones((1, 4)))["AUSUC"][0]
  assert area == calibration.ausuc(logits, labels, absent) == 1
  z = np.array([[0.0, 1, 0, 0], [0, 0, 0, 1]])
  judged = resampling.judge(z, [0, 2], np.array([False, False, True, True]))
  assert judged.resampled(np.ones((2, 2)))["AUSUC"].tolist() == [0, 0]


def test_intervals_cover_the_truth_as_often_as_they_say():
  """200 test sets of 150 examples from one model whose numbers are known from 60,000."""
  rng = np.random.default_rng(0)

  def draw(n):
    labels = rng.integers(0, 4, n)
    logits = rng.normal(size=(n, 4)) + 1.5 * np.eye(4)[labels] - np.array([0, 0, 1.0, 1.0])
    return logits, labels

  absent = np.array([False, False, True, True])
  logits, labels = draw(60_000)
  truth = calibration.accuracy_table(calibration.calibrate(logits, absent, 0.5), labels, absent)
  truth["AUSUC"] = calibration.ausuc(logits, labels, absent)
  inside = dict.fromkeys(resampling.NAMES, 0)
  for _ in range(200):
    for name, found in calibration.bootstrap(*draw(150), absent, 0.5, num_resamples=400).items():
      assert found.low <= found.value <= found.high
      inside[name] += found.low <= truth[name] <= found.high
  # 95 % asked; 3 standard deviations of 200 trials are 4.6 points, percentiles a little narrow
  assert all(0.89 <= count / 200 <= 0.99 for count in inside.values()), inside


def test_groups_are_drawn_whole():
  rng = np.random.default_rng(1)
  logits, labels, absent = case(rng, 60, ties=False)
  copies = [np.repeat(x, 5, axis=0) for x in (logits, labels)]
  alone = calibration.bootstrap(logits, labels, absent)
  together = calibration.bootstrap(*copies, absent, groups=np.repeat(np.arange(60), 5))
  apart = calibration.bootstrap(*copies, absent)
  for name in resampling.NAMES:
    assert together[name] == pytest.approx(alone[name])
    assert apart[name].high - apart[name].low < 0.6 * (alone[name].high - alone[name].low)


def test_blocks_change_nothing(monkeypatch):
  logits, labels, absent = case(np.random.default_rng(2), ties=False)
  whole = calibration.bootstrap(logits, labels, absent, num_resamples=101)
  monkeypatch.setattr(resampling, "_BYTES", 8 * 40 * 7)
  assert calibration.bootstrap(logits, labels, absent, num_resamples=101) == whole


@pytest.mark.parametrize(
  ("options", "text"),
  [
    ({"level": 1.0}, "level is 1.0"),
    ({"num_resamples": 1}, "num_resamples is 1"),
    ({"groups": np.zeros(40, int)}, "all examples are of one group"),
    ({"groups": np.zeros(3, int)}, r"groups must have the shape \(40,\)"),
  ],
)
def test_what_is_refused(options, text):
  logits, labels, absent = case(np.random.default_rng(3))
  with pytest.raises(ValueError, match=text):
    calibration.bootstrap(logits, labels, absent, **options)


def test_a_group_without_examples_is_refused():
  with pytest.raises(ValueError, match="an absent class"):
    calibration.bootstrap(np.eye(2), [0, 0], np.array([False, True]))
  with pytest.raises(ValueError, match="a seen class"):
    calibration.bootstrap(np.eye(2), [1, 1], np.array([False, True]))
