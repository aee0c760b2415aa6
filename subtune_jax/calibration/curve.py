"""The seen-unseen curve, its area (AUSUC) and the best gamma, exact and from one sort.

With delta = max over the seen classes of z - max over the absent classes of z, an example of a
seen class is right under gamma if it is right among the seen classes and gamma < delta, one of an
absent class if it is right among the absent classes and gamma > delta. So the whole curve is a
count over sorted margins, and its area is Acc_S/S * Acc_U/U * AUROC(delta among those).

A third group of classes, neither seen nor absent, competes on the seen side of the margin; its
examples count in the overall accuracy alone. Equal logits within a side: the first class wins, as
in argmax. Equal margins are passed together, as one step of the curve.
"""

import dataclasses
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.calibration import arrays, checks

Array = arrays.Array
Number = arrays.Number


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Curve:
  """Counts of right answers between neighbouring thresholds of gamma.

  Point k holds for thresholds[k - 1] < gamma < thresholds[k], without a bound at either end.

  Attributes:
    thresholds: [T] margins at which an answer changes, ascending, equal ones repeated. Under jit
      one per example, filled up with +inf; all NaN, and so are the numbers made of the curve, where
      values were refused outside it.
    seen_right: [T + 1] right answers among the examples of seen classes.
    unseen_right: [T + 1] the same of absent classes.
    right: [T + 1] right answers among all examples.
    num_seen: examples of seen classes.
    num_unseen: examples of absent classes.
    num_examples: all examples.
  """

  thresholds: Array
  seen_right: Array
  unseen_right: Array
  right: Array
  num_seen: Array
  num_unseen: Array
  num_examples: int

  @property
  def seen(self) -> Array:
    """Acc_S/Y of each point, [T + 1], falling."""
    return self._known(self.seen_right / self.num_seen)

  @property
  def unseen(self) -> Array:
    """Acc_U/Y of each point, [T + 1], rising."""
    return self._known(self.unseen_right / self.num_unseen)

  @property
  def overall(self) -> Array:
    """Acc_Y/Y of each point, [T + 1]."""
    return self._known(self.right / self.num_examples)

  def ausuc(self) -> Number:
    """Area under (Acc_S/Y, Acc_U/Y) by trapezoids, in [0, 1]."""
    seen, unseen = self.seen_right, self.unseen_right
    if isinstance(seen, np.ndarray):  # exact, in integers
      twice = np.sum((unseen[1:] + unseen[:-1]) * (seen[:-1] - seen[1:]))
      return twice / (2 * self.num_seen * self.num_unseen)
    lost = (seen[:-1] - seen[1:]) / self.num_seen
    return self._known(((unseen[1:] + unseen[:-1]) / (2 * self.num_unseen) * lost).sum())

  def best_gamma(self) -> Number:
    """gamma-star: maximises Acc_Y/Y; an oracle where the data are test data. See `best_gamma`."""
    return self.middle(self.right)

  def best_harmonic_mean(self) -> tuple[Number, Number]:
    """Largest harmonic mean of Acc_S/Y and Acc_U/Y, and a gamma that reaches it."""
    xp = arrays.namespace(self.seen_right)
    total = self.seen + self.unseen
    values = 2 * self.seen * self.unseen / xp.where(total > 0, total, 1)
    values = xp.where(self._reached(), values, -1.0)
    return self._known(values.max()), self.middle(values)

  def _known(self, x: Array) -> Array:
    """The floats `x`, or NaN where the thresholds are."""
    if arrays.namespace(self.thresholds) is np:
      return x
    return arrays.nan_unless(~jnp.isnan(self.thresholds).any(), x)

  def _bounds(self) -> tuple[Array, Array]:
    xp = arrays.namespace(self.thresholds)
    infinite = xp.full(1, np.inf, self.thresholds.dtype)
    lower = xp.concatenate([-infinite, self.thresholds])
    return lower, xp.concatenate([self.thresholds, infinite])

  def _reached(self) -> Array:
    """Whether some finite gamma lies at each point."""
    lower, upper = self._bounds()
    return lower < upper

  def middle(self, score: Array) -> Number:
    """The gamma in the middle of the points' interval with the largest `score`.

    Args:
      score: [T + 1]. Of equal ones the interval nearest 0 is taken (then the lower one).

    Returns:
      The middle; of an interval without end the number nearest 0 that is at least 1 from its end.
    """
    xp = arrays.namespace(self.thresholds)
    lower, upper = self._bounds()
    reached = lower < upper
    worst = xp.min(score)
    best = reached & (score == xp.max(xp.where(reached, score, worst)))
    distance = xp.maximum(xp.maximum(lower, -upper), 0)
    k = xp.argmin(xp.where(best, distance, np.inf))
    low, high = lower[k], upper[k]
    no_low, no_high = xp.isinf(low), xp.isinf(high)
    finite_low, finite_high = xp.where(no_low, 0, low), xp.where(no_high, 0, high)
    gamma = finite_low + (finite_high - finite_low) / 2
    gamma = xp.where(no_low, xp.minimum(finite_high - 1, 0), gamma)
    gamma = xp.where(no_high, xp.maximum(finite_low + 1, 0), gamma)
    gamma = xp.where(no_low & no_high, 0, gamma)
    return float(gamma) if xp is np else self._known(gamma)


