"""Which method should I use? An answer from validation data and unlabelled shifted images.

The conditions are those of the LP-FT paper: fine-tuning distorts features that were good, and that
costs accuracy where the shift is large. With features that a probe cannot use, or without a shift,
full fine-tuning has little to lose. No test label is read.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from subtune_jax.report import estimate, words
from subtune_jax.statistics import intervals

# Proxy A-distance (0 to 2) from which a shift counts as large: 90 % of the images told apart.
LARGE_SHIFT = 1.6
CLEAR, WEAK, UNDECIDED = "clear", "weak", "undecided"


@dataclasses.dataclass(frozen=True)
class Recommendation:
  """An answer and what it rests on.

  Attributes:
    method: the answer.
    among: the methods that validation cannot tell from the best, the best first.
    strength: "clear": validation decides; "weak": only the paper's argument does; "undecided".
    reasons: sentences, each with its numbers.
  """

  method: str
  among: tuple[str, ...]
  strength: str
  reasons: tuple[str, ...]


def recommend(
  correct: Mapping[str, np.ndarray],
  groups: np.ndarray,
  distortion: Mapping[str, float],
  shifts: Mapping[str, float],
  titles: Mapping[str, str],
  *,
  probe: str = "lp",
  large_shift: float = LARGE_SHIFT,
) -> Recommendation:
  """The answer for one data set.

  Args:
    correct: method -> [num_seeds, n] right answers on the validation split, in distribution.
    groups: [n] concept of each validation image.
    distortion: method -> mean relative feature distortion on the validation images.
    shifts: shifted set -> proxy A-distance from the validation images, of pretrained features;
      empty when only the training distribution counts.
    titles: method -> how it is called in the reasons.
    probe: the method that trains the head alone.
    large_shift: proxy A-distance from which a shift is large.

  Raises:
    ValueError: no method, or `distortion` lacks one.
  """
  if not correct or set(correct) - set(distortion):
    raise ValueError(f"methods {sorted(correct)}, distortion of {sorted(distortion)}; give both")
  means = {name: float(np.mean(x)) for name, x in correct.items()}
  best = max(means, key=lambda name: means[name])
  against = intervals.paired_bootstrap(correct, groups, reference=best).differences
  leaders = [best]
  leaders += [
    name for name in correct
    if name != best and estimate.Estimate(*against[name]).verdict == estimate.UNDECIDED
  ]  # fmt: skip
  reasons = [_who_leads(means, leaders, titles)]
  poor = probe in correct and probe not in leaders
  if probe in correct:
    reasons.append(_quality(means, against, best, probe, titles, poor))
  largest = max(shifts.values(), default=0.0)
  if shifts:
    reasons.append(_shift(shifts, largest, large_shift))
  if len(leaders) == 1:
    return Recommendation(best, (best,), CLEAR, tuple(reasons))
  tuned = [name for name in leaders if name != probe] or leaders
  least = min(tuned, key=lambda name: (distortion[name], -means[name]))
  if largest >= large_shift and not poor:
    reasons.append(
      "Good features and a large shift are the conditions under which keeping the features pays. "
      f"Of the methods in question that tune them, {titles[least]} moved them least "
      f"({100 * distortion[least]:.1f} % of their norm)."
    )
    return Recommendation(least, tuple(leaders), WEAK, tuple(reasons))
  if shifts:
    reasons.append(
      "The conditions under which keeping the features pays do not hold here, so that argument "
      "does not choose among them either; more validation images or seeds would."
    )
  else:
    reasons.append("No shifted set is named, and validation does not choose among them.")
  return Recommendation(best, tuple(leaders), UNDECIDED, tuple(reasons))


def _who_leads(
  means: Mapping[str, float], leaders: Sequence[str], titles: Mapping[str, str]
) -> str:
  best = (
    f"{titles[leaders[0]]} has the highest validation accuracy, {100 * means[leaders[0]]:.1f} %"
  )
  if len(leaders) == 1:
    return f"{best}, and the interval of every other method's difference from it excludes 0."
  others = ", ".join(f"{titles[name]} ({100 * means[name]:.1f})" for name in leaders[1:])
  return f"{best}; the intervals of the differences of {others} include 0."


def _quality(means, against, best, probe, titles, poor) -> str:
  text = f"The probe on the pretrained features reaches {100 * means[probe]:.1f} % on validation"
  if probe == best:
    return f"{text}, and no method is above it: the features are good for this task."
  difference = words.difference(estimate.Estimate(*against[probe]))
  judged = "are not enough for this task" if poor else "serve this task about as well as tuned ones"
  return f"{text}, {difference} points from {titles[best]}: the features {judged}."


def _shift(shifts: Mapping[str, float], largest: float, large_shift: float) -> str:
  listed = ", ".join(f"{name} {value:.2f}" for name, value in shifts.items())
  size = "large" if largest >= large_shift else "not large"
  return (
    f"Shift, as the proxy A-distance of the pretrained features (0 none, 2 told apart): {listed}; "
    f"{size} (from {large_shift:g} on)."
  )
