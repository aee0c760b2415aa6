"""Differences of accuracies with intervals over groups of test images and seeds."""

from collections.abc import Sequence
import functools

import numpy as np

from benchmarks.claims_parts import archive as archive_lib
from subtune_jax.report import estimate
from subtune_jax.statistics import folds, intervals

_RESAMPLES = 2000
ALL, ABSENT, SEEN = "all", "absent", "seen"  # of which classes the test images are


def difference(
  archive: archive_lib.Archive,
  sets: Sequence[str],
  first: str,
  second: str,
  among: str = ALL,
) -> estimate.Estimate:
  """Accuracy of one column minus that of another on the same images, as a fraction.

  A mean over sets gives each the same weight; groups and seeds are drawn, the same for both.

  Args:
    archive: of the run.
    sets: names of sets of images.
    first: column of `Answers.predicted`.
    second: likewise.
    among: "all" images, or those of a seed's "absent" or "seen" classes.
  """
  groups = np.unique(np.concatenate([archive.sets[name].groups for name in sets]))
  seeds = max(
    len(archive.sets[name].predicted[column]) for name in sets for column in (first, second)
  )
  counts, drawn = _draws(len(groups), seeds)
  whole = np.ones((1, len(groups)))
  observed, resampled = (
    [
      np.mean([_accuracies(archive, name, column, among, groups, seeds, c) for name in sets], 0)
      for column in (first, second)
    ]
    for c in (whole, counts)
  )
  mean = float((observed[0] - observed[1]).mean())
  low, high = np.quantile((drawn * (resampled[0] - resampled[1])).sum(1), (0.025, 0.975))
  return estimate.Estimate(mean, float(low), float(high))


@functools.lru_cache(maxsize=2)
def _draws(groups: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
  """[resamples, groups] how often each is drawn, [resamples, seeds] weights; always the same."""
  rng = np.random.default_rng(0)
  counts = intervals.draw_counts(rng, _RESAMPLES, groups)
  return counts, intervals.draw_counts(rng, _RESAMPLES, seeds) / seeds


def over_seeds(first: Sequence[float], second: Sequence[float]) -> estimate.Estimate:
  """The mean of paired differences of one number a seed, by Student's t."""
  gaps = np.asarray(first, np.float64) - np.asarray(second, np.float64)
  half = folds.t_half(0.95, len(gaps) - 1) * folds.standard_error(gaps, overlap=0.0)
  return estimate.Estimate(float(gaps.mean()), float(gaps.mean() - half), float(gaps.mean() + half))


def _accuracies(archive, name, column, among, groups, seeds, counts) -> np.ndarray:
  """[resamples, seeds] accuracies under `counts` [resamples, groups]."""
  own = archive.sets[name]
  place = np.searchsorted(groups, own.groups)
  found = []
  for seed in range(seeds):
    predicted = own.predicted[column]
    right = predicted[seed if len(predicted) > 1 else 0] == own.labels
    mask = np.ones(len(right), bool)
    if among != ALL:
      mask = archive.absent[seed][own.labels] == (among == ABSENT)
    sums = np.stack([np.bincount(place, w, len(groups)) for w in (right & mask, mask)])
    right_, there = (counts @ sums.T).T
    found.append(right_ / np.maximum(there, 1))
  return np.stack(found, 1)
