"""Means over the folds of a cross-validation: their standard error, and Student's t.

Folds share most of their training images, so J scores are worth less than J independent ones: what
is peculiar to those images does not average out. Nadeau and Bengio ("Inference for the
Generalization Error", Machine Learning 52, 2003) correct the variance of a mean over J folds from
s^2 / J to s^2 (1 / J + overlap), overlap = held-out images / training images.
"""

import math

import numpy as np
from scipy import special


def standard_error(values: np.ndarray, overlap: float) -> float:
  """Standard error of the mean of `values` [J], J >= 2, with the overlap of the training sets."""
  return float(values.std(ddof=1)) * math.sqrt(1 / len(values) + overlap)


def t_tail(t: float, degrees: float) -> float:
  """Probability that Student's t with `degrees` degrees of freedom is at most `t`."""
  return float(special.stdtr(degrees, t))


def t_half(level: float, degrees: float) -> float:
  """The t that Student's t stays within, on both sides, with a probability of `level`."""
  return float(special.stdtrit(degrees, (1 + level) / 2))
