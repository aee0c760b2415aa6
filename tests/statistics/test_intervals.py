"""The paired bootstrap, against resampling by hand and against its nominal coverage."""

import time

import numpy as np
import pytest

from subtune_jax.statistics import intervals


def _draws(seed, num_resamples, num_groups, num_seeds):
  """The counts that `paired_bootstrap` draws: groups first, then seeds."""
  rng = np.random.default_rng(seed)
  groups = intervals.draw_counts(rng, num_resamples, num_groups)
  return groups, intervals.draw_counts(rng, num_resamples, num_seeds)


def _resampled_accuracy(correct, groups, group_counts, seed_counts):
  """One resample, example by example: every drawn copy of a group and of a seed is counted."""
  names = sorted(set(groups))
  right = total = 0
  for s, copies in enumerate(seed_counts):
    for i, group in enumerate(groups):
      weight = copies * group_counts[names.index(group)]
      right += weight * correct[s][i]
      total += weight
  return right / total


def _correlated(rng, num_groups=40, group_size=5, num_seeds=3, num_methods=1):
  """Tables [num_methods, num_seeds, num_examples] whose groups are answered right or wrong whole.

  Their expected accuracy is 0.6.
  """
  skill = rng.beta(0.6, 0.4, size=(num_methods, 1, num_groups))
  chance = np.repeat(skill, group_size, axis=2)
  correct = rng.random((num_methods, num_seeds, num_groups * group_size)) < chance
  return correct, np.repeat([f"concept{i}" for i in range(num_groups)], group_size)


def _width(interval):
  return interval[1] - interval[0]


def test_equals_resampling_by_hand():
  groups = np.array(["b", "a", "b", "c", "c", "c", "a"])
  rng = np.random.default_rng(0)
  correct = {"lp": rng.random((3, 7)) < 0.5, "ft": rng.random((3, 7)) < 0.7}
  result = intervals.paired_bootstrap(
    correct, groups, reference="lp", level=0.8, num_resamples=60, seed=5
  )
  draws = list(zip(*_draws(5, 60, 3, 3), strict=True))
  resampled = {
    name: np.array([_resampled_accuracy(x, groups, *draw) for draw in draws])
    for name, x in correct.items()
  }
  for name, values in resampled.items():
    assert result.means[name] == pytest.approx(correct[name].mean())
    assert result.intervals[name] == pytest.approx(np.quantile(values, [0.1, 0.9]))
  difference = resampled["ft"] - resampled["lp"]
  expected = (correct["ft"].mean() - correct["lp"].mean(), *np.quantile(difference, [0.1, 0.9]))
  assert result.differences == {"ft": pytest.approx(expected)}


def test_interval_covers_the_truth_as_often_as_it_says():
  rng = np.random.default_rng(1)
  covered = 0
  for trial in range(300):
    correct, groups = _correlated(rng, num_seeds=1)
    low, high = intervals.paired_bootstrap(
      {"m": correct[0]}, groups, num_resamples=500, seed=trial
    ).intervals["m"]
    covered += low <= 0.6 <= high
  assert 0.90 <= covered / 300 <= 0.99


def test_correlated_groups_widen_the_interval():
  correct, groups = _correlated(np.random.default_rng(2))
  by_group = intervals.paired_bootstrap({"m": correct[0]}, groups).intervals["m"]
  alone = np.arange(len(groups)).astype(str)
  by_example = intervals.paired_bootstrap({"m": correct[0]}, alone).intervals["m"]
  assert _width(by_group) > 1.4 * _width(by_example)


def test_pairing_cancels_what_methods_share():
  correct, groups = _correlated(np.random.default_rng(3))
  base = correct[0]
  better = base.copy()
  better[:, ::40] = True
  result = intervals.paired_bootstrap({"lp": base, "ft": better}, groups, reference="lp")
  mean, low, high = result.differences["ft"]
  assert mean == pytest.approx(better.mean() - base.mean())
  assert high - low < 0.3 * _width(result.intervals["ft"])
  same = intervals.paired_bootstrap({"lp": base, "copy": base}, groups, reference="lp")
  assert same.differences["copy"] == (0, 0, 0)


