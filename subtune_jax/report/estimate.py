"""A number with its interval."""

import dataclasses
import math

HIGHER, LOWER, UNDECIDED = "higher", "lower", "undecided"


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean and the ends of its 95 % interval, as fractions; NaN ends where they are not known."""

  mean: float
  low: float
  high: float

  @property
  def known(self) -> bool:
    """Whether there is an interval."""
    return not (math.isnan(self.low) or math.isnan(self.high))

  @property
  def half_width(self) -> float:
    return (self.high - self.low) / 2

  @property
  def verdict(self) -> str:
    """Of a difference: "higher" or "lower" if the interval excludes 0, else "undecided"."""
    if self.low > 0:
      return HIGHER
    return LOWER if self.high < 0 else UNDECIDED

  def __neg__(self) -> "Estimate":
    """The difference the other way round."""
    return Estimate(-self.mean, -self.high, -self.low)
