"""When a greedy search goes on, and what it may spend."""

from collections.abc import Callable
import dataclasses

from subtune_jax.data import choices
from subtune_jax.search import scores, significance
from subtune_jax.search import units as units_lib

KINDS = ("gain", "significance", "tolerant", "size")
TIE = 1e-9  # accuracies closer than this are equal: means of folds are rounded


@dataclasses.dataclass(frozen=True)
class Rule:
  """When a step counts.

  Attributes:
    kind:
      "gain": a unit stays only if it earns more than `epsilon` (SubTuning, algorithm 1). Forward,
        a step is taken when its score exceeds the best so far by more than that; backward, a unit
        goes while the score stays within `epsilon` of the best so far.
      "significance": likewise with a paired test over folds in place of `epsilon`: a unit stays
        only if its gain is significant at `alpha` (`significance.paired_gain`, corrected for the
        number of candidates it was picked from).
      "tolerant": that of the paper's released code. Every step is taken; the search ends when a
        step falls below the best by more than `epsilon`, and returns the best set it has seen.
      "size": steps until `size` units are trained.
    epsilon: in accuracy: 0.01 is one point.
    alpha: level of the test.
    size: number of units, for "size".
    overlap: of the folds' training sets, for the test: 1 / (folds - 1).
  """

  kind: str = "gain"
  epsilon: float = 0.01
  alpha: float = 0.05
  size: int | None = None
  overlap: float = 0.0

  def __post_init__(self):
    choices.check("rule", self.kind, KINDS)
    if not 0 <= self.epsilon < 1:
      raise ValueError(f"epsilon is {self.epsilon}; it is an accuracy in [0, 1): 0.01 is one point")
    if not 0 < self.alpha < 1:
      raise ValueError(f"alpha is {self.alpha}; it must be in (0, 1)")
    if self.kind == "size" and (self.size is None or self.size < 1):
      raise ValueError(f"size is {self.size}; the rule 'size' needs a number of units, at least 1")

  @property
  def wanted(self) -> int | None:
    """The number of units at which a search ends; None where gains decide."""
    return self.size if self.kind == "size" else None

  def earns(
    self, larger: scores.Score, smaller: scores.Score | None, comparisons: int
  ) -> tuple[bool, str]:
    """Whether the unit that `larger` has and `smaller` lacks earns its place, and why.

    Args:
      larger: score of the set with the unit.
      smaller: score without it, or None for a score of 0 (the paper's start); diverged is 0.
      comparisons: the number of candidates that the unit was picked from.
    """
    if larger.diverged:
      return False, "a training with it diverged"
    smaller = None if smaller is None or smaller.diverged else smaller
    gain = larger.mean - (smaller.mean if smaller else 0.0)
    if self.kind == "significance" and smaller is not None:
      test = significance.paired_gain(
        larger, smaller, overlap=self.overlap, comparisons=comparisons
      )
      earned = bool(test.p_value <= self.alpha)
      sign = "<=" if earned else ">"
      return earned, f"gain {gain:+.4f}, p {test.p_value:.3f} {sign} {self.alpha:g}"
    threshold = self.epsilon if self.kind == "gain" else 0.0
    earned = gain > threshold + TIE
    sign = ">" if earned else "<="
    return earned, f"gain {gain:+.4f} {sign} epsilon {threshold:g}"


@dataclasses.dataclass(frozen=True)
class Budget:
  """What a search may choose and spend; None is no limit.

  Attributes:
    trained_params: of the chosen set, with the head.
    fork_macs: multiply-adds that the chosen set adds to the inference of one image.
    seconds: of training, compiling included, counted over the trainings that the search asked for,
      whether they were done now or by an earlier start.
  """

  trained_params: int | None = None
  fork_macs: int | None = None
  seconds: float | None = None

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value is not None and not value > 0:
        raise ValueError(f"budget of {field.name} is {value}; give more than 0, or None")

  def allows(self, network: units_lib.Network, units: scores.Units) -> bool:
    """Whether the cost of a set is within the budget."""
    params, macs = self.trained_params, self.fork_macs
    return (params is None or network.trained_params(units) <= params) and (
      macs is None or network.fork_macs(units) <= macs
    )

  def spent(self, clock: Callable[[], float]) -> bool:
    """Whether the seconds are used up."""
    return self.seconds is not None and clock() >= self.seconds
