"""Measures of a classifier as means over examples, so that one bootstrap gives all their intervals.

A measure m that is no mean, such as balanced accuracy, is written as the mean of m + h_i with the
influence h_i of example i (Hampel, "The influence curve and its role in robust estimation", JASA
69, 1974): its linearisation in the shares of the examples. The mean is the measure itself, and
resampling these numbers gives its interval to first order (for AUROC the variance is that of
DeLong et al., 1988). They pair and group like right answers (`intervals.paired_bootstrap`).
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from subtune_jax.statistics import classification

ECE_BINS = 15


@dataclasses.dataclass(frozen=True)
class Measure:
  """A measure.

  Attributes:
    name: in sentences and tables.
    scores: (probabilities [n, c], labels [n]) -> [n], whose mean is the measure; NaN where the
      labels do not allow it.
    percent: whether it is shown in per cent.
    lower: whether less is better.
  """

  name: str
  scores: Callable[[np.ndarray, np.ndarray], np.ndarray]
  percent: bool = True
  lower: bool = False


def balanced_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """[n] of mean `classification.balanced_accuracy`.

  Args:
    probabilities: [n, c].
    labels: [n] integers in [0, c).
  """
  counts = np.bincount(labels, minlength=probabilities.shape[1])
  right = probabilities.argmax(-1) == labels
  recall = classification.recall_per_class(probabilities.argmax(-1), labels, len(counts))
  value = float(np.mean(recall[counts > 0]))
  share = len(labels) / (np.count_nonzero(counts) * counts[labels])
  return value + share * (right - recall[labels])


def macro_f1(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """[n] of mean `classification.macro_f1`; arguments as of `balanced_accuracy`."""
  n, c = probabilities.shape
  answers = probabilities.argmax(-1)
  matrix = classification.confusion(answers, labels, c)
  both = matrix.sum(0) + matrix.sum(1)
  present = both > 0
  f1 = 2 * np.diag(matrix) / np.maximum(both, 1)
  weight = np.where(present, n / (present.sum() * np.maximum(both, 1)), 0.0)
  hit = np.where(answers == labels, 2 * weight[labels], 0.0)
  influence = hit - f1[labels] * weight[labels] - f1[answers] * weight[answers]
  return float(np.mean(f1[present])) + influence


def auroc(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """[n] of mean `classification.auroc`; NaN where all labels are one class."""
  n, present = len(labels), np.unique(labels)
  if len(present) < 2:
    return np.full(n, np.nan)
  total = np.zeros(n)
  for own in present:
    positive = labels == own
    above = _placements(np.asarray(probabilities[:, own], np.float64), positive)
    share = np.where(positive, n / positive.sum(), n / (n - positive.sum()))
    area = above[positive].mean()
    total += area + share * (above - area)
  return total / len(present)


def _placements(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
  """[n]: of a positive the share of negatives below it, of a negative of positives above it."""
  inside = {side: np.sort(scores[positive == side]) for side in (True, False)}
  found = np.empty(len(scores))
  for side in (True, False):
    own, others = scores[positive == side], inside[not side]
    below = np.searchsorted(others, own, "left") + np.searchsorted(others, own, "right")
    share = below / (2 * len(others))
    found[positive == side] = share if side else 1 - share
  return found


def ece(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """[n] of mean expected calibration error (Guo et al., 2017): 15 bins (k/15, (k+1)/15]."""
  top = np.asarray(probabilities.max(-1), np.float64)
  right = probabilities.argmax(-1) == labels
  edges = np.arange(1, ECE_BINS) / ECE_BINS
  bins = np.searchsorted(edges * (1 + 1e-6), top, side="left")
  gaps = np.bincount(bins, top - right, ECE_BINS)
  return np.sign(gaps)[bins] * (top - right)


MEASURES = (
  Measure("Balanced accuracy", balanced_accuracy),
  Measure("Macro F1", macro_f1),
  Measure("AUROC", auroc),
  Measure("ECE", ece, lower=True),
)
