"""How sure is it that the chosen set of units is the best of those tried?

The highest of sixteen noisy scores is high partly by luck. Here all scores of a step are fitted
together, and the certificate is read off the posterior of their true means. The accuracy of
candidate c on fold j is

  y_cj = mu_c + b_j + u_c + e_cj,   e_cj ~ N(0, sigma^2),   u_c ~ N(0, overlap sigma^2),
  mu_c ~ N(m, tau^2).

* b_j, flat: the images of fold j, the same for all candidates (scores are paired).
* u_c: what is peculiar to training sets that overlap, which more folds do not average out. A mean
  over J folds so has the variance sigma^2 (1 / J + overlap) of Nadeau and Bengio ("Inference for
  the Generalization Error", Machine Learning 52, 2003).
  `overlap` is assumed, not estimated: u_c and mu_c both belong to one set each, so the scores tell
  the sum of their variances only. Where folds share less, the certificate is under-confident, where
  they share more, over-confident (benchmarks/certificate_calibration.py).
* m is flat and tau half-Cauchy of scale 0.05 (Gelman, "Prior distributions for variance parameters
  in hierarchical models", Bayesian Analysis 1, 2006). It shrinks the scores towards their mean by
  tau^2 / (tau^2 + sigma^2 (1 / J + overlap)): without that, the winner's luck would count as merit.
* sigma has the prior 1 / sigma: with all folds there, the residuals of the two-way table make it a
  scaled inverse chi-square with (C - 1)(J - 1) degrees of freedom. Where cells hold answers to
  images, sigma^2 = s^2 + t^2: s^2 is the sampling variance of a cell's accuracy, from the answers
  less what is common to an image; t, noise of training, has the prior |t_3| of scale 0.005. Few
  folds that agree by luck then do not pass for no noise, and a single fold has a sigma.

Scores may lack folds (`racing`). Given r = tau / sigma, y_c less the folds' effects has covariance
sigma^2 (I + h 11'), h = r^2 + overlap, with the inverse (I - h / (1 + h n_c) 11') / sigma^2 for n_c
folds. The precision matrix of the effects of the J folds then is M / sigma^2,

  M = sum_c diag(o_c) - h / (1 + h n_c) o_c o_c',   o_cj = 1 where c was trained on fold j,

and the rest of the likelihood is in closed form. So (r, sigma) are summed over a grid, the effects
are drawn by a Cholesky factor of M, and given all these the mu_c are independent normal.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from subtune_jax.search import scores as scores_lib
from subtune_jax.search import significance

TAU_SCALE = 0.05  # of the candidates' true accuracies, a priori
TRAINING_SCALE = 0.005  # of the noise of training beyond that of the images, a priori
SMALLEST, LARGEST = 1e-6, 0.5  # standard deviations of accuracies; above zero for equal scores
GRID = 33  # points per axis
LONGEST = 6  # units of a set that are all named
SHOWN = 5  # sets that `describe` names


@dataclasses.dataclass(frozen=True)
class Certificate:
  """How sure a choice is.

  Attributes:
    chosen: the set.
    probability_best: that no other set tried has a higher true accuracy.
    expected_regret: by how much the best is expected to exceed the chosen set, in accuracy.
    undecided: (set, probability that it is the best), the most probable first: the fewest sets that
      hold the best with a probability of at least `level`. The chosen set alone: it is decided.
    level: see `undecided`.
    tried: number of sets.
  """

  chosen: scores_lib.Units
  probability_best: float
  expected_regret: float
  undecided: tuple[tuple[scores_lib.Units, float], ...]
  level: float
  tried: int

  @property
  def decided(self) -> bool:
    """Whether the chosen set alone is the best with a probability of `level`."""
    return [units for units, _ in self.undecided] == [self.chosen]


def certify(
  scores: Sequence[scores_lib.Score],
  chosen: scores_lib.Units,
  *,
  overlap: float,
  level: float = 0.95,
  num_draws: int = 10_000,
  seed: int = 0,
) -> Certificate:
  """Says how sure it is that `chosen` is the best of the sets tried.

  Args:
    scores: of all sets that were tried, on the same folds; some folds may be missing.
    chosen: one of the sets.
    overlap: held-out images / training images: 1 / (k - 1) for k folds, 0 for cells that share no
      training image.
    level: of `Certificate.undecided`.
    num_draws: from the posterior; a probability is exact to 0.5 / sqrt(num_draws).
    seed: of the draws.

  Raises:
    ValueError: `chosen` was not tried, an option is not allowed, or see `draw_means`.
  """
  significance.check_level(level)
  units = [score.units for score in scores]
  if tuple(chosen) not in units:
    raise ValueError(f"chosen set {chosen!r} was not tried; sets with a score: {units}")
  means = draw_means(scores, overlap=overlap, num_draws=num_draws, seed=seed)
  place = units.index(tuple(chosen))
  best = np.bincount(means.argmax(axis=0), minlength=len(units)) / num_draws
  order = np.argsort(-best, kind="stable")
  # The small number is for rounding: 0.95 may be summed as 0.9499999.
  enough = 1 + int(np.searchsorted(np.cumsum(best[order]), level - 1e-9))
  return Certificate(
    chosen=units[place],
    probability_best=float(best[place]),
    expected_regret=float(np.mean(means.max(axis=0) - means[place])),
    undecided=tuple((units[i], float(best[i])) for i in order[:enough]),
    level=level,
    tried=len(units),
  )


def describe(certificate: Certificate) -> str:
  """The certificate in a line or two of plain words."""
  name = label(certificate.chosen)
  if certificate.tried == 1:
    return f"{name} is the only set tried"
  first = (
    f"{name} is the best of {certificate.tried} sets tried with probability"
    f" {certificate.probability_best:.2f} (expected regret"
    f" {100 * certificate.expected_regret:.1f} points)"
  )
  if certificate.decided:
    return f"{first}; decided at the level {certificate.level:g}"
  names = [label(units) for units, _ in certificate.undecided]
  more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
  if len(names) == 1:
    return f"{first};\n{names[0]} is the best with probability {certificate.undecided[0][1]:.2f}"
  return f"{first};\nundecided between {', '.join(names[:SHOWN])}{more}"


def label(units: scores_lib.Units, empty: str = "the head alone") -> str:
  """A set of units as text: of a long one the ends and the number, of an empty one `empty`."""
  if len(units) > LONGEST:
    return f"{units[0]}+...+{units[-1]} ({len(units)} units)"
  return "+".join(units) or empty


def draw_means(
  scores: Sequence[scores_lib.Score],
  *,
  overlap: float,
  references: Sequence[scores_lib.Score] = (),
  num_draws: int = 10_000,
  seed: int = 0,
) -> np.ndarray:
  """Draws the true accuracies of the sets from their posterior.

  Args:
    scores: of the candidates, on the same folds; some folds may be missing.
    overlap: see `certify`.
    references: scores on the same folds of sets that are not of the candidates' kind, such as the
      set that they are to improve. They tell of the folds and of the noise; their means are flat a
      priori.
    num_draws: number of draws.
    seed: of the draws.

  Returns:
    [candidates, num_draws] accuracies, up to a number that the candidates of a draw share.

  Raises:
    ValueError: no score, a set twice, other folds, a score that is not finite, sets that share no
      fold, or nothing that tells of the noise.
  """
  significance.check_overlap(overlap)
  if num_draws < 1:
    raise ValueError(f"num_draws is {num_draws}; use at least 1, better 10000")
  table = _table(scores, references)
  if len(scores) == 1:
    return np.zeros((1, num_draws))
  _check_informed(table)
  return _draw(table, overlap, num_draws, np.random.default_rng(seed))


def informed(
  scores: Sequence[scores_lib.Score], references: Sequence[scores_lib.Score] = ()
) -> bool:
  """Whether the scores tell of their noise, so that `draw_means` can judge them."""
  table = _table(scores, references)
  return len(scores) == 1 or bool(table.seen.any() and table.tells_noise)


@dataclasses.dataclass(frozen=True)
class _Table:
  """Scores of candidates, then of references, on folds of a candidate and another set.

  Attributes:
    accuracy: [sets, folds] less the mean of the fold; 0 where missing.
    seen: [sets, folds] 1 where there is a score, else 0.
    candidate: [sets] False for references.
    image_variance: sampling variance of a cell's accuracy; 0 where cells hold no images.
  """

  accuracy: np.ndarray
  seen: np.ndarray
  candidate: np.ndarray
  image_variance: float

  @property
  def tells_noise(self) -> bool:
    """Whether there are images, or residuals of sets and folds."""
    sets, folds = int(self.seen.any(axis=1).sum()), self.seen.shape[1]
    return self.image_variance > 0 or self.seen.sum() > sets + folds - 1


def _table(scores: Sequence[scores_lib.Score], references: Sequence[scores_lib.Score]) -> _Table:
  """Checks the scores and makes a table of them."""
  both = [*scores, *references]
  _check_scores(scores, both)
  accuracy = np.array([score.by_fold for score in both])
  # A fold with one score, or without a candidate, says nothing of their differences.
  trained = np.isfinite(accuracy)
  folds = (trained.sum(axis=0) > 1) & trained[: len(scores)].any(axis=0)
  accuracy = accuracy[:, folds]
  seen = np.isfinite(accuracy)
  accuracy = np.where(seen, accuracy, 0.0)
  centred = np.where(seen, accuracy - accuracy.sum(axis=0) / seen.sum(axis=0), 0.0)
  candidate = np.arange(len(both)) < len(scores)
  return _Table(centred, seen.astype(np.float64), candidate, _image_variance(both))


def _image_variance(scores: Sequence[scores_lib.Score]) -> float:
  """Variance of a cell's accuracy by the drawing of its images, less what sets have in common.

  The answers of a fold are a table of sets by images: its residuals are the paired noise.
  """
  squares, freedom = 0.0, 0
  for fold in range(len(scores[0].cells)):
    every = (score.cells[fold] for score in scores)
    cells = [cell for cell in every if cell is not None and len(cell) > 1]
    if len({len(cell) for cell in cells}) > 1:
      raise ValueError(
        f"fold {fold} has cells of {sorted({len(cell) for cell in cells})} images; all sets must be"
        " scored on the same held-out images"
      )
    if len(cells) > 1:
      answers = np.stack(cells).astype(np.float64)
      answers -= answers.mean(axis=1, keepdims=True)
      answers -= answers.mean(axis=0)
      squares += np.sum(answers**2) / len(cells[0])
      freedom += (len(cells) - 1) * (len(cells[0]) - 1)
  # Sets may answer all alike: above zero, it still says that there are images.
  return max(float(squares / freedom), SMALLEST**2) if freedom else 0.0


class _Grid:
  """The posterior of r = tau / sigma and of sigma on a grid that covers it.

  Attributes:
    ratios: [GRID] values of r.
    sigmas: [GRID] values of sigma.
    shape: (GRID, GRID).
    cumulative: [GRID * GRID] sums of the probabilities, r outermost.
  """

  shape = (GRID, GRID)

  def __init__(self, table: _Table, overlap: float):
    self._table, self._overlap = table, overlap
    image = np.sqrt(table.image_variance)
    # Coordinates that are linear about zero and logarithmic far from it.
    scales = np.array([0.2 * np.sqrt(1 / table.seen.shape[1] + overlap), image or SMALLEST])
    floor = 0.0 if image else SMALLEST
    low = np.arcsinh(np.array([0.0, floor]) / scales)
    high = np.arcsinh(np.array([LARGEST / max(image, SMALLEST), LARGEST]) / scales)
    for _ in range(3):  # all there may be, then closer and closer to where the posterior is
      axes = np.linspace(low, high, GRID)
      nodes = scales * np.sinh(axes)
      steps = scales * np.cosh(axes)
      weights = self._weights(nodes[:, 0], nodes[:, 1], image)
      weights *= steps[:, :1] * steps[:, 1]
      weights[[0, -1]] /= 2  # the trapezoid rule
      weights[:, [0, -1]] /= 2
      low, high = _covering(axes, weights)
    self.cumulative = np.cumsum(weights.ravel()) / weights.sum()

  def _weights(self, ratios: np.ndarray, training: np.ndarray, image: float) -> np.ndarray:
    """Density, up to a constant, at values of r and of the noise of training."""
    table = self._table
    self.ratios, self.sigmas = ratios, np.sqrt(image**2 + training**2)
    spread = ratios[:, None] ** 2 + self._overlap
    count = table.seen.sum(axis=1)
    # References have a flat mean: h is infinite and h / (1 + h n) is 1 / n.
    pooled = np.where(
      table.candidate, spread / (1 + spread * count), 1 / np.maximum(count, 1)
    )  # [GRID, sets]
    sums = table.accuracy.sum(axis=1)
    outer = table.seen[:, :, None] * table.seen[:, None, :]
    self._precision = np.diag(table.seen.sum(axis=0)) - np.tensordot(pooled, outer, 1)
    moment = table.accuracy.sum(axis=0) - (pooled * sums) @ table.seen
    self._effects = np.linalg.solve(self._precision, moment[..., None])[..., 0]
    square = np.sum(table.accuracy**2) - pooled @ sums**2 - np.sum(moment * self._effects, axis=1)
    determinant = np.linalg.slogdet(self._precision)[1]
    determinant += np.log1p(spread * count)[:, table.candidate].sum(axis=1)
    freedom = count.sum() - table.seen.shape[1] - np.sum(~table.candidate & (count > 0))
    log = -0.5 * determinant[:, None] - freedom * np.log(self.sigmas)
    log -= 0.5 * np.maximum(square, 0.0)[:, None] / self.sigmas**2
    weights = np.exp(log - log.max()) * self._prior(training, image)
    assert np.isfinite(weights).all(), "the posterior is not finite"
    return weights

  def _prior(self, training: np.ndarray, image: float) -> np.ndarray:
    """[GRID, GRID] density of (r, noise of training)."""
    tau = self.ratios[:, None] * self.sigmas
    noise = (1 + (training / TRAINING_SCALE) ** 2 / 3) ** -2 if image else 1 / training
    return self.sigmas * (tau <= LARGEST) / (1 + (tau / TAU_SCALE) ** 2) * noise

  def draw_effects(self, ratio: np.ndarray, sigma: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Draws the effects of the folds.

    Args:
      ratio: [draws] places on the grid.
      sigma: [draws].
      normal: [folds, draws] standard normal draws.

    Returns:
      [folds, draws].
    """
    factor = np.linalg.cholesky(np.linalg.inv(self._precision))
    noise = np.zeros_like(normal)
    for i in range(len(normal)):
      for j in range(i + 1):
        noise[i] += factor[ratio, i, j] * normal[j]
    return self._effects[ratio].T + sigma * noise


