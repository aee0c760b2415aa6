"""Nearest class mean (NCM, eq. 2): which classes the features alone tell apart."""

from types import ModuleType
from typing import Any

import jax
import numpy as np

from subtune_jax.calibration import arrays, checks

Array = arrays.Array

DISTANCES = ("cosine", "euclidean")


def _check_distance(distance: str) -> None:
  if distance not in DISTANCES:
    raise ValueError(f"distance is {distance!r}: it must be one of {DISTANCES}")


def _normalize(xp: ModuleType, x: Array) -> Array:
  """Rows of length 1; rows of zeros stay."""
  length = xp.sqrt((x * x).sum(-1, keepdims=True))
  return x / xp.where(length > 0, length, 1)


def _prepare(xp: ModuleType, features: Array, cosine: bool) -> Array:
  features = arrays.widen(xp, features)
  return xp.where(cosine, _normalize(xp, features), features)


def _block_sums(xp: ModuleType, features: Array, labels: Array, like: Array, cosine: bool):
  """Sum over each class of the features' difference from `like` [C, D]."""
  rest = _prepare(xp, features, cosine) - like[labels]
  if xp is not np:
    return (jax.ops.segment_sum(rest, labels, len(like)),)
  sums = np.zeros_like(like)
  order = np.argsort(labels, kind="stable")
  present, start = np.unique(labels[order], return_index=True)
  sums[present] = np.add.reduceat(rest[order], start)
  return (sums,)


def class_means(
  features: Any, labels: Any, num_classes: int, *, distance: str = "cosine"
) -> tuple[Array, Array]:
  """Mean feature of each class.

  For "cosine" features are scaled to length 1, and so are the means of them.

  Args:
    features: [N, D].
    labels: [N].
    num_classes: C.
    distance: "cosine" or "euclidean".

  Returns:
    means [C, D], zeros for a class without examples, and the number of examples of each [C].

  Raises:
    ValueError: see `checks`; another distance; fewer than one class.

  >>> class_means([[1., 0.], [3., 0.], [0., 2.]], [0, 0, 2], 3, distance="euclidean")
  (array([[2., 0.],
         [0., 0.],
         [0., 2.]]), array([2, 0, 1]))
  """
  _check_distance(distance)
  if num_classes < 1:
    raise ValueError(f"num_classes is {num_classes}: it must be at least 1")
  features = checks.logits(features, "features", finite=True)
  labels = checks.labels(labels, len(features), num_classes)
  xp, cosine = arrays.namespace(features, labels), distance == "cosine"
  if xp is np:
    counts = np.bincount(labels, minlength=num_classes)
  else:
    counts = xp.zeros(num_classes, "int32").at[labels].add(1)
  dtype = np.float64 if xp is np else xp.promote_types(features.dtype, "float32")
  means = xp.zeros((num_classes, features.shape[1]), dtype)
  for _ in range(1 if xp is np else arrays.SCATTER_PASSES):
    (sums,) = arrays.sum_rows(_block_sums, (features, labels), (means, cosine))
    means = means + sums / xp.maximum(counts, 1)[:, None]
  means = _normalize(xp, means) if cosine else means
  valid = checks.valid(features, finite=True, fits=((labels >= 0) & (labels < num_classes)).all())
  return arrays.nan_unless(valid, means), counts


def _scores(xp: ModuleType, features: Array, means: Array, counts: Array, cosine: bool):
  x = _prepare(xp, features, cosine)
  # Distances do not change when both are moved; squares of smaller numbers cancel less.
  shift = xp.where(cosine, 0, (means * (counts[:, None] > 0)).sum(0) / (counts > 0).sum())
  x, means = x - shift[None], means - shift[None]
  products = xp.matmul(x, means.T) if xp is np else xp.matmul(x, means.T, precision="highest")
  squares = (x * x).sum(-1)[:, None] + (means * means).sum(-1)[None]
  scores = xp.where(cosine, products, 2 * products - squares)
  return (xp.where(counts[None] > 0, scores, -np.inf),)


def ncm_logits(features: Any, means: Any, counts: Any, *, distance: str = "cosine") -> Array:
  """Scores whose argmax is the class of the nearest mean (eq. 2).

  Args:
    features: [N, D].
    means: [C, D], of `class_means` with the same distance.
    counts: [C], examples behind each mean.
    distance: "cosine" or "euclidean".

  Returns:
    [N, C]: the cosine, or minus the squared distance; -inf for a class without examples, which
    therefore never wins.

  Raises:
    ValueError: see `checks`; another distance; shapes that do not fit; no class with examples.

  >>> means, counts = class_means([[1., 0.], [3., 0.], [0., 2.]], [0, 0, 2], 3)
  >>> ncm_logits([[3., 4.]], means, counts)
  array([[ 0.6, -inf,  0.8]])
  """
  _check_distance(distance)
  features = checks.logits(features, "features", finite=True)
  means, counts = checks.as_array(means), checks.as_array(counts)
  if means.ndim != 2 or means.shape[1] != features.shape[1] or counts.shape != means.shape[:1]:
    raise ValueError(f"features {features.shape}, means {means.shape} and counts {counts.shape} "
                     "must be [N, D], [C, D] and [C]")  # fmt: skip
  checks.logits(means, "means", finite=True)
  if arrays.is_concrete(counts) and not (counts > 0).any():
    raise ValueError("no class has examples: counts are all 0")
  (scores,) = arrays.map_rows(_scores, (features,), (means, counts, distance == "cosine"))
  return arrays.nan_unless(checks.valid(features, finite=True, fits=(counts > 0).any()), scores)