def _best(xp: ModuleType, z: Array, absent: Array) -> tuple[Array, ...]:
  """Largest logit of the seen side and of the absent side, and the class of each."""
  absent = absent[None]
  seen_side = xp.where(absent, -np.inf, z)
  absent_side = xp.where(absent, z, -np.inf)
  s, u = seen_side.argmax(-1), absent_side.argmax(-1)
  if xp is np:  # max would be a second pass
    one = np.arange(len(z))
    return seen_side[one, s], s, absent_side[one, u], u
  return arrays.widen(xp, seen_side.max(-1)), s, arrays.widen(xp, absent_side.max(-1)), u


def margins(logits: Any, absent: Any) -> Array:
  """The margin: largest logit of a class that is not absent minus largest of an absent class.

  Args:
    logits: [N, C].
    absent: [C], boolean.

  Returns:
    [N]; the answer is an absent class under every gamma above it. numpy for numpy, else JAX.

  Raises:
    ValueError: see `checks`.

  >>> margins([[.1, .2, .4, .3]], [True, True, False, False]).round(6)
  array([0.2])
  """
  logits = checks.logits(logits)
  absent = checks.mask(absent, logits.shape[1])
  seen_side, _, absent_side, _ = arrays.map_rows(_best, (logits,), (absent,))
  if isinstance(seen_side, np.ndarray):
    return arrays.host(seen_side) - arrays.host(absent_side)
  return arrays.nan_unless(checks.valid(logits, None, absent), seen_side - absent_side)


def seen_unseen_curve(logits: Any, labels: Any, absent: Any, third: Any = None) -> Curve:
  """Acc_S/Y and Acc_U/Y under every gamma (the paper's section on AUSUC; calibration is eq. 4).

  Args:
    logits: [N, C], of test data. -inf rules a class out for a row.
    labels: [N].
    absent: [C], boolean: the classes U without fine-tuning data.
    third: [C], boolean: classes that are neither seen nor absent.

  Returns:
    The curve: numpy and exact, unless its input is traced or spread over hosts.

  Raises:
    ValueError: see `checks`; no example of a seen or of an absent class.

  >>> curve = seen_unseen_curve([[3., 1.], [1., 2.], [2., 0.]], [0, 1, 1], [False, True])
  >>> curve.thresholds, curve.seen, curve.unseen
  (array([-1.,  2.,  2.]), array([1., 1., 0., 0.]), array([0. , 0.5, 1. , 1. ]))
  >>> curve.ausuc(), curve.best_gamma()  # the tie at 2 counts one half
  (np.float64(0.75), 0.5)
  """
  logits = checks.logits(logits)
  labels = checks.labels(labels, *logits.shape)
  absent, third = checks.groups(absent, third, logits.shape[1])
  checks.occur(labels, absent, "an absent class")
  xp = arrays.namespace(logits, labels, absent, third)
  absent, third, labels = xp.asarray(absent), xp.asarray(third), xp.asarray(labels)
  checks.occur(labels, ~(absent | third), "a seen class")
  margin, right, unseen = right_in_own_group(logits, labels, absent)
  of_third = arrays.host(third[labels])
  curve = _count(arrays.namespace(margin, unseen, of_third), margin, right, unseen, of_third)
  alone = ~(absent & third).any()
  both = (curve.num_seen > 0) & (curve.num_unseen > 0)
  valid = checks.valid(logits, labels, absent, fits=alone & both)
  thresholds = arrays.nan_unless(valid, curve.thresholds)
  return dataclasses.replace(curve, thresholds=thresholds)


