"""Errors worth looking at: the worst ones, the classes confused, the labels that are likely wrong.

All of one network, the one that validation chose.
"""

from collections.abc import Callable, Mapping
import os
import pathlib

import numpy as np

from subtune_jax.studies.compare import chosen
from subtune_jax.studies.compare import record as record_lib

Take = Callable[[np.ndarray], np.ndarray]
FILE = "errors.npz"
LABELS = ":labels"  # beside names of test sets, none of which begins so
SHOWN = 18  # images of a set
_MOST_SETS = 8  # test sets whose errors are kept, in the record's order
_MOST_PIXELS = 160  # height and width at which an image is kept


def wrong(answers: chosen.Answers) -> np.ndarray:
  """Positions of the errors, by falling loss."""
  found = np.flatnonzero(answers.predicted != answers.labels)
  return found[np.argsort(-answers.loss[found], kind="stable")]


def in_turns(answers: chosen.Answers, places: np.ndarray, number: int = SHOWN) -> np.ndarray:
  """`number` of the positions `places`, by falling loss.

  Every true class gives its image of highest loss before any gives its second.
  """
  loss, found = answers.loss, []
  for label in np.unique(answers.labels[places]):
    own = places[answers.labels[places] == label]
    own = own[np.argsort(-loss[own], kind="stable")][:number]
    found += [(turn, -loss[place], place) for turn, place in enumerate(own)]
  picked = np.array([place for _, _, place in sorted(found)[:number]], np.int64)
  return picked[np.argsort(-loss[picked], kind="stable")]


def suspects(answers: chosen.Answers) -> np.ndarray:
  """Positions of the images whose label is likely wrong, by falling loss.

  Those that are answered otherwise and lie off the diagonal of the confident joint of Northcutt et
  al., "Confident learning" (JAIR 2021), section 3.1: of the classes whose probability reaches the
  mean that their own images give them, the most probable is not the label.
  """
  probabilities = np.exp(answers.log_probabilities)
  counts = np.bincount(answers.labels, minlength=probabilities.shape[1])
  own = probabilities[np.arange(len(answers.labels)), answers.labels]
  sums = np.bincount(answers.labels, own, minlength=len(counts))
  means = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
  reached = np.where(probabilities >= means, probabilities, -1.0)
  doubted = (reached.max(-1) >= 0) & (reached.argmax(-1) != answers.labels)
  found = np.flatnonzero(doubted & (answers.predicted != answers.labels))
  return found[np.argsort(-answers.loss[found], kind="stable")]


def pairs(matrix: np.ndarray, number: int = 10, least: int = 2) -> list[tuple[int, int, int]]:
  """(class, answer, images) most often confused, of a [class, answer] matrix of counts.

  Pairs of fewer than `least` images are left out. Ties: the larger share of the class first.
  """
  wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
  share = wrong / np.maximum(matrix.sum(1, keepdims=True), 1)
  order = np.lexsort([-share.ravel(), -wrong.ravel()])[:number]
  found = [(int(i // len(matrix)), int(i % len(matrix)), int(wrong.flat[i])) for i in order]
  return [row for row in found if row[2] >= least]


def save(run: record_lib.Run, take: Mapping[str, Take]) -> pathlib.Path:
  """Writes the images that the page shows to WORKDIR/errors.npz: at most 18 a set, 8 test sets.

  Args:
    run: the record that was read.
    take: positions [m] -> images uint8 [m, height, width, 3], for each test set by its name, and as
      `LABELS` for the images of `chosen.answers_on_labelled`.
  """
  row = chosen.training(run.record)
  answers = {name: chosen.answers_on(run, row, name) for name in list(run.tests)[:_MOST_SETS]}
  picked = {name: (own.ids, in_turns(own, wrong(own))) for name, own in answers.items()}
  labelled = chosen.answers_on_labelled(run, row)
  if labelled is not None:
    own = labelled[0]
    picked[LABELS] = (own.ids, in_turns(own, suspects(own)))
  picked = {name: (own, places) for name, (own, places) in picked.items() if len(places)}
  images = {
    name: np.stack([_shrunk(image) for image in take[name](places)])
    for name, (_, places) in picked.items()
  }
  ids = {name: own[places] for name, (own, places) in picked.items()}
  return record_lib.save_images(run.workdir, images, ids, max_images=SHOWN, file=FILE)


def load(workdir: str | os.PathLike) -> dict[str, record_lib.TestImages]:
  """What `save` wrote; an empty dict for a run that saved none."""
  return record_lib.load_images(workdir, FILE)


def _shrunk(image: np.ndarray) -> np.ndarray:
  """An image of at most 160 pixels a side."""
  from PIL import Image

  made = Image.fromarray(image)
  made.thumbnail((_MOST_PIXELS, _MOST_PIXELS), Image.Resampling.LANCZOS)
  return np.asarray(made)
