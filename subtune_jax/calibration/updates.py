"""How fine-tuning moved the classifier: directions and lengths of the weights of each class."""

from typing import NamedTuple

import numpy as np

from subtune_jax.calibration import checks


class Updates(NamedTuple):
  """Delta w_c = w_c after minus w_c before, of every class c.

  Attributes:
    cosine: [C, C] cosine similarity of each pair of updates; 0 where one did not move.
    length: [C] |Delta w_c|.
    norm_before: [C] |w_c| before.
    norm_after: [C] |w_c| after.
  """

  cosine: np.ndarray
  length: np.ndarray
  norm_before: np.ndarray
  norm_after: np.ndarray


def classifier_updates(before: np.ndarray, after: np.ndarray) -> Updates:
  """The updates of a linear classifier (the paper's figure on their similarity, fig. 10).

  For a class without data the gradient is a sum of p_c(x) f(x) over the same images for every such
  class, so that all of them are pushed alike.

  Args:
    before: [features, C] weights of the source model.
    after: [features, C] of the fine-tuned one.

  Raises:
    ValueError: shapes differ or are not [features, C], or a weight is not finite.

  >>> classifier_updates([[0., 0., 1.]], [[1., -2., 1.]]).cosine.tolist()
  [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
  """
  before, after = (np.asarray(w, np.float64) for w in (before, after))
  if before.ndim != 2 or before.shape != after.shape or not before.size:
    raise ValueError(
      f"weights are {before.shape} before and {after.shape} after: give two [features, classes]"
    )
  for name, weights in (("before", before), ("after", after)):
    if not np.isfinite(weights).all():
      raise ValueError(f"a weight {name} is not finite")
  moved = after - before
  length = np.linalg.norm(moved, axis=0)
  unit = moved / np.where(length > 0, length, 1)
  norms = (np.linalg.norm(w, axis=0) for w in (before, after))
  return Updates(unit.T @ unit, length, *norms)


def mean_similarity(cosine: np.ndarray, absent: np.ndarray) -> dict[str, float | None]:
  """Means of `Updates.cosine` over pairs of different classes of each kind.

  Args:
    cosine: [C, C].
    absent: [C], boolean.

  Returns:
    {"seen", "absent", "between"}; None where there is no pair.
  """
  absent = np.asarray(checks.mask(absent, len(cosine)))
  different = ~np.eye(len(cosine), dtype=bool)
  kinds = {
    "seen": ~absent[:, None] & ~absent[None] & different,
    "absent": absent[:, None] & absent[None] & different,
    "between": absent[:, None] ^ absent[None],
  }
  return {name: float(cosine[k].mean()) if k.any() else None for name, k in kinds.items()}
