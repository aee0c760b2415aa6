"""Weights of classes in the loss: named by an option, made of the labels, one per example.

The loss of a batch of B examples is sum(w_i * loss_i) / (B * m), m the mean weight of an example as
training draws them. That is the weighted mean over the whole set, and its gradient is unbiased
whatever a batch holds; torch's `CrossEntropyLoss(weight=)` divides by the sum of the batch's own
weights, which is the same number for the whole set as one batch, and close to it for others. At
"balanced" m is 1.
"""

from collections.abc import Sequence

import numpy as np

from subtune_jax.methods import stage as stage_lib

Option = str | Sequence[float]


def of_classes(option: Option, labels: np.ndarray, num_classes: int) -> np.ndarray | None:
  """The weight of each class, [num_classes] float64; None where all count alike.

  "balanced" is scikit-learn's `compute_class_weight`: n / (classes present * examples of the
  class). A class without an example weighs 1: nothing of it is drawn.

  Args:
    option: "none", "balanced", or a weight per class.
    labels: [n] integers of the training set.
    num_classes: of the head.

  Raises:
    ValueError: another option, or weights that are not one per class.
  """
  stage_lib.check_class_weights(option)
  if option == "none":
    return None
  if option == "balanced":
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    balanced = len(labels) / (present.sum() * np.maximum(counts, 1))
    return np.where(present, balanced, 1.0)
  weights = np.asarray(option, np.float64)
  if len(weights) != num_classes:
    raise ValueError(f"class_weights has {len(weights)} weights; give one for each of the "
                     f"{num_classes} classes")  # fmt: skip
  return weights


def of_examples(
  option: Option, labels: np.ndarray, num_classes: int, sampling: str = "uniform"
) -> np.ndarray | None:
  """The weight of an example by its label, [num_classes] float32, over its mean as it is drawn.

  Args:
    option: see `of_classes`.
    labels: [n] integers of the training set.
    num_classes: of the head.
    sampling: "uniform": the mean is over examples; "balanced": over the classes that occur.

  Errors: see `of_classes`.
  """
  weights = of_classes(option, labels, num_classes)
  if weights is None:
    return None
  drawn = weights[np.unique(labels)] if sampling == "balanced" else weights[labels]
  return (weights / drawn.mean()).astype(np.float32)
