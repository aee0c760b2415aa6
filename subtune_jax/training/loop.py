"""The train loop: runs the stages of any method, one after the other."""

from collections.abc import Callable
import dataclasses
from typing import Any, Literal

from absl import logging
import jax
import numpy as np

from subtune_jax import masks, methods
from subtune_jax.statistics import criteria
from subtune_jax.training import prefix as prefix_lib
from subtune_jax.training import (
  resume,
  selected_features,  # noqa: F401  (registers its runner)
  stage_runner,
  trainable_split,
  under_way,
)
from subtune_jax.training import trace as trace_lib
from subtune_jax.training.engine import Engine, Examples
from subtune_jax.training.under_way import OnEpoch, OnVariables

__all__ = ["Engine", "Examples", "FitResult", "OnEpoch", "OnVariables", "check_examples", "fit",
           "relative_distance"]  # fmt: skip

PyTree = Any


@dataclasses.dataclass
class FitResult:
  """A finished training.

  Attributes:
    variables: of the whole network.
    touched: {"params", "batch_stats"} trees of bool: leaves that some stage could change.
    history: a row per epoch: stage, epoch, train_loss, train_accuracy, validation_loss,
      validation_accuracy; train figures are means over the epoch's batches, before each update;
      validation figures are None without a validation set.
    stages: a row per stage: title, blocks, trained_params, solver, epochs; a probe's grid too.
    seconds: wall time without compiling.
    compile_seconds: of the train steps.
    moved: |theta - theta_0| / |theta_0| over the backbone's parameters.
  """

  variables: PyTree
  touched: PyTree
  history: list[dict[str, Any]]
  stages: list[dict[str, Any]]
  seconds: float
  compile_seconds: float
  moved: float


def relative_distance(params: PyTree, reference: PyTree) -> float:
  """|params - reference| / |reference| over all leaves outside the head that are real numbers."""
  moved = norm = 0.0
  rows = zip(masks.paths(params), jax.tree.leaves(params), jax.tree.leaves(reference), strict=True)
  for path, leaf, base in rows:
    if methods.backbone(path, leaf) and leaf.dtype.kind not in "iu":  # positions are no weights
      leaf, base = np.asarray(leaf, np.float64), np.asarray(base, np.float64)
      moved += np.sum((leaf - base) ** 2)
      norm += np.sum(base**2)
  return float(np.sqrt(moved / norm)) if norm else 0.0


def check_examples(examples: Any, num_classes: int, what: str) -> None:
  """Raises ValueError unless images are uint8 [n, h, w, 3] and labels integers of the head."""
  shared = isinstance(examples, prefix_lib.Rows)
  images = examples.prefix.images if shared else examples.images
  labels = np.asarray(examples.all_labels if shared else examples.labels)
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
    raise ValueError(
      f"{what} images are {images.dtype} {images.shape}; give uint8 [n, height, width, 3], n > 0"
    )
  if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
    raise ValueError(
      f"{what} labels are {labels.dtype} {labels.shape}; give {len(images)} integers"
    )
  outside = labels[(labels < 0) | (labels >= num_classes)]
  if len(outside):
    raise ValueError(f"{what} label {outside[0]} is out of range; the head has classes 0 to "
                     f"{num_classes - 1}")  # fmt: skip


def _run(training: under_way.Training, on_resume: Callable[[str], None]) -> FitResult:
  """All stages, from the checkpoint if there is one."""
  found = training.saver.restore() if training.saver else None
  first = training.restore(found) if found else 0
  if found:
    on_resume(
      f"resumed stage {first + 1} of {len(training.method)} after epoch {found.note['epoch']}"
    )
  for index in range(first, len(training.method)):
    stage = training.method[index]
    plan = trainable_split.make_plan(training.engine.model, training.variables, stage)
    if index >= len(training.stages):
      training.stages.append(stage_runner.describe(stage, plan, training.variables))
    logging.info("stage %d (%s) trains %s", index + 1, stage.name, ", ".join(plan.blocks))
    resumed = found if index == first else None
    training.variables = stage_runner.run(stage.solver, training, index, plan, resumed)
    training.check_stage(stage)
    training.touch(plan)
  moved = relative_distance(training.variables["params"], training.original["params"])
  return FitResult(training.variables, training.touched, training.history, training.stages,
                   training.seconds, training.compile_seconds, moved)  # fmt: skip


def fit(
  engine: Engine,
  variables: PyTree,
  method: methods.Method,
  train: Any,
  validation: Any | None,
  *,
  seed: int = 0,
  on_epoch: OnEpoch | None = None,
  saver: resume.Saver | None = None,
  on_resume: Callable[[str], None] | None = None,
  validate: Literal["epoch", "end"] = "epoch",
  on_variables: OnVariables | None = None,
  select_by: str = criteria.ACCURACY,
  trace: trace_lib.Trace | None = None,
) -> FitResult:
  """Trains a network by any method.

  Args:
    engine: model, devices, batch size.
    variables: {"params", "batch_stats"}: the pretrained backbone and the head to start from.
    method: stages (`subtune_jax.methods`).
    train: `images` uint8 [n, h, w, 3] and `labels` [n]; the examples that fill no whole batch are
      left out of an epoch, others in each. `prefix.Rows` shares activations between trainings. If
      it has `columns`, name -> [n, ...], a penalty finds their rows in its batch.
    validation: likewise; read after every epoch, and by a probe to choose its strength. None trains
      without: then a probe has one strength.
    seed: of the order of the examples and of their views.
    on_epoch: called with each row of the history and the validation logits behind it.
    saver: writes and finds checkpoints; a training goes on from the one it finds.
    on_resume: told what was resumed, if anything.
    validate: read the validation set after every epoch, or at the end of each stage only.
    on_variables: called after `on_epoch` with the row and the whole variables, whose buffers are
      given up when it returns; its time counts as nobody's.
    select_by: the metric on the validation set that a probe chooses its strength by, "accuracy",
      "balanced_accuracy", "auroc" or "nll"; rows of the history have it too.
    trace: traces a few steps of the first stage that has any, once.

  Raises:
    ValueError: images or labels of the wrong shape, type or range, a batch that does not split
      over the devices, or an unknown `select_by`.
    NonFiniteLossError: the loss, the weights or the logits became NaN or infinite, the last
      update included.
  """
  for examples, what in ((train, "training"), (validation, "validation")):
    if examples is not None:
      check_examples(examples, engine.model.num_classes, what)
  criteria.of({"select_by": select_by})
  if not method:
    raise ValueError("the method has no stage; see subtune_jax.methods")
  for stage in method:
    settings = getattr(stage.solver, "num_settings", 1)
    if validation is None and settings > 1:
      raise ValueError(
        f"stage {stage.name!r} has {settings} strengths and no validation set to choose with; give "
        "one strength"
      )
  training = under_way.Training(
    engine, variables, method, train, validation, seed=seed, on_epoch=on_epoch, saver=saver,
    validate=validate, on_variables=on_variables, select_by=select_by,
    trace=trace,
  )  # fmt: skip
  try:
    return _run(training, on_resume or (lambda text: logging.info("%s", text)))
  finally:
    if trace is not None:
      trace.close()