def _draw(table: _Table, overlap: float, num_draws: int, rng: np.random.Generator) -> np.ndarray:
  """Returns [candidates, num_draws] true accuracies, see `draw_means`."""
  grid = _Grid(table, overlap)
  # Equally spaced quantiles of the grid; the normal draws beside them are independent.
  place = np.searchsorted(grid.cumulative, (np.arange(num_draws) + 0.5) / num_draws)
  ratio, noise = np.unravel_index(np.minimum(place, grid.cumulative.size - 1), grid.shape)
  sigma = grid.sigmas[noise]
  candidates = int(table.candidate.sum())
  own = rng.standard_normal((candidates, num_draws))
  effects = grid.draw_effects(ratio, sigma, rng.standard_normal((table.seen.shape[1], num_draws)))
  seen = table.seen[:candidates]
  # mu_c given the effects b: its share of the residuals, and the spread that is left.
  count = seen.sum(axis=1, keepdims=True)
  square = grid.ratios**2
  share = square / (1 + count * (square + overlap))  # [candidates, GRID]
  left = np.sqrt(square * np.maximum(1 - count * share, 0.0))
  residual = table.accuracy[:candidates].sum(axis=1, keepdims=True) - seen @ effects
  return share[:, ratio] * residual + left[:, ratio] * (sigma * own)


