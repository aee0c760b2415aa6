"""Searches over sets of units: profile, windows, pairs, greedy forward and backward.

They know nothing of networks or training: a search asks `pick` for the best of some sets, and goes
on from there. SubTuning (arXiv 2302.06354): finetuning profile in section 2, greedy selection in
algorithm 1.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools

from subtune_jax.search import rules, scores
from subtune_jax.search import units as units_lib

FORWARD, BACKWARD = "none", "all"


@dataclasses.dataclass(frozen=True)
class Picked:
  """The best of some sets.

  Attributes:
    winner: its score, every fold trained.
    tried: the score of each set; folds may be missing of those that a race dropped.
  """

  winner: scores.Score
  tried: Mapping[scores.Units, scores.Score]


# pick(sets, incumbent): the best of the sets; a race pairs them with the score they must beat.
Pick = Callable[[Sequence[scores.Units], scores.Score | None], Picked]


@dataclasses.dataclass(frozen=True)
class Step:
  """One step of a greedy search.

  Attributes:
    base: the set before the step.
    tried: (set, mean score) of every candidate, in the order of the network.
    chosen: the best of them.
    score: its mean accuracy.
    taken: whether the search moved there.
    reason: why, or why not.
  """

  base: scores.Units
  tried: tuple[tuple[scores.Units, float], ...]
  chosen: scores.Units
  score: float
  taken: bool
  reason: str


@dataclasses.dataclass(frozen=True)
class Path:
  """A finished greedy search.

  Attributes:
    start: "none" (forward) or "all" (backward).
    steps: in order.
    chosen: the set found; () where not even one unit earned its place.
    score: its score; None for () without a baseline.
    stopped: why the search ended.
  """

  start: str
  steps: tuple[Step, ...]
  chosen: scores.Units
  score: scores.Score | None
  stopped: str


def profile(network: units_lib.Network) -> list[scores.Units]:
  """The single units: the finetuning profile (SubTuning, section 2.1)."""
  return windows(network, 1)


def windows(network: units_lib.Network, width: int) -> list[scores.Units]:
  """Every `width` units in a row.

  Raises:
    ValueError: a width below 1 or above the number of units.
  """
  names = network.names
  if not 1 <= width <= len(names):
    raise ValueError(f"window of {width} units; allowed: 1 to {len(names)}")
  return [names[i : i + width] for i in range(len(names) - width + 1)]


def pairs(network: units_lib.Network) -> list[scores.Units]:
  """Every two units."""
  return list(itertools.combinations(network.names, 2))


def best(network: units_lib.Network, tried: Sequence[scores.Score]) -> scores.Score:
  """The highest mean; of equal ones the set of fewest trained parameters, then the first.

  Raises:
    ValueError: of each set a training diverged; such a set is never the best.
  """
  count, tried = len(tried), [score for score in tried if not score.diverged]
  if not tried:
    raise ValueError(
      f"a training of each of the {count} sets to choose from diverged; lower the learning rate"
    )
  top = max(score.mean for score in tried)
  tied = [score for score in tried if score.mean >= top - rules.TIE]
  return min(tied, key=lambda score: network.trained_params(score.units))


def exact(network: units_lib.Network, evaluate: scores.Evaluate) -> Pick:
  """Picks by the scores of all sets on all folds."""

  def pick(sets: Sequence[scores.Units], incumbent: scores.Score | None) -> Picked:
    del incumbent
    tried = evaluate(sets)
    return Picked(best(network, [tried[units] for units in sets]), tried)

  return pick


def forward(
  network: units_lib.Network,
  pick: Pick,
  rule: rules.Rule,
  *,
  budget: rules.Budget | None = None,
  baseline: scores.Score | None = None,
  clock: Callable[[], float] = lambda: 0.0,
) -> Path:
  """Greedy selection from nothing, one unit a step.

  Args:
    network: the candidates.
    pick: finds the best set of a step.
    rule: when a step counts.
    budget: sets beyond it are not tried.
    baseline: the score of the head alone, which the first unit must beat; None is a score of 0, as
      in the paper: then the first unit is always taken. The rule "tolerant" starts from it in the
      released code.
    clock: seconds spent so far.
  """
  budget = budget or rules.Budget()
  search = _Search(FORWARD, network, pick, rule, baseline)
  while True:
    sets = network.larger(search.current)
    size = rule.wanted is not None and len(search.current) >= rule.wanted
    if size or not sets:
      return search.end(f"{len(search.current)} units" if size else "no unit is left")
    sets = [units for units in sets if budget.allows(network, units)]
    if not sets:
      return search.end("no further set is within the budget")
    if budget.spent(clock):
      return search.end(f"the budget of {budget.seconds:g} seconds is used up")
    if not search.step(sets):
      return search.end(search.steps[-1].reason)


def backward(
  network: units_lib.Network,
  pick: Pick,
  rule: rules.Rule,
  everything: scores.Score,
  *,
  budget: rules.Budget | None = None,
  clock: Callable[[], float] = lambda: 0.0,
) -> Path:
  """Greedy elimination from all units, one unit a step, down to the head alone if need be.

  Args:
    network: the candidates.
    pick: finds the best set of a step.
    rule: when a step counts.
    everything: the score of all units.
    budget: while the set exceeds it, units go whatever they earn.
    clock: seconds spent so far.
  """
  budget = budget or rules.Budget()
  search = _Search(BACKWARD, network, pick, rule, everything)
  search.current = network.everything
  while search.current:
    within = budget.allows(network, search.current)
    if within and rule.wanted is not None and len(search.current) <= rule.wanted:
      return search.end(f"{len(search.current)} units")
    if within and budget.spent(clock):
      return search.end(f"the budget of {budget.seconds:g} seconds is used up")
    if not search.step(network.smaller(search.current), forced=not within):
      return search.end(search.steps[-1].reason)
  return search.end("no unit is left")


class _Search:
  """Where a greedy search stands."""

  def __init__(self, start, network, pick, rule, score):
    self.start, self.network, self.pick, self.rule = start, network, pick, rule
    self.current: scores.Units = ()
    self.score = score  # of the current set
    self.best = score  # the highest so far, of sets that may be returned
    self.steps: list[Step] = []

  def step(self, sets: Sequence[scores.Units], forced: bool = False) -> bool:
    """Tries the sets and moves to the best of them if that counts; whether to go on."""
    picked = self.pick(sets, self.score)
    winner = picked.winner
    taken, reason = (True, "to get within the budget") if forced else self._judge(winner, len(sets))
    tried = tuple((units, picked.tried[units].mean) for units in sets if units in picked.tried)
    self.steps.append(Step(self.current, tried, winner.units, winner.mean, taken, reason))
    if not taken:
      return False
    self.current, self.score = winner.units, winner
    if forced or self.best is None or winner.mean > self.best.mean + rules.TIE:
      self.best = winner
    return True

  def _judge(self, winner: scores.Score, candidates: int) -> tuple[bool, str]:
    rule = self.rule
    if rule.kind == "size":
      return True, f"towards {rule.size} units"
    if rule.kind == "tolerant":
      drop = (self.best.mean if self.best else 0.0) - winner.mean
      ends = drop > rule.epsilon + rules.TIE
      sign = ">" if ends else "<="
      return not ends, f"drop {drop:+.4f} {sign} epsilon {rule.epsilon:g}"
    if self.start == FORWARD:
      return rule.earns(winner, self.best, candidates)
    # The kept unit must be worth it in comparison with the best set seen, so that small losses do
    # not add up. It was the cheapest to lose, so no correction for picking it.
    earns, reason = rule.earns(self.best, winner, 1)
    return not earns, reason

  def end(self, stopped: str) -> Path:
    """The search as a record. The tolerant rule returns the best set seen."""
    score, chosen = self.score, self.current
    if self.rule.kind == "tolerant" and self.best is not None:
      score, chosen = self.best, self.best.units
    return Path(self.start, tuple(self.steps), chosen, score, stopped)


def better(network: units_lib.Network, paths: Sequence[Path]) -> Path:
  """The path that ends higher; of equal ones that with fewer trained parameters."""
  found = {path.score.units: path for path in paths if path.score is not None}
  return found[best(network, [path.score for path in paths if path.score is not None]).units]
