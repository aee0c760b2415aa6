"""Which pictures without a label a trained network would learn most from."""

from collections.abc import Sequence
import csv
import io
import os
import pathlib
from typing import NamedTuple

import numpy as np

from subtune_jax import acquisition, files
from subtune_jax.deploy import classifier as classifier_lib
from subtune_jax.deploy import labelling, pictures
from subtune_jax.training import evaluate


class Question(NamedTuple):
  """A picture to label.

  Attributes:
    file: its path, as it was found.
    prediction: the class that the network names.
    probability: of that.
    score: what the rule measured.
    image: uint8 [image_size, image_size, 3], as the network reads it.
  """

  file: str
  prediction: str
  probability: float
  score: float
  image: np.ndarray


def ask(
  classifier: classifier_lib.Classifier,
  found: Sequence[str],
  rule: str,
  count: int,
  seed: int = 0,
) -> tuple[list[Question], list[str]]:
  """The pictures to label next, the most wanted first.

  Args:
    classifier: the trained network; pictures are read as its test images were.
    found: paths.
    rule: a key of `acquisition.RULES`.
    count: how many; fewer come back where there are fewer that can be read.
    seed: of the rules that draw.

  Returns:
    The questions, and a line for each picture that cannot be read.

  Raises:
    ValueError: none can be read, or a count below 1.
  """
  read, broken, probabilities, features = [], [], [], []
  needs = acquisition.RULES[rule].needs
  for batch, images in pictures.decoded(classifier, found):
    good = [image for image in images if not isinstance(image, str)]
    for file, image in zip(batch, images, strict=True):
      if isinstance(image, str):
        broken.append(f"{file}: {image}")
      else:
        read.append(file)
    if good and "features" in needs:
      features.append(classifier.features(np.stack(good)))
      probabilities.append(evaluate.probabilities(classifier.logits_of(features[-1])))
    elif good:
      probabilities.append(evaluate.probabilities(classifier.logits(np.stack(good))))
  if not read:
    raise ValueError(f"no picture of {len(found)} can be read; the first: {broken[0]}")
  p = np.concatenate(probabilities)
  pool = acquisition.Pool(len(read), p, np.concatenate(features) if features else None)
  chosen = acquisition.RULES[rule].choose(pool, min(count, len(read)), seed)
  best = evaluate.predictions(p[chosen.places])
  paths = [read[place] for place in chosen.places]
  own = classifier.images(paths)[np.arange(len(paths))]
  return [
    Question(file, classifier.class_names[label], float(p[place, label]), float(score), image)
    for file, place, label, score, image in zip(
      paths, chosen.places, best, chosen.scores, own, strict=True
    )
  ], broken


def write_csv(path: pathlib.Path, questions: Sequence[Question]) -> None:
  """Writes the table to fill in: the files relative to where it lies, the labels empty."""
  stream = io.StringIO()
  table = csv.writer(stream, lineterminator="\n")
  table.writerow(labelling.COLUMNS)
  for own in questions:
    file = os.path.relpath(own.file, path.parent)
    table.writerow([file, "", own.prediction, f"{own.score:.6g}"])
  files.write_atomically(path, stream.getvalue().encode("utf-8", "surrogateescape"))
