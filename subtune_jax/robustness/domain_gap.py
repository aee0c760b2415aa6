"""How large a shift is, from unlabelled images: can a linear classifier tell the domains apart?

The proxy A-distance of Ben-David et al. (2007): 2 (1 - 2 error) of a classifier that separates the
features of two domains, on images it has not seen. 0: no shift that the features show; 2: none of
the images could have come from the other domain.
"""

from typing import Any

import numpy as np

from subtune_jax.training import evaluate, probe

L2 = 1e-2
FOLDS = 5


def proxy_a_distance(first: Any, second: Any, *, l2: float = L2, seed: int = 0) -> float:
  """Proxy A-distance of two sets of features, in [0, 2], by cross-validation.

  The error is balanced, so that the larger set counts no more than the smaller; one above one half
  counts as one half.

  Args:
    first: [n, features] of one domain.
    second: [m, features] of the other.
    l2: strength of the logistic regression, features standardised.
    seed: of the folds.

  Raises:
    ValueError: shapes do not fit, or a domain has fewer than 10 images, or a feature is
      not finite.
  """
  first, second = (np.asarray(x, np.float32) for x in (first, second))
  if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
    raise ValueError(f"features are {first.shape} and {second.shape}; give [n, features] of both")
  if min(len(first), len(second)) < 2 * FOLDS:
    raise ValueError(
      f"the domains have {len(first)} and {len(second)} images; give at least {2 * FOLDS} of each"
    )
  x = np.concatenate([first, second])
  y = np.repeat([0, 1], [len(first), len(second)]).astype(np.int32)
  rng = np.random.default_rng(seed)
  fold = np.empty(len(y), np.int64)
  for label in (0, 1):
    rows = rng.permutation(np.flatnonzero(y == label))
    fold[rows] = np.arange(len(rows)) % FOLDS
  wrong = np.zeros(len(y))
  for k in range(FOLDS):
    train, test = fold != k, fold == k
    path = probe.fit_path(x[train], y[train], num_classes=2, l2=(l2,), standardize="feature")
    head = path.head(0)
    logits = x[test] @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    wrong[test] = evaluate.predictions(logits) != y[test]
  error = np.mean([wrong[y == label].mean() for label in (0, 1)])
  return float(2 * (1 - 2 * min(error, 0.5)))
