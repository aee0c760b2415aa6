"""Eq. 3: the probability of a class is that of its group times that of the class in the group."""

from typing import Any, NamedTuple

import numpy as np

from subtune_jax.calibration import arrays, checks

Array = arrays.Array


class Decomposition(NamedTuple):
  """log P(c|x) = log P(group of c | x) + log P(c | x, group of c).

  Attributes:
    log_absent: [...], log P(U|x).
    log_seen: [...], log P(S|x), of all classes that are not absent.
    log_within: [..., C], log P(c | x, U) for c in U and log P(c | x, S) for the others.
  """

  log_absent: Array
  log_seen: Array
  log_within: Array


def decompose(logits: Any, absent: Any) -> Decomposition:
  """Splits the softmax into P(U|x) and P(c|x, U) (eq. 3), in logarithms.

  Args:
    logits: [..., C].
    absent: [C], boolean.

  Returns:
    The parts, finite also where the probabilities underflow.

  Raises:
    ValueError: see `checks`.

  >>> parts = decompose(np.log([.1, .3, .2, .4]), [True, True, False, False])
  >>> np.exp(parts.log_absent).round(6), np.exp(parts.log_within).round(6)
  (np.float64(0.4), array([0.25    , 0.75    , 0.333333, 0.666667]))
  """
  logits = checks.logits(logits, rank=None, finite=True)
  absent = checks.mask(absent, logits.shape[-1])
  xp = arrays.namespace(logits, absent)
  z = arrays.widen(xp, logits)
  absent = absent.reshape((1,) * (z.ndim - 1) + (-1,))
  totals = []
  for group in (absent, ~absent):
    top = xp.where(group, z, -np.inf).max(-1, keepdims=True)
    # Outside the group z - top may be large: the exponent is taken of what counts alone.
    terms = xp.where(group, xp.exp(xp.where(group, z - top, 0)), 0)
    totals.append(top + xp.log(terms.sum(-1, keepdims=True)))
  in_absent, in_seen = totals
  either = xp.logaddexp(in_absent, in_seen)
  within = z - xp.where(absent, in_absent, in_seen)
  valid = checks.valid(logits, None, absent, finite=True)
  parts = (in_absent - either)[..., 0], (in_seen - either)[..., 0], within
  return Decomposition(*(arrays.nan_unless(valid, part) for part in parts))
