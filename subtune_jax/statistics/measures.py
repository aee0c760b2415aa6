"""Measures of a classifier as means over examples, so that one bootstrap gives all their intervals.

A measure m that is no mean, such as balanced accuracy, is written as the mean of m + h_i with the
influence h_i of example i (Hampel, "The influence curve and its role in robust estimation", JASA
69, 1974): its linearisation in the shares of the examples. The mean is the measure itself, and
resampling these numbers gives its interval to first order (for AUROC the variance is that of
DeLong et al., 1988). They pair and group like right answers (`intervals.paired_bootstrap`).
"""

from collections.abc import Callable
import dataclasses
import math

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
  share = len(labels) / (np.count_nonzero(counts) * counts[labels])
  return np.nanmean(recall) + share * (right - recall[labels])


def macro_f1(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """[n] of mean `classification.macro_f1`; arguments as of `balanced_accuracy`."""
  n, c = probabilities.shape
  answers = probabilities.argmax(-1)
  matrix = classification.confusion(answers, labels, c)
  f1 = classification.f1_per_class(matrix)
  weight = n / (np.isfinite(f1).sum() * np.maximum(matrix.sum(0) + matrix.sum(1), 1))
  hit = np.where(answers == labels, 2 * weight[labels], 0.0)
  influence = hit - f1[labels] * weight[labels] - f1[answers] * weight[answers]
  return np.nanmean(f1) + influence


def auroc(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """[n] of mean `classification.auroc`; NaN where all labels are one class."""
  n, present = len(labels), np.unique(labels)
  if len(present) < 2:
    return np.full(n, np.nan)
  total = np.zeros(n)
  for own in present:
    positive = labels == own
    above = classification.placements(np.asarray(probabilities[:, own], np.float64), positive)
    share = np.where(positive, n / positive.sum(), n / (n - positive.sum()))
    area = above[positive].mean()
    total += area + share * (above - area)
  return total / len(present)


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


def performance_per_parameter(accuracy: float, trained_params: int) -> float:
  """M exp(-log10(P / 10^7 + 1)), the score of V-PETL Bench (Xin et al., NeurIPS 2024).

  Args:
    accuracy: M, a fraction; the score is one too.
    trained_params: P, without the head's.
  """
  return accuracy * math.exp(-math.log10(trained_params / 1e7 + 1))
