"""The numbers of one network in a study of holistic transfer, from what was stored of it.

Every function reads arrays and calls `subtune_jax.calibration`; nothing runs a network.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subtune_jax import calibration
from subtune_jax.calibration import class_splits, updates

Row = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
# gamma-star reads test labels: no method, but what the best gamma would do.
CALIBRATIONS = ("none", "alg", "pcv", "star")
ORACLES = ("star",)
AVERAGES = {"micro": False, "balanced": True}


def alg_gamma(arrays: Arrays, absent: np.ndarray) -> float:
  """gamma by ALG from the training images of seen classes; no other row is read."""
  rows = class_splits.rows_of(arrays["train/labels"], ~absent)
  logits, labels = arrays["train/logits"][rows], arrays["train/labels"][rows]
  return float(calibration.average_logit_gap(logits, labels, absent))


def pcv_gamma(held_out: Sequence[Arrays], partitions: Sequence[class_splits.Partition]) -> float:
  """gamma by PCV from the held-out logits of one training per pseudo split."""
  return float(
    calibration.pseudo_cross_validation_gamma(
      [a["held_out/logits"] for a in held_out],
      [a["held_out/labels"] for a in held_out],
      np.stack([p.pseudo_absent for p in partitions]),
      partitions[0].absent,
    )
  )


def numbers(arrays: Arrays, absent: np.ndarray, *, pcv: float | None = None) -> Row:
  """Everything that the record keeps of one network; fields of `record.Epoch`.

  Args:
    arrays: "test/logits", "test/labels", "train/logits", "train/labels" and, for NCM,
      "test/features" and "train/features".
    absent: [C] bool.
    pcv: gamma by PCV, where there is one.
  """
  logits, labels = arrays["test/logits"], arrays["test/labels"]
  curve = calibration.seen_unseen_curve(logits, labels, absent)
  gamma = {"none": 0.0, "alg": alg_gamma(arrays, absent), "star": float(curve.best_gamma())}
  if pcv is not None:
    gamma["pcv"] = pcv
  harmonic, at = curve.best_harmonic_mean()
  found = {
    "gamma": gamma,
    "accuracy": {
      kind: _tables(calibration.calibrate(logits, absent, value), labels, absent)
      for kind, value in gamma.items()
    },
    "ausuc": float(curve.ausuc()),
    "harmonic_mean": {"value": float(harmonic), "gamma": float(at)},
    "probabilities": _probabilities(logits, labels, absent),
    "margins": _margins(logits, labels, absent),
  }
  if "test/features" in arrays:
    found["ncm"] = _nearest_means(arrays, absent)
  return found


def _tables(scores: np.ndarray, labels: np.ndarray, absent: np.ndarray) -> Row:
  return {
    name: calibration.accuracy_table(scores, labels, absent, balanced=balanced)
    for name, balanced in AVERAGES.items()
  }


def _nearest_means(arrays: Arrays, absent: np.ndarray) -> Row:
  """NCM (eq. 2), means of the training images of all classes: an analysis, not a method."""
  labels, found = arrays["test/labels"], {}
  for distance in ("cosine", "euclidean"):
    means, counts = calibration.class_means(
      arrays["train/features"], arrays["train/labels"], len(absent), distance=distance
    )
    scores = calibration.ncm_logits(arrays["test/features"], means, counts, distance=distance)
    curve = calibration.seen_unseen_curve(scores, labels, absent)
    found[distance] = {**_tables(scores, labels, absent), "ausuc": float(curve.ausuc())}
  return found


def _probabilities(logits: np.ndarray, labels: np.ndarray, absent: np.ndarray) -> Row:
  """Of the test images of absent and of seen classes: mean P(U|x), share answered in U (eq. 3)."""
  p = np.exp(np.asarray(calibration.decompose(logits, absent).log_absent))
  answered = absent[logits.argmax(-1)]
  groups = {"absent": absent[labels], "seen": ~absent[labels]}
  return {
    name: {"p_absent": float(p[rows].mean()), "answered_absent": float(answered[rows].mean())}
    for name, rows in groups.items()
  }


def _margins(logits: np.ndarray, labels: np.ndarray, absent: np.ndarray) -> Row:
  """Of the test images of absent classes, means of logits (the paper's figure 11).

  `own` is the label's, `other` the largest of another absent class, `seen` the largest of a seen
  class; `seen_over_absent` is max over S - max over U, what gamma has to exceed.
  """
  rows = np.flatnonzero(absent[labels])
  z, y = np.asarray(logits[rows], np.float64), labels[rows]
  own = z[np.arange(len(z)), y]
  others = np.where(absent[None] & (np.arange(z.shape[1])[None] != y[:, None]), z, -np.inf)
  other = others.max(-1) if absent.sum() > 1 else None
  seen = z[:, ~absent].max(-1)
  return {
    "own": float(own.mean()),
    "other": None if other is None else float(other.mean()),
    "own_over_other": None if other is None else float((own - other).mean()),
    "seen": float(seen.mean()),
    "seen_over_absent": float(np.mean(calibration.margins(z, absent))),
  }


def on_classes(arrays: Arrays, classes: np.ndarray) -> Row:
  """Accuracy on the test images of the mask `classes` [C] alone, among all classes and these.

  Returns:
    {"head": {"Y", "own"}, "ncm": {"Y", "own"}}: by the head and by cosine NCM, over examples.
  """
  sets = np.stack([np.ones(len(classes), bool), classes])
  scores = {"head": arrays["test/logits"]}
  if "test/features" in arrays:
    means, counts = calibration.class_means(
      arrays["train/features"], arrays["train/labels"], len(classes)
    )
    scores["ncm"] = calibration.ncm_logits(arrays["test/features"], means, counts)
  found = {}
  for name, z in scores.items():
    matrix = calibration.accuracy_matrix(z, arrays["test/labels"], classes[None], sets)
    found[name] = {"Y": float(matrix[0, 0]), "own": float(matrix[0, 1])}
  return found


def directions(before: Arrays, after: Arrays, absent: np.ndarray) -> Row:
  """How the classifier's rows moved from the source's (figure 10): means over pairs, and lengths.

  The matrix of all pairs is `updates.classifier_updates(before, after).cosine` of the
  "head/kernel" of both files.
  """
  moved = updates.classifier_updates(before["head/kernel"], after["head/kernel"])
  groups = {"seen": ~absent, "absent": absent}
  return {
    "similarity": updates.mean_similarity(moved.cosine, absent),
    "update_length": {k: float(moved.length[m].mean()) for k, m in groups.items()},
    "norm_before": {k: float(moved.norm_before[m].mean()) for k, m in groups.items()},
    "norm_after": {k: float(moved.norm_after[m].mean()) for k, m in groups.items()},
  }


def summarize(rows: Sequence[Row]) -> Row:
  """{"mean", "by_seed"} of each number of nested dicts of one shape; None where one is None."""
  first = rows[0]
  if isinstance(first, Mapping):
    shared = [name for name in first if all(name in row for row in rows)]
    return {name: summarize([row[name] for row in rows]) for name in shared}
  values = [None if row is None else float(row) for row in rows]
  known = [value for value in values if value is not None]
  return {"mean": float(np.mean(known)) if len(known) == len(values) else None, "by_seed": values}
