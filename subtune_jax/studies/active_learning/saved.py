"""Learning curves with intervals, and the labels that a rule saves at equal accuracy."""

from collections.abc import Mapping, Sequence

import numpy as np

from subtune_jax.statistics import intervals
from subtune_jax.studies.active_learning import record

REFERENCE = "random"  # of acquisition.RULES


def labels_needed(totals: Sequence[int], accuracies: np.ndarray, target: float) -> float:
  """The number of labels at which a learning curve first reaches an accuracy.

  Between two totals accuracy is taken to grow in a line with the logarithm of the labels.

  Args:
    totals: [n] labels, rising.
    accuracies: [n] at those.
    target: the accuracy; NaN comes back where it is not reached.
  """
  if accuracies[0] >= target:
    return float(totals[0])
  for i in range(1, len(totals)):
    low, high = accuracies[i - 1], accuracies[i]
    if high >= target:
      share = (target - low) / (high - low)
      first, last = np.log(totals[i - 1]), np.log(totals[i])
      return float(np.exp(first + share * (last - first)))
  return float("nan")


def share_saved(totals: Sequence[int], own: np.ndarray, reference: np.ndarray) -> float:
  """1 - labels needed / labels that the reference needs, at the best accuracy that both reach.

  Negative where the reference needs fewer. Arguments: see `labels_needed`.
  """
  target = min(own.max(), reference.max())
  return 1 - labels_needed(totals, own, target) / labels_needed(totals, reference, target)


def summarize(
  right: Mapping[tuple[str, str], np.ndarray], groups: np.ndarray, totals: tuple[int, ...]
) -> dict[str, list[record.Rule]]:
  """Curves and labels saved, with 95 % intervals of a bootstrap over seeds and groups of images.

  All learners and rules share the draws, so what makes a seed or an image hard cancels.

  Args:
    right: (learner, rule) -> bool [seeds, totals, images].
    groups: [images] of the test set.
    totals: labels.

  Returns:
    Learner -> a row per rule: "points" by total, and "saved" against `REFERENCE`, None for it.
  """
  cells = {(*key, i): own[:, i] for key, own in right.items() for i in range(len(totals))}
  drawn = intervals.resamples({str(key): own for key, own in cells.items()}, groups)
  means = {key: np.array([cells[(*key, i)].mean() for i in range(len(totals))]) for key in right}
  curves = {
    key: np.stack([drawn[str((*key, i))] for i in range(len(totals))], axis=1) for key in right
  }
  found: dict[str, list[record.Rule]] = {}
  for (name, rule), mean in means.items():
    ends = [intervals.ends(column) for column in curves[name, rule].T]
    points: list[record.Point] = [
      {"total": total, "mean": float(m), "low": low, "high": high,
       "by_seed": right[name, rule][:, i].mean(1).tolist()}
      for i, (total, m, (low, high)) in enumerate(zip(totals, mean, ends, strict=True))
    ]  # fmt: skip
    row: record.Rule = {"rule": rule, "points": points, "saved": None}
    if rule != REFERENCE:
      other = means[name, REFERENCE]
      pairs = zip(curves[name, rule], curves[name, REFERENCE], strict=True)
      shares = np.array([share_saved(totals, *pair) for pair in pairs])
      low, high = intervals.ends(shares)
      row["saved"] = {
        "at": float(min(mean.max(), other.max())), "mean": share_saved(totals, mean, other),
        "low": low, "high": high,
      }  # fmt: skip
    found.setdefault(name, []).append(row)
  return found
