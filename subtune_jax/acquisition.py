"""Which unlabelled examples to label next, by one interface for all rules.

A rule reads what a network says of the pool and returns the examples in the order in which they are
wanted: `RULES["margin"].choose(pool, count, seed)`. Functions of NumPy arrays.
"""

from collections.abc import Callable
import dataclasses
from typing import Literal, NamedTuple

import numpy as np

Need = Literal["probabilities", "features"]
_ROWS = 1024  # of distances at a time


class Pool(NamedTuple):
  """What a network says of the examples without a label, as far as the rule needs it.

  Attributes:
    size: number of examples.
    probabilities: [size, num_classes] softmax of the logits.
    features: [size, d] what the head reads.
    labelled: [m, d] features of the examples that have a label; None where they are not known.
  """

  size: int
  probabilities: np.ndarray | None = None
  features: np.ndarray | None = None
  labelled: np.ndarray | None = None


class Chosen(NamedTuple):
  """The examples that a rule wants labelled, the most wanted first.

  Attributes:
    places: [count] positions in the pool, all different.
    scores: [count] what the rule measured of each; see `Rule.score`.
  """

  places: np.ndarray
  scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Rule:
  """A rule of acquisition.

  Attributes:
    title: in tables and figures.
    score: what its scores are.
    needs: arrays of the pool that it reads.
    pick: (pool, count, random generator) -> `Chosen`.
  """

  title: str
  score: str
  needs: frozenset[Need]
  pick: Callable[[Pool, int, np.random.Generator], Chosen]

  def choose(self, pool: Pool, count: int, seed: int = 0) -> Chosen:
    """The `count` examples of the pool to label next.

    Args:
      pool: what the rule needs of it; the rest may be None.
      count: at least 1, at most the pool's size.
      seed: of the rules that draw.

    Raises:
      ValueError: a count out of range; an array that is missing, of another length or not finite.
    """
    if not 1 <= count <= pool.size:
      raise ValueError(
        f"{count} examples are wanted of a pool of {pool.size}; give 1 to {pool.size}"
      )
    for name in sorted(self.needs):
      values = getattr(pool, name)
      if values is None or values.ndim != 2 or len(values) != pool.size:
        found = "none" if values is None else f"shape {values.shape}"
        raise ValueError(
          f"the rule {self.title!r} needs {name} of {pool.size} examples; found {found}"
        )
      if not np.isfinite(values).all():
        raise ValueError(f"the pool's {name} hold a value that is not finite")
    return self.pick(pool, count, np.random.default_rng(seed))


def margins(probabilities: np.ndarray) -> np.ndarray:
  """[n] the largest probability minus the second largest; with one class, that itself."""
  ordered = np.sort(np.asarray(probabilities, np.float64), axis=1)
  return ordered[:, -1] - (ordered[:, -2] if ordered.shape[1] > 1 else 0.0)


def entropies(probabilities: np.ndarray) -> np.ndarray:
  """[n] entropy in nats."""
  p = np.asarray(probabilities, np.float64)
  return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=1)


def _first(scores: np.ndarray, order: np.ndarray, count: int) -> Chosen:
  places = np.argsort(order, kind="stable")[:count]
  return Chosen(places, scores[places])


def _margin(pool: Pool, count: int, rng: np.random.Generator) -> Chosen:
  del rng
  assert pool.probabilities is not None  # `choose` has looked
  scores = margins(pool.probabilities)
  return _first(scores, scores, count)


def _entropy(pool: Pool, count: int, rng: np.random.Generator) -> Chosen:
  del rng
  assert pool.probabilities is not None  # `choose` has looked
  scores = entropies(pool.probabilities)
  return _first(scores, -scores, count)


def _random(pool: Pool, count: int, rng: np.random.Generator) -> Chosen:
  return Chosen(rng.permutation(pool.size)[:count], np.zeros(count))


def _squared_distances(features: np.ndarray, to: np.ndarray) -> np.ndarray:
  """[n, m] squared Euclidean distances of float64 rows."""
  cross = features @ to.T
  return np.maximum((features**2).sum(1)[:, None] - 2 * cross + (to**2).sum(1)[None], 0)


def _nearest(features: np.ndarray, to: np.ndarray) -> np.ndarray:
  """[n] squared distance of each row to the nearest row of `to`."""
  found = np.full(len(features), np.inf)
  for begin in range(0, len(to), _ROWS):
    part = _squared_distances(features, to[begin : begin + _ROWS])
    found = np.minimum(found, part.min(1))
  return found


def _coreset(pool: Pool, count: int, rng: np.random.Generator) -> Chosen:
  """k-centre greedy (Sener and Savarese 2018, algorithm 1): always the one farthest from all others
  that have a label or were taken. Without labelled ones the first is the nearest to the mean.
  """
  del rng
  features = np.asarray(pool.features, np.float64)
  places, scores = [], []
  if pool.labelled is not None and len(pool.labelled):
    nearest = _nearest(features, np.asarray(pool.labelled, np.float64))
  else:
    to_mean = _nearest(features, features.mean(0, keepdims=True))
    places, scores = [int(np.argmin(to_mean))], [float(np.sqrt(to_mean.min()))]
    nearest = _nearest(features, features[places])
  nearest[places] = -1.0  # taken
  while len(places) < count:
    place = int(np.argmax(nearest))
    places.append(place)
    scores.append(float(np.sqrt(nearest[place])))
    nearest = np.minimum(nearest, _nearest(features, features[place : place + 1]))
    nearest[place] = -1.0
  return Chosen(np.array(places), np.array(scores))


def _badge(pool: Pool, count: int, rng: np.random.Generator) -> Chosen:
  """BADGE (Ash et al. 2020): k-means++ on the gradients of the head for the predicted classes.

  The gradient of an example is the outer product of (probabilities - one-hot of the prediction) and
  its features, so distances come from two Gram matrices and it is never written out. The first one
  has the largest gradient, as in the authors' code; each further one is drawn with a probability
  that grows with the squared distance from those taken.
  """
  features = np.asarray(pool.features, np.float64)
  errors = np.array(pool.probabilities, np.float64)
  errors[np.arange(pool.size), errors.argmax(1)] -= 1.0
  norms = (errors**2).sum(1) * (features**2).sum(1)

  def distance(place: int) -> np.ndarray:
    cross = (errors @ errors[place]) * (features @ features[place])
    return np.maximum(norms - 2 * cross + norms[place], 0.0)

  places, nearest = [int(np.argmax(norms))], np.full(pool.size, np.inf)
  while True:
    nearest = np.minimum(nearest, distance(places[-1]))
    nearest[places] = 0.0
    if len(places) == count:
      break
    total = nearest.sum()
    if total > 0:
      places.append(int(rng.choice(pool.size, p=nearest / total)))
    else:  # the rest are copies of those taken
      free = np.setdiff1d(np.arange(pool.size), places, assume_unique=True)
      places.append(int(free[0]))
  return Chosen(np.array(places), np.sqrt(norms[places]))


_P: frozenset[Need] = frozenset({"probabilities"})
_F: frozenset[Need] = frozenset({"features"})

# Name -> rule, in the order of tables.
RULES: dict[str, Rule] = {
  "random": Rule("Random", "0 for all", frozenset(), _random),
  "margin": Rule("Margin", "largest probability minus the second; small is doubtful", _P, _margin),
  "entropy": Rule("Entropy", "entropy of the probabilities in nats", _P, _entropy),
  "coreset": Rule("Coreset", "distance of features to the nearest one taken before", _F, _coreset),
  "badge": Rule("BADGE", "length of the head's gradient", _P | _F, _badge),
}
