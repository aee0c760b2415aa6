"""Metrics of classification that give every class the same weight, however few examples it has."""

import numpy as np


def balanced_accuracy(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
  """Mean over the classes that occur of the share of their examples that is predicted rightly.

  scikit-learn's `balanced_accuracy_score`: the macro-averaged recall.

  Args:
    predicted: [n] integers.
    labels: [n] integers in [0, num_classes).
    num_classes: classes there are.

  Raises:
    ValueError: no example, or shapes that differ.
  """
  predicted, labels = np.asarray(predicted), np.asarray(labels)
  if not labels.size or predicted.shape != labels.shape:
    raise ValueError(
      f"predictions {predicted.shape} and labels {labels.shape} must be [n] with n > 0"
    )
  return float(np.nanmean(recall_per_class(predicted, labels, num_classes)))


def recall_per_class(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
  """[num_classes] share of a class' examples that is predicted rightly; NaN without an example."""
  counts = np.bincount(labels, minlength=num_classes)
  right = np.bincount(labels[predicted == labels], minlength=num_classes)
  return np.where(counts > 0, right / np.maximum(counts, 1), np.nan)


def macro_f1(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
  """Mean of `f1_per_class` over the classes that occur among either.

  scikit-learn's `f1_score(average="macro")`. Arguments as of `balanced_accuracy`.
  """
  return float(np.nanmean(f1_per_class(confusion(predicted, labels, num_classes))))


def f1_per_class(matrix: np.ndarray) -> np.ndarray:
  """[num_classes] 2 hits / (answers + examples) of a `confusion`; NaN without either."""
  both = matrix.sum(0) + matrix.sum(1)
  return np.where(both > 0, 2 * np.diag(matrix) / np.maximum(both, 1), np.nan)


def confusion(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
  """[class, answer] counts, as scikit-learn's `confusion_matrix`."""
  flat = np.asarray(labels, np.int64) * num_classes + predicted
  return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
  """Mean over the classes that occur of the area under the ROC curve of the class against the rest.

  scikit-learn's `roc_auc_score` with multi_class="ovr" and average="macro", which wants an example
  of every class; here a class without one is left out. For two classes whose scores sum to one it
  is the area of either.

  Args:
    scores: [n, num_classes], of which an example's class should have high ones: probabilities.
    labels: [n] integers in [0, num_classes).

  Raises:
    ValueError: shapes that do not fit, a score that is NaN, or labels of one class only.
  """
  scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
  if scores.ndim != 2 or labels.shape != scores.shape[:1]:
    raise ValueError(f"scores {scores.shape} and labels {labels.shape} must be [n, classes], [n]")
  if np.isnan(scores).any():
    raise ValueError("a score is NaN: the order of the examples is not known")
  present = np.unique(labels)
  if len(present) < 2:
    raise ValueError(
      f"AUROC needs examples of two classes, and all {len(labels)} labels are {list(present)}"
    )
  areas = []
  for own in present:
    positive = labels == own
    areas.append(placements(scores[:, own], positive)[positive].mean())
  return float(np.mean(areas))


def placements(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
  """[n]: of a positive the share of negatives below it, of a negative of positives above it.

  A tie counts half; the mean over either side is the area under the ROC curve.

  Args:
    scores: [n].
    positive: [n] bool, with both values.
  """
  inside = {side: np.sort(scores[positive == side]) for side in (True, False)}
  found = np.empty(len(scores))
  for side in (True, False):
    own, others = scores[positive == side], inside[not side]
    below = np.searchsorted(others, own, "left") + np.searchsorted(others, own, "right")
    share = below / (2 * len(others))
    found[positive == side] = share if side else 1 - share
  return found
