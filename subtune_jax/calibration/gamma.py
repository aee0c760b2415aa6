"""Calibration of absent classes by one number, and two ways to choose it without their data."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np

from subtune_jax.calibration import arrays, checks
from subtune_jax.calibration import curve as curve_lib

Array = arrays.Array


def calibrate(logits: Any, absent: Any, gamma: Any) -> Array:
  """Adds gamma to the logits of absent classes (eq. 4); the answer is the argmax.

  Args:
    logits: [..., C].
    absent: [C], boolean.
    gamma: in logits. With +inf the other classes get -inf, with -inf the absent ones: the limits.

  Returns:
    [..., C], in the precision of `logits`, but at least float32. Traced, NaN for what is refused.

  Raises:
    ValueError: see `checks`; gamma is NaN or no single number.

  Dog .1, cat .2, horse .4, cow .3; dog and cat are absent:

  >>> logits, absent = np.array([.1, .2, .4, .3]), [True, True, False, False]
  >>> names = ["dog", "cat", "horse", "cow"]
  >>> names[logits.argmax()], names[calibrate(logits, absent, .5).argmax()]
  ('horse', 'cat')
  """
  logits = checks.logits(logits, rank=None)
  absent = checks.mask(absent, logits.shape[-1])
  gamma = checks.as_array(gamma)
  if gamma.shape != ():
    raise ValueError(f"gamma must be one number, got the shape {gamma.shape}: jax.vmap for many")
  if arrays.is_concrete(gamma) and np.isnan(float(gamma)):
    raise ValueError("gamma is NaN: give a number, or inf or -inf for the limits")
  xp = arrays.namespace(logits, absent, gamma)
  valid = checks.valid(logits, None, absent, fits=xp.isnan(gamma) == 0)
  logits = arrays.at_least_float32(logits)
  absent = absent.reshape((1,) * (logits.ndim - 1) + (-1,))
  infinite = xp.isinf(gamma)
  shift = xp.where(infinite, 0, gamma).astype(logits.dtype)
  moved = xp.where(absent, logits + shift, logits)
  limit = xp.asarray(-np.inf, logits.dtype)
  return arrays.nan_unless(valid, xp.where(infinite & (absent == (gamma < 0)), limit, moved))


def _gaps(xp: ModuleType, z: Array, labels: Array, absent: Array) -> tuple[Array]:
  z = arrays.widen(xp, z)
  absent = absent[None]
  others = ~absent & (xp.arange(z.shape[1])[None] != labels[:, None])
  seen = xp.where(others, z, 0).sum(-1) / others.sum(-1)
  return (seen - xp.where(absent, z, 0).sum(-1) / absent.sum(),)


def average_logit_gap(logits: Any, labels: Any, absent: Any) -> arrays.Number:
  """gamma by ALG: how far absent classes lie below the seen ones that are not the answer.

  gamma = mean over x of [mean over seen c != y of z_c - mean over absent c of z_c], over the
  fine-tuning training data (the paper's section on choosing gamma). No label of an absent class is
  let in, so no test data are needed, or possible.

  Args:
    logits: [N, C], of fine-tuning training data.
    labels: [N], of seen classes.
    absent: [C], boolean.

  Returns:
    gamma, in logits. Traced, NaN for values that are refused.

  Raises:
    ValueError: see `checks`; a label of an absent class; fewer than two seen classes; -inf.

  Row one: mean(2) - mean(0, 1) = 1.5; row two: mean(4) - mean(1, 2) = 2.5:

  >>> average_logit_gap([[9., 2., 0., 1.], [4., 7., 1., 2.]], [0, 1], [False, False, True, True])
  2.0
  """
  logits = checks.logits(logits, finite=True)
  labels = checks.labels(labels, *logits.shape)
  absent = checks.mask(absent, logits.shape[1])
  if arrays.is_concrete(absent):
    if int((~absent).sum()) < 2:
      raise ValueError("ALG compares seen classes other than the label: it needs at least 2 seen "
                       f"classes, got 1 of {len(absent)}")  # fmt: skip
    _refuse_absent(labels, absent, "fine-tuning training data")
  (gaps,) = arrays.map_rows(_gaps, (logits, labels), (absent,))
  xp = arrays.namespace(labels, absent)
  of_absent = xp.asarray(absent)[xp.asarray(labels)].any()
  valid = checks.valid(logits, labels, absent, finite=True, fits=~of_absent)
  gamma = arrays.nan_unless(valid, arrays.host(gaps).mean())
  return float(gamma) if isinstance(gamma, np.generic) else gamma


def _refuse_absent(labels: Array, absent: Array, what: str) -> None:
  if not arrays.is_concrete(labels):
    return
  wrong = np.flatnonzero(np.asarray(absent)[np.asarray(labels)])
  if wrong.size:
    raise ValueError(f"row {wrong[0]} has the label {int(labels[wrong[0]])} of an absent class "
                     f"({wrong.size} such rows): gamma is chosen from {what} of seen classes "
                     "alone; drop those rows")  # fmt: skip


def pseudo_splits(absent: Any, num_splits: int = 3, seed: int = 0) -> np.ndarray:
  """Draws random halves of the seen classes to be left out in pseudo cross-validation.

  Args:
    absent: [C], boolean: the truly absent classes, in no split.
    num_splits: K.
    seed: of the draw.

  Returns:
    [K, C], boolean: the pseudo-absent classes of each split (half of the seen, rounded down).

  Raises:
    ValueError: fewer than two seen classes, or no split.
  """
  absent = np.asarray(checks.mask(absent, np.size(absent)))
  seen = np.flatnonzero(~absent)
  if seen.size < 2 or num_splits < 1:
    raise ValueError(f"{num_splits} splits of {seen.size} seen classes: PCV needs at least one "
                     "split and two seen classes")  # fmt: skip
  generator = np.random.default_rng(seed)
  masks = np.zeros((num_splits, absent.size), bool)
  for row in masks:
    row[generator.permutation(seen)[: seen.size // 2]] = True
  return masks


def pseudo_cross_validation_gamma(
  logits: Sequence[Any], labels: Sequence[Any], pseudo_absent: Any, absent: Any
) -> arrays.Number:
  """gamma by PCV: the mean over splits of what balances pseudo-seen and pseudo-absent accuracy.

  Each split leaves some seen classes out of the fine-tuning and keeps data of all seen classes for
  the choice. The columns of truly absent classes are dropped before anything is computed. Within a
  split it is the gamma of the smallest |Acc_pseudo-seen - Acc_pseudo-absent|, both over the seen
  classes; of equal intervals the one nearest 0, as in `best_gamma`.

  Args:
    logits: K arrays [N_k, C]: held-out logits of the model fine-tuned on split k's pseudo-seen
      classes.
    labels: K arrays [N_k], of seen classes.
    pseudo_absent: [K, C], boolean: seen classes that split k left out (`pseudo_splits`).
    absent: [C], boolean: truly absent classes. Not traced.

  Returns:
    gamma, in logits. Traced, NaN for values that are refused.

  Raises:
    ValueError: see `checks`; lengths that differ; a label or a pseudo-absent class that is absent;
      a split without examples of either kind.

  One split: class 1 is pseudo-absent, class 2 absent. The margins are 4 and 1 (seen) and 2
  (pseudo-absent); between 1 and 2 the accuracies are 1/2 and 0, between 2 and 4 1/2 and 1, below 1
  they are 1 and 0. The differences 1/2 tie; (1, 2) is nearer to 0:

  >>> z = [[5., 1., 9.], [2., 1., 9.], [3., 1., 9.]]
  >>> pseudo_cross_validation_gamma([z], [[0, 0, 1]], [[False, True, False]], [False, False, True])
  1.5
  """
  pseudo_absent = np.asarray(pseudo_absent)
  if not 0 < len(logits) == len(labels) == len(pseudo_absent):
    raise ValueError(f"PCV needs logits, labels and pseudo_absent of each split, got "
                     f"{len(logits)}, {len(labels)} and {len(pseudo_absent)}")  # fmt: skip
  if isinstance(absent, jax.core.Tracer):
    raise ValueError("absent chooses columns in PCV and cannot be traced: pass numpy")
  gammas = []
  for k, (z, y, left_out) in enumerate(zip(logits, labels, pseudo_absent, strict=True)):
    try:
      gammas.append(_balance(z, y, left_out, absent))
    except ValueError as e:
      raise ValueError(f"split {k}: {e}") from e
  return sum(gammas) / len(gammas)


def _balance(logits: Any, labels: Any, pseudo_absent: Array, absent: Any) -> arrays.Number:
  logits, labels = checks.as_array(logits), checks.as_array(labels)
  if logits.ndim != 2:
    raise ValueError(f"logits must have the shape [examples, classes], got {logits.shape}")
  num_classes = logits.shape[1]
  labels = checks.labels(labels, *logits.shape)
  absent = np.asarray(checks.mask(absent, num_classes))
  pseudo_absent = checks.mask(pseudo_absent, num_classes, "pseudo_absent")
  if (pseudo_absent & absent).any():
    both = np.flatnonzero(pseudo_absent & absent).tolist()
    raise ValueError(f"classes {both} are absent and cannot be pseudo-absent: choose seen ones")
  _refuse_absent(labels, absent, "held-out data")
  checks.occur(labels, pseudo_absent, "a pseudo-absent class")
  checks.occur(labels, ~(pseudo_absent | absent), "a pseudo-seen class")
  kept = np.flatnonzero(~absent)
  xp = arrays.namespace(labels)
  new_labels = xp.asarray(np.where(absent, -1, np.cumsum(~absent) - 1))[labels]
  new_labels = xp.where((labels >= 0) & (labels < num_classes), new_labels, -1)  # -1 is refused
  curve = curve_lib.seen_unseen_curve(logits[:, kept], new_labels, pseudo_absent[kept])
  fits = len(logits) ** 2 // 4 < 2**31  # the products in int32
  if isinstance(curve.seen_right, np.ndarray) or fits:  # exact, in integers
    difference = curve.seen_right * curve.num_unseen - curve.unseen_right * curve.num_seen
  else:
    difference = curve.seen - curve.unseen
  return curve.middle(-abs(difference))
