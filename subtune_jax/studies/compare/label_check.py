"""What a cross-validated linear probe answers for the labelled images, where that is cheap."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from subtune_jax import files, processes
from subtune_jax.calibration import scaling
from subtune_jax.data import splits
from subtune_jax.runner import trainings
from subtune_jax.statistics import held_out
from subtune_jax.studies.compare import chosen
from subtune_jax.training import evaluate, trainable_split

FOLDS = 5
_MOST_SECONDS = 10  # of a linear probe of the run: this takes about as long
_SHARP = 0.1  # temperature where every answer is right, so that none fits best


def write(run: trainings.Run, record: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
  """Writes the answers to `chosen.CROSS_VALIDATION` in the workdir if the run's probe was fast.

  Least squares on the pretrained features of training and validation images, groups kept whole,
  with the temperature that fits its held-out answers best.

  Returns:
    Positions -> images, of what a page checks the labels of: those, or the validation images.
  """
  path = run.workdir / chosen.CROSS_VALIDATION
  if processes.is_first():
    path.unlink(missing_ok=True)
  logits = _logits(run) if _cheap(record) else None
  if logits is None:
    return lambda rows: np.asarray(run.validation.images[rows])
  both = {
    name: np.concatenate([getattr(own, name) for own in (run.train, run.validation)])
    for name in ("labels", "ids")
  }
  files.write_npz(path, {"logits": logits.astype(np.float32), **both})
  return lambda rows: np.stack([_image(run, int(row)) for row in rows])


def _cheap(record: Mapping[str, Any]) -> bool:
  return any(
    row["method"] == "lp" and row["chosen"] and row["seconds"] <= _MOST_SECONDS
    for row in record["trainings"]
  )


def _image(run: trainings.Run, row: int) -> np.ndarray:
  inside = row < len(run.train)
  return run.train.images[row] if inside else run.validation.images[row - len(run.train)]


def _logits(run: trainings.Run) -> np.ndarray | None:
  """[training and validation images, classes]; None where nothing can be learnt of them."""
  sets = (run.train, run.validation)
  labels, groups = (np.concatenate([getattr(s, n) for s in sets]) for n in ("labels", "groups"))
  if len(np.unique(groups)) < FOLDS or len(np.unique(labels)) < 2:
    return None
  options = run.engine.options() | {"stop": trainable_split.HEAD}
  features = np.concatenate([
    np.asarray(evaluate.run_units(run.engine.model, run.pretrained.variables, s.images, **options))
    for s in sets
  ])  # fmt: skip
  folds = splits.fold_indices(labels, groups, FOLDS, seed=0)
  scores, _ = held_out.ridge_scores(features, labels, len(run.train.class_names), folds)
  if not np.isfinite(scores).all():
    return None
  if (scores.argmax(-1) == labels).all():
    return scores / _SHARP
  try:
    return scores / float(scaling.fit_temperature(scores, labels))
  except ValueError:  # no better than chance
    return None