def test_one_deterministic_training_beside_several():
  correct, groups = _correlated(np.random.default_rng(4), num_methods=2, num_seeds=5)
  probe = correct[0][:1]
  result = intervals.paired_bootstrap({"lp": probe, "ft": correct[1]}, groups, reference="ft")
  repeated = intervals.paired_bootstrap({"lp": np.repeat(probe, 5, axis=0)}, groups)
  assert result.intervals["lp"] == pytest.approx(repeated.intervals["lp"])
  mean, low, high = result.differences["lp"]
  assert low < mean < high


def test_seeds_that_differ_widen_the_interval():
  groups = np.arange(200).astype(str)
  correct = np.zeros((2, 3, 200), bool)
  correct[0, :, :100] = True
  for seed, right in enumerate((40, 100, 160)):
    correct[1, seed, :right] = True
  result = intervals.paired_bootstrap({"steady": correct[0], "erratic": correct[1]}, groups)
  assert result.means["steady"] == result.means["erratic"] == 0.5
  assert _width(result.intervals["erratic"]) > 2 * _width(result.intervals["steady"])


def test_large_groups_weigh_more():
  groups = np.array(["big"] * 9 + ["small"])
  correct = {"m": np.array([[1] * 9 + [0]])}
  result = intervals.paired_bootstrap(correct, groups, num_resamples=4000)
  assert result.means["m"] == 0.9
  # Of four equal draws one is small twice (0), two are mixed (0.9) and one is big twice (1).
  assert result.intervals["m"] == (0, 1)
  inner = intervals.paired_bootstrap(correct, groups, level=0.4, num_resamples=4000)
  assert inner.intervals["m"] == pytest.approx((0.9, 0.9))


def test_weighted_scores_average_domains():
  groups = np.array(["a", "b", "c", "a", "b"])
  right = np.array([[1.0, 0, 1, 1, 0]])
  weights = np.array([5 / 6, 5 / 6, 5 / 6, 5 / 4, 5 / 4])
  result = intervals.paired_bootstrap({"m": right * weights[None]}, groups)
  assert result.means["m"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_same_seed_same_interval_and_wider_at_a_higher_level():
  correct, groups = _correlated(np.random.default_rng(5))
  table = {"m": correct[0]}
  first = intervals.paired_bootstrap(table, groups, level=0.95).intervals["m"]
  assert first == intervals.paired_bootstrap(table, groups, level=0.95).intervals["m"]
  narrow = intervals.paired_bootstrap(table, groups, level=0.5).intervals["m"]
  assert first[0] < narrow[0] < narrow[1] < first[1]


def test_fast_enough_for_a_report():
  rng = np.random.default_rng(6)
  correct = {name: rng.random((5, 4000)) < 0.5 for name in ("lp", "ft", "lp_ft", "subtuning")}
  groups = rng.integers(0, 900, 4000).astype(str)
  intervals.paired_bootstrap(correct, groups, num_resamples=10)
  begin = time.process_time()
  intervals.paired_bootstrap(correct, groups, reference="lp")
  assert time.process_time() - begin < 3.0


GOOD = np.ones((2, 3))
GROUPS = np.array(["a", "b", "b"])


@pytest.mark.parametrize(
  ("correct", "groups", "options", "message"),
  [
    ({}, GROUPS, {}, "at least one method"),
    ({"m": np.ones(3)}, GROUPS, {}, r"shape \(3,\)"),
    ({"m": np.ones((2, 4))}, GROUPS, {}, r"shape \(2, 4\) and groups \(3,\)"),
    ({"m": np.ones((0, 3))}, GROUPS, {}, "at least one of each"),
    ({"m": [[1, np.nan, 0]]}, GROUPS, {}, r"holds nan at \(0, 1\)"),
    ({"m": GOOD}, np.array(["a"] * 3), {}, "one group"),
    ({"m": GOOD}, GROUPS, {"reference": "lp"}, r"'lp' is not a method: use one of \['m'\]"),
    ({"m": GOOD}, GROUPS, {"level": 95}, "level is 95"),
    ({"m": GOOD}, GROUPS, {"num_resamples": 1}, "num_resamples is 1"),
  ],
)
def test_errors_name_the_value(correct, groups, options, message):
  with pytest.raises(ValueError, match=message):
    intervals.paired_bootstrap(correct, groups, **options)
