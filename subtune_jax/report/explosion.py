"""Trainings that exploded: all numbers finite, and yet no result of learning.

One that is not finite has diverged and is never chosen. One that exploded is a result, which may
even be the best of its grid: wherever it is listed it is named.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

# A network that knows nothing answers every class alike, at a loss of ln(classes).
LOSS_FACTOR = 10.0
MOVED_FACTOR = 100.0


def explosion(
  history: Sequence[Mapping[str, Any]], moved: float | None, num_classes: int
) -> str | None:
  """How a finished training exploded, in words; None for one that did not.

  It did if, after its last epoch,

  * the training loss is above 10 ln(num_classes), ten times that of equal probabilities,
  * or the validation loss is, which also tells of the last update,
  * or the backbone has moved by more than 100 times its own norm.

  Args:
    history: rows with "train_loss" and "validation_loss" (nats; None where there is none).
    moved: |theta - theta_0| / |theta_0| over the backbone, or None.
    num_classes: of the head.
  """
  guess = math.log(max(num_classes, 2))
  last = history[-1] if history else {}
  for name in ("train_loss", "validation_loss"):
    loss = last.get(name)
    if loss is not None and loss > LOSS_FACTOR * guess:
      what = {"train_loss": "training loss", "validation_loss": "validation loss"}[name]
      return f"{what} {loss:.3g}, where a guess has {guess:.3g}"
  if moved is not None and moved > MOVED_FACTOR:
    return f"weights moved by {moved:.3g} times their norm"
  return None


def lines(record: Mapping[str, Any]) -> list[str]:
  """A sentence for each method and setting of a comparison that diverged or exploded.

  Args:
    record: of a run; parts without a history or a grid have nothing to name.
  """
  titles = {method["name"]: method["title"] for method in record["methods"]}
  found: dict[tuple[str, float, str], list[str]] = {}
  for training in record["trainings"]:
    if training.get("history"):
      classes = len(record["data"]["class_names"])
      kind, text = "exploded", explosion(training["history"], training["moved"], classes)
    else:
      kind, text = "diverged", "" if training.get("validation_accuracy", 0) is None else None
    if text is not None:
      where = titles[training["method"]], training["learning_rate"], kind
      seed = f"seed {training['seed']}{', chosen' if training['chosen'] else ''}"
      found.setdefault(where, []).append(f"{seed}: {text}" if text else seed)
  made = []
  for (title, rate, kind), seeds in found.items():
    made.append(f"{title} {kind} at {rate:g} ({'; '.join(seeds)}).")
  for method in record["methods"]:
    bad = [p["learning_rate"] for p in method.get("grid", ()) if p["validation_accuracy"] is None]
    bad = [rate for rate in bad if (method["title"], rate, "diverged") not in found]
    if bad:
      made.append(f"{method['title']} diverged at {', '.join(f'{rate:g}' for rate in bad)}.")
  if made:
    made.append("What diverged is never chosen; what exploded is finite and may be.")
  return made
