"""Calibration of fine-tuned classifiers: pure functions of logits, labels and a mask of classes."""

from subtune_jax.calibration.accuracy import accuracy_matrix, accuracy_table
from subtune_jax.calibration.confidence import Reliability, brier, ece, nll, reliability
from subtune_jax.calibration.curve import Curve, ausuc, best_gamma, margins, seen_unseen_curve
from subtune_jax.calibration.decomposition import Decomposition, decompose
from subtune_jax.calibration.gamma import (
  average_logit_gap,
  calibrate,
  pseudo_cross_validation_gamma,
  pseudo_splits,
)
from subtune_jax.calibration.nearest_mean import class_means, ncm_logits
from subtune_jax.calibration.resampling import Interval, bootstrap
from subtune_jax.calibration.scaling import (
  VectorScaling,
  apply_temperature,
  apply_vector,
  fit_temperature,
  fit_vector,
)

__all__ = [
  "Curve",
  "Decomposition",
  "Interval",
  "Reliability",
  "VectorScaling",
  "accuracy_matrix",
  "accuracy_table",
  "apply_temperature",
  "apply_vector",
  "ausuc",
  "average_logit_gap",
  "best_gamma",
  "bootstrap",
  "brier",
  "calibrate",
  "class_means",
  "decompose",
  "ece",
  "fit_temperature",
  "fit_vector",
  "margins",
  "ncm_logits",
  "nll",
  "pseudo_cross_validation_gamma",
  "pseudo_splits",
  "reliability",
  "seen_unseen_curve",
]
