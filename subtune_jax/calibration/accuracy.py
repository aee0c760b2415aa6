"""Acc_A/B: accuracy over examples whose class is in A, with answers limited to classes in B."""

from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from subtune_jax.calibration import arrays, checks

Array = arrays.Array


def _rank(xp: ModuleType, z: Array, labels: Array, allowed: Array) -> tuple[Array, Array]:
  """Place of the label among the allowed classes, 0 the best, and whether it can be right."""
  own = arrays.at_labels(xp, z, labels)
  is_before = (z == own[:, None]) & (xp.arange(z.shape[1])[None] < labels[:, None])
  better = ((z > own[:, None]) | is_before) & allowed[None]
  return better.sum(-1), allowed[labels] & (own > -np.inf)


def _per_class(xp: ModuleType, labels: Array, flags: Array, num_classes: int) -> Array:
  if xp is np:
    return np.bincount(labels[flags], minlength=num_classes)
  return jnp.zeros(num_classes, jnp.int32).at[labels].add(flags.astype(jnp.int32))


def _sets(x: Any, num_classes: int, name: str) -> Array:
  x = checks.as_array(x)
  if x.dtype != np.bool_ or x.ndim != 2 or x.shape[1] != num_classes or not len(x):
    raise ValueError(f"{name} must be a boolean array of sets x {num_classes} classes, got dtype "
                     f"{x.dtype} and shape {x.shape}")  # fmt: skip
  if arrays.is_concrete(x) and not np.asarray(x).any(-1).all():
    empty = int(np.asarray(x).any(-1).argmin())
    raise ValueError(f"set {empty} of {name} is empty: mark at least one class in each")
  return x


def accuracy_matrix(
  logits: Any,
  labels: Any,
  true_sets: Any,
  label_spaces: Any,
  *,
  top_k: int = 1,
  balanced: bool = False,
) -> Array:
  """Acc_A/B of every set of true classes A and label space B.

  Acc_A/B = sum_i 1[y_i in A] 1[y_i = argmax over c in B of z_c] / sum_i 1[y_i in A]. An example
  whose class is not in B is wrong. Of equal logits the first class wins; -inf never wins.

  Args:
    logits: [N, C], calibrated or not.
    labels: [N].
    true_sets: [A, C], boolean.
    label_spaces: [B, C], boolean.
    top_k: right if the label is among the k best of B.
    balanced: mean over the classes of A that have examples, instead of over examples.

  Returns:
    [A, B], in [0, 1]. Traced, NaN for values that are refused.

  Raises:
    ValueError: see `checks`; an empty set; a set without examples; top_k below 1.

  Labels 0, 1, 1; among all classes the answers are 0, 0, 1, among classes 1 and 2 they are 1, 1, 1:

  >>> z = [[3., 1., 0.], [3., 2., 0.], [0., 2., 1.]]
  >>> spaces = [[True, True, True], [False, True, True]]
  >>> accuracy_matrix(z, [0, 1, 1], spaces, spaces).round(3)  # Y/Y, Y/U; U/Y, U/U
  array([[0.667, 0.667],
         [0.5  , 1.   ]])
  >>> accuracy_matrix(z, [0, 1, 1], spaces, spaces, balanced=True)[0]  # mean(1, 1/2), mean(0, 1)
  array([0.75, 0.5 ])
  >>> accuracy_matrix(z, [0, 1, 1], spaces, spaces, top_k=2)[0].round(3)
  array([1.   , 0.667])
  """
  logits = checks.logits(logits)
  num_classes = logits.shape[1]
  labels = checks.labels(labels, *logits.shape)
  true_sets = _sets(true_sets, num_classes, "true_sets")
  label_spaces = _sets(label_spaces, num_classes, "label_spaces")
  if top_k < 1:
    raise ValueError(f"top_k is {top_k}: it must be at least 1")
  for i in range(len(true_sets)):
    checks.occur(labels, true_sets[i], f"set {i} of true_sets")
  right = []
  for allowed in label_spaces:
    rank, possible = map(arrays.host, arrays.map_rows(_rank, (logits, labels), (allowed,)))
    right.append((rank < top_k) & possible)
  host_labels, true_sets = arrays.host(labels), arrays.host(true_sets)
  xp = arrays.namespace(labels, true_sets, *right)
  count = [_per_class(xp, host_labels, xp.asarray(r), num_classes) for r in right]
  totals = _per_class(xp, host_labels, xp.ones(labels.shape, bool), num_classes)
  valid = checks.valid(logits, host_labels, fits=label_spaces.any(-1).all())
  return arrays.nan_unless(valid, _ratios(xp, xp.stack(count), totals, true_sets, balanced))


def _ratios(xp: ModuleType, right: Array, totals: Array, sets: Array, balanced: bool) -> Array:
  """right [B, C], totals [C], sets [A, C] -> [A, B]."""
  if balanced:
    right = right / xp.maximum(totals, 1)[None]
    totals = totals > 0
  in_set = sets[:, None] * totals[None, None]
  return xp.where(in_set > 0, right[None], 0 * right[None]).sum(-1) / xp.where(
    sets, totals[None], 0 * totals[None]
  ).sum(-1, keepdims=True)


def accuracy_table(
  logits: Any,
  labels: Any,
  absent: Any,
  third: Any = None,
  *,
  top_k: int = 1,
  balanced: bool = False,
) -> dict[str, arrays.Number]:
  """The paper's table: Acc_Y/Y, S/Y, U/Y, S/S and U/U; with a third group R, also R/Y and R/R.

  Args:
    logits: [N, C].
    labels: [N].
    absent: [C], boolean.
    third: [C], boolean.
    top_k: as of `accuracy_matrix`.
    balanced: as of `accuracy_matrix`.

  Returns:
    A dict of accuracies in [0, 1] under the names above.

  Raises:
    ValueError: as of `accuracy_matrix`; a group without examples.

  >>> accuracy_table([[3., 1.], [3., 2.]], [0, 1], [False, True])["U/U"]
  1.0
  """
  num_classes = checks.logits(logits).shape[1]
  absent, third_mask = checks.groups(absent, third, num_classes)
  xp = arrays.namespace(absent, third_mask)
  groups = {"Y": xp.ones(num_classes, bool), "S": ~(absent | third_mask), "U": absent}
  if third is not None:
    groups["R"] = third_mask
  names, masks = list(groups), xp.stack([xp.asarray(m) for m in groups.values()])
  matrix = accuracy_matrix(logits, labels, masks, masks, top_k=top_k, balanced=balanced)
  pairs = [(a, b) for b in "Y" for a in names] + [(a, a) for a in names[1:]]
  cell = {f"{a}/{b}": matrix[names.index(a), names.index(b)] for a, b in pairs}
  return {k: float(v) if isinstance(v, np.generic) else v for k, v in cell.items()}