def right_in_own_group(logits: Array, labels: Array, absent: Array) -> tuple[Array, Array, Array]:
  """What decides each example under every gamma; arguments as of `seen_unseen_curve`, checked.

  Returns:
    [N] each: the margin; whether the label wins on its own side of it; whether that is the absent
    side.
  """
  seen_side, s, absent_side, u = map(arrays.host, arrays.map_rows(_best, (logits,), (absent,)))
  labels, unseen = arrays.host(labels), arrays.host(absent[labels])
  xp = arrays.namespace(seen_side, labels, unseen)
  right = xp.where(unseen, (u == labels) & (absent_side > -np.inf),
                   (s == labels) & (seen_side > -np.inf))  # fmt: skip
  return seen_side - absent_side, right, unseen


def _count(xp: ModuleType, margin: Array, right: Array, unseen: Array, third: Array) -> Curve:
  """The curve of margins [N], with flags: right on its own side, of an absent or third class."""
  seen = ~(unseen | third)
  integer = np.int64 if xp is np else jnp.int32
  totals = xp.sum(seen, dtype=integer), xp.sum(unseen, dtype=integer)
  if xp is np:
    kinds = [group[right] for group in (seen, third, unseen)]
    margin = margin[right]
  else:
    kinds = [group & right for group in (seen, third, unseen)]
    margin = xp.where(right, margin, np.inf)
  order = xp.argsort(margin)
  thresholds = margin[order]
  last = xp.searchsorted(thresholds, thresholds, side="right")  # equal margins go together
  passed = []
  for kind in kinds:
    count = xp.concatenate([xp.zeros(1, integer), xp.cumsum(kind[order], dtype=integer)])
    passed.append(xp.concatenate([count[:1], count[last]]))
  seen_right, third_right, unseen_right = (
    passed[0][-1] - passed[0], passed[1][-1] - passed[1], passed[2],
  )  # fmt: skip
  everyone = seen_right + third_right + unseen_right
  return Curve(thresholds, seen_right, unseen_right, everyone, *totals, unseen.shape[0])


def ausuc(logits: Any, labels: Any, absent: Any, third: Any = None) -> Number:
  """Area under the seen-unseen curve, in [0, 1]; arguments as of `seen_unseen_curve`.

  >>> ausuc([[2., 1.], [0., 1.]], [0, 1], [False, True])
  np.float64(1.0)
  """
  return seen_unseen_curve(logits, labels, absent, third).ausuc()


def best_gamma(logits: Any, labels: Any, absent: Any, third: Any = None) -> Number:
  """gamma-star: the gamma that maximises Acc_Y/Y on the data given.

  It needs labels of absent classes, so on test data it is an oracle and no method. Of several
  best intervals between thresholds the one nearest 0 is taken, and its middle; of an interval
  without end the number nearest 0 that is at least 1 from its end.

  Args:
    logits: [N, C].
    labels: [N].
    absent: [C], boolean.
    third: [C], boolean.

  Returns:
    gamma, in logits. Where thresholds lie closer than the precision of the logits, adding it to
    them rounds, and a few answers may differ from the curve's.

  >>> best_gamma([[3., 1.], [3., 2.]], [0, 1], [False, True])
  1.5
  """
  return seen_unseen_curve(logits, labels, absent, third).best_gamma()