def _covering(axes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Ends, per axis [GRID, 2], of where the weights are not negligible, one point further out."""
  ends = []
  for axis in range(2):
    mass = weights.max(axis=1 - axis)
    where = np.flatnonzero(mass > 1e-5 * mass.max())
    ends.append((axes[max(where[0] - 1, 0), axis], axes[min(where[-1] + 1, GRID - 1), axis]))
  low, high = np.array(ends).T
  return low, high


def _check_scores(scores: Sequence[scores_lib.Score], both: Sequence[scores_lib.Score]) -> None:
  if not scores:
    raise ValueError("scores are empty; pass the scores of the sets that were tried")
  units = [score.units for score in both]
  twice = {label(u) for u in units if units.count(u) > 1}
  if twice:
    raise ValueError(f"sets with two scores: {sorted(twice)}; pass each set once")
  folds = {len(score.cells) for score in both}
  if len(folds) > 1:
    raise ValueError(f"scores have {sorted(folds)} folds; score all sets on the same folds")
  for score in both:
    trained = [cell for cell in score.cells if cell is not None]
    if not trained or not all(len(cell) and np.isfinite(cell).all() for cell in trained):
      raise ValueError(
        f"score of {label(score.units)} is {score.by_fold} by fold; leave out sets without a finite"
        " accuracy"
      )


def _check_informed(table: _Table) -> None:
  if not table.seen.any():
    raise ValueError(
      "no two sets were trained on the same fold, so they cannot be compared; train them on one"
    )
  if not table.tells_noise:
    sets, folds = table.seen.shape
    raise ValueError(
      f"{int(table.seen.sum())} accuracies of {sets} sets on {folds} folds do not tell how noisy"
      " they are; use two folds or more, or scores that hold the answers to images"
    )
