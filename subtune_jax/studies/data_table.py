"""What a run says of its data before it trains: a table of the sets, and what is odd about them."""

from collections.abc import Sequence

import numpy as np

from subtune_jax import data
from subtune_jax.data import classes, dataset, folder
from subtune_jax.report import document, words

_FEW = 2  # images: a class with fewer is named
_SHOWN = 3  # names in a cell
_HEADER = (
  "data", "split", "images", "classes", "per class", "largest", f"below {_FEW}", "pixels"
)  # fmt: skip


def report(
  training: Sequence[dataset.Dataset], tests: Sequence[dataset.Dataset], notes: Sequence[str] = ()
) -> document.Document:
  """The table of the sets of a run, and its warnings.

  Args:
    training: what is trained and chosen on, the training set first.
    tests: what is tested on, in the same classes.
    notes: what else to say.
  """
  odd = [f"warning: {text}" for text in (*notes, *_warnings(training, tests))]
  table = document.Table(_HEADER, [_row(own) for own in (*training, *tests)])
  return document.Document("Data", "", [table, *([document.Bullets(odd)] if odd else [])])


def _counts(own: dataset.Dataset) -> np.ndarray:
  """Images of each class, [num_classes]."""
  return np.bincount(own.labels, minlength=len(own.class_names))


def _row(own: dataset.Dataset) -> list[document.Cell | str]:
  counts = _counts(own)
  there = counts[counts > 0]
  few = _names(own, counts < _FEW)
  more = [f"and {len(few) - _SHOWN:,} more"] if len(few) > _SHOWN else []
  span = f"{there.min():,}" if there.min() == there.max() else f"{there.min():,} to {there.max():,}"
  return [
    own.name, own.split, f"{len(own):,}", f"{len(there)} of {len(counts)}", span,
    f"{words.percent(counts.max() / len(own))} %", document.names(few[:_SHOWN], more), _pixels(own),
  ]  # fmt: skip


def _pixels(own: dataset.Dataset) -> str:
  """Width and height of the smallest and largest file of a folder; of other sets, as loaded."""
  height, width = own.images.shape[1:3]
  base = data.base_name(own.name)
  if not folder.is_name(base):
    return f"{width} x {height}"
  stored = folder.stored_sizes(base, own.ids)
  ends = stored[np.argsort(stored.prod(-1), kind="stable")[[0, -1]]]
  return " to ".join(dict.fromkeys(f"{w} x {h}" for w, h in ends))


def _warnings(
  training: Sequence[dataset.Dataset], tests: Sequence[dataset.Dataset]
) -> list[str]:  # fmt: skip
  first, *rest = training
  taught = _counts(first) > 0
  found = []
  if not taught.all():
    found.append(
      f"{first.name}, {first.split}: no image of {_listed(first, ~taught)}; the head has "
      "an output for each of these classes, and nothing teaches it"
    )
  single = taught & (_counts(first) < _FEW)
  if single.any():
    found.append(f"{first.name}, {first.split}: a single image of {_listed(first, single)}")
  for own in rest:
    absent = _counts(own) == 0
    if (absent & taught).any():
      found.append(
        f"{own.name}, {own.split}: no image of {_listed(own, absent & taught)}; choices do not "
        "see these classes"
      )
  for own in tests:
    there = _counts(own) > 0
    if (taught & ~there).any():
      found.append(
        f"{own.name}, {own.split}: no image of {_listed(own, taught & ~there)}; never tested there"
      )
    untaught = there & ~taught
    if untaught.any():
      found.append(
        f"{own.name}, {own.split}: tests {_listed(own, untaught)}, of which no image is trained on"
      )
  return found


def _names(own: dataset.Dataset, mask: np.ndarray) -> list[str]:
  return [own.class_names[number] for number in np.flatnonzero(mask)]


def _listed(own: dataset.Dataset, mask: np.ndarray) -> str:
  names = _names(own, mask)
  return f"{len(names)} of {len(own.class_names)} classes ({classes.words(names)})"
