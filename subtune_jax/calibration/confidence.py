"""Are the probabilities right: NLL, Brier score, reliability bins and ECE."""

from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.calibration import arrays, checks

Array = arrays.Array

BINNINGS = ("width", "mass")


def _nll(xp: ModuleType, z: Array, labels: Array) -> tuple[Array]:
  return (-arrays.at_labels(xp, arrays.log_softmax(xp, arrays.widen(xp, z)), labels),)


def _brier(xp: ModuleType, z: Array, labels: Array) -> tuple[Array]:
  p = xp.exp(arrays.log_softmax(xp, arrays.widen(xp, z)))
  hit = xp.arange(z.shape[1])[None] == labels[:, None]
  return (((p - hit) ** 2).sum(-1),)


def _top(xp: ModuleType, z: Array, labels: Array) -> tuple[Array, Array]:
  log_p = arrays.log_softmax(xp, arrays.widen(xp, z))
  return xp.exp(log_p.max(-1)), log_p.argmax(-1) == labels


def _mean(f: Any, logits: Any, labels: Any) -> arrays.Number:
  logits = checks.logits(logits)
  labels = checks.labels(labels, *logits.shape)
  (values,) = arrays.map_rows(f, (logits, labels))
  mean = arrays.nan_unless(checks.valid(logits, labels), arrays.host(values).mean())
  return float(mean) if isinstance(mean, np.generic) else mean


def nll(logits: Any, labels: Any) -> arrays.Number:
  """Mean negative log-likelihood, in nats: mean of -log softmax(z)_y.

  Args:
    logits: [N, C].
    labels: [N].

  Raises:
    ValueError: see `checks`.

  >>> round(nll(np.log([[.5, .5], [.2, .8]]), [0, 1]), 6)  # (log 2 - log .8) / 2
  0.458145
  """
  return _mean(_nll, logits, labels)


def brier(logits: Any, labels: Any) -> arrays.Number:
  """Brier score, mean of sum over c of (p_c - 1[c = y])^2, in [0, 2].

  Args:
    logits: [N, C].
    labels: [N].

  Raises:
    ValueError: see `checks`.

  >>> round(brier(np.log([[.5, .5], [.2, .8]]), [0, 1]), 6)  # (.5 + .08) / 2
  0.29
  """
  return _mean(_brier, logits, labels)


class Reliability(NamedTuple):
  """Confidence against accuracy, bin by bin; zeros where a bin is empty.

  Attributes:
    counts: [B] examples.
    confidence: [B] mean probability of the answer.
    accuracy: [B] share of right answers.
  """

  counts: Array
  confidence: Array
  accuracy: Array


def _bins(xp: ModuleType, confidence: Array, num_bins: int, binning: str, rounding: float) -> Array:
  """The bin [N] of each example; `rounding` is relative."""
  if binning == "width":
    edges = xp.asarray(np.arange(1, num_bins) / num_bins, confidence.dtype)
  else:
    n = confidence.shape[0]
    last = np.array([-(-k * n // num_bins) - 1 for k in range(1, num_bins)], np.int32)
    edges = xp.sort(confidence)[last]
  return xp.searchsorted(edges * (1 + rounding), confidence, side="left")


def _rounding(xp: ModuleType, logits: Array) -> float:
  """How far, relatively, rounding may move the probability that `_top` finds."""
  eps = np.finfo(np.float64) if xp is np else jnp.finfo(jnp.promote_types(logits.dtype, "float32"))
  return float(eps.eps) * (8 + logits.shape[1])  # a sum of C terms, and exp and log of it


def reliability(
  logits: Any, labels: Any, *, num_bins: int = 15, binning: str = "width"
) -> Reliability:
  """Bins the examples by the probability of their answer.

  Args:
    logits: [N, C].
    labels: [N].
    num_bins: B.
    binning: "width" for the bins (k/B, (k+1)/B]; "mass" for bins of equally many examples: the
      k-th edge is the confidence of example ceil(k N / B) in ascending order. Confidences up to an
      edge are below it, and so are those above it by less than the rounding of a softmax,
      (C + 8) * eps relatively (eps of float64 for numpy, else of float32 or what the logits have
      beyond): equal confidences are in one bin, whatever the order of their classes.

  Returns:
    Counts, mean confidence and accuracy of each bin. Traced, NaN for values that are refused.

  Raises:
    ValueError: see `checks`; another binning; fewer than one bin.

  >>> z = np.log([[.9, .1], [.8, .2], [.3, .7]])
  >>> counts, confidence, accuracy = reliability(z, [0, 1, 1], num_bins=4)
  >>> counts, confidence.round(6), accuracy
  (array([0, 0, 1, 2]), array([0.  , 0.  , 0.7 , 0.85]), array([0. , 0. , 1. , 0.5]))
  """
  if binning not in BINNINGS:
    raise ValueError(f"binning is {binning!r}: it must be one of {BINNINGS}")
  if num_bins < 1:
    raise ValueError(f"num_bins is {num_bins}: it must be at least 1")
  logits = checks.logits(logits)
  labels = checks.labels(labels, *logits.shape)
  confidence, right = map(arrays.host, arrays.map_rows(_top, (logits, labels)))
  xp = arrays.namespace(confidence, right)
  rounding = _rounding(arrays.namespace(logits, labels), logits)
  bins = _bins(xp, confidence, num_bins, binning, rounding)
  if xp is np:
    drawn, known = (np.bincount(bins[m], minlength=num_bins) for m in (right | True, right))
    size = np.maximum(drawn, 1)
    return Reliability(drawn, np.bincount(bins, confidence, num_bins) / size, known / size)
  ones = xp.ones(bins.shape, "int32")
  counts = jax.ops.segment_sum(ones, bins, num_bins)
  hits = jax.ops.segment_sum(right.astype("int32"), bins, num_bins)
  mean = xp.zeros(num_bins, confidence.dtype)
  for _ in range(arrays.SCATTER_PASSES):
    rest = jax.ops.segment_sum(confidence - mean[bins], bins, num_bins)
    mean = mean + rest / xp.maximum(counts, 1)
  valid = checks.valid(logits, labels)
  mean, accuracy = (arrays.nan_unless(valid, x) for x in (mean, hits / xp.maximum(counts, 1)))
  return Reliability(counts, mean, accuracy)


def ece(logits: Any, labels: Any, *, num_bins: int = 15, binning: str = "width") -> arrays.Number:
  """Expected calibration error: sum over bins of n_b / N |accuracy_b - confidence_b|.

  Args:
    logits: [N, C].
    labels: [N].
    num_bins: as of `reliability`.
    binning: as of `reliability`.

  Returns:
    In [0, 1].

  Raises:
    ValueError: as of `reliability`.

  >>> z = np.log([[.9, .1], [.8, .2], [.3, .7]])
  >>> round(ece(z, [0, 1, 1], num_bins=4), 6)  # (1 * |1 - .7| + 2 * |.5 - .85|) / 3
  0.333333
  """
  counts, confidence, accuracy = reliability(logits, labels, num_bins=num_bins, binning=binning)
  gap: Any = abs(accuracy - confidence)
  value = (counts * gap).sum() / counts.sum()
  return float(value) if isinstance(value, np.generic) else value
