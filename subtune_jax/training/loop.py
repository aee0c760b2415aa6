"""The train loop: runs the stages of any method, one after the other."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, Literal, NamedTuple

from absl import logging
import jax
import numpy as np

from subtune_jax import masks, methods
from subtune_jax.data import preprocess
from subtune_jax.training import divergence, evaluate, resume, trainable_split
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import prefix as prefix_lib
from subtune_jax.training import stage_runner as stages
from subtune_jax.training import step as step_lib

PyTree = Any
# on_epoch(row, logits): a row of the history, and the validation logits [n, classes] behind it or,
# without a validation set, None.
OnEpoch = Callable[[Mapping[str, Any], np.ndarray | None], None]
# on_variables(row, variables): the same row, and the whole variables after the epoch.
OnVariables = Callable[[Mapping[str, Any], PyTree], None]


class Examples(NamedTuple):
  """A labelled set in memory; `data.Dataset` has the same fields and serves as well.

  Attributes:
    images: [n, h, w, 3] uint8.
    labels: [n] integers.
  """

  images: Any
  labels: Any


@dataclasses.dataclass(frozen=True)
class Engine:
  """What stays the same from one training to the next.

  Attributes:
    model: a backbone of `subtune_jax.models`.
    preprocessing: the statistics its weights were trained with.
    mesh: the devices; a batch is split over them.
    batch_size: examples per step; a smaller training set is one batch.
    augmentation: random views of the training images, or None.
    prefix_cache: run the units before the first trained block once per image and keep the result.
      Not with augmentation.
    resident_bytes: a training set of more bytes than this streams from the host, and a prefix
      whose output would take more is not cached.
    scan: a whole epoch as one program (`lax.scan`); None: on accelerators. On CPU a loop over the
      compiled step is faster.
    in_pieces: put steps and evaluation together from programs of single blocks, so that another
      set of blocks compiles nothing new (`training/blockwise_step.py`); a step that cannot be
      put together is compiled whole.
  """

  model: Any
  preprocessing: preprocess.Preprocessing
  mesh: jax.sharding.Mesh = dataclasses.field(default_factory=mesh_lib.make_mesh)
  batch_size: int = 64
  augmentation: step_lib.Augmentation | None = None
  prefix_cache: bool = True
  resident_bytes: int = 4 << 30
  scan: bool | None = None
  in_pieces: bool = False

  def options(self) -> dict[str, Any]:
    """Arguments of `evaluate.run_units`."""
    return {
      "preprocessing": self.preprocessing, "batch_size": self.batch_size, "mesh": self.mesh,
      "in_pieces": self.in_pieces,
    }  # fmt: skip

  def predict(self, variables: PyTree, images: Any) -> np.ndarray:
    """Logits [n, num_classes] of uint8 images.

    Raises:
      NonFiniteLossError: a logit is not finite.
    """
    logits = evaluate.predict(self.model, variables, images, **self.options())
    row = int(np.argmin(np.isfinite(logits).all(axis=-1)))
    if not np.isfinite(logits[row]).all():
      raise divergence.NonFiniteLossError(
        f"the logits of image {row} of {len(logits)} are not finite: the weights have diverged; "
        "train with lower learning rates"
      )
    return logits


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
  """|params - reference| / |reference| over all leaves outside the head."""
  moved = norm = 0.0
  rows = zip(masks.paths(params), jax.tree.leaves(params), jax.tree.leaves(reference), strict=True)
  for path, leaf, base in rows:
    if methods.backbone(path, leaf):
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


class _Training:
  """State of one `fit`: the variables so far, what was touched, and the records."""

  def __init__(
    self, engine, variables, method, train, validation, seed, on_epoch, saver, validate,
    on_variables,
  ):  # fmt: skip
    self.engine, self.method, self.seed, self.validate = engine, method, seed, validate
    self.train, self.validation = train, validation
    self.on_epoch, self.on_variables, self.saver = on_epoch, on_variables, saver
    self.variables = {"batch_stats": {}, **variables}
    self.original = self.variables
    false = {k: jax.tree.map(lambda _: False, self.variables[k]) for k in ("params", "batch_stats")}
    self.touched = false
    self.history, self.stages = [], []
    self.seconds = self.compile_seconds = 0.0
    self.batch_size = min(engine.batch_size, len(train.labels))
    mesh_lib.check_batch_size(self.batch_size, engine.mesh)

  def run(self, on_resume: Callable[[str], None]) -> FitResult:
    """All stages, from the checkpoint if there is one."""
    found = self.saver.restore() if self.saver else None
    first = self._restore(found) if found else 0
    if found:
      on_resume(
        f"resumed stage {first + 1} of {len(self.method)} after epoch {found.note['epoch']}"
      )
    for index in range(first, len(self.method)):
      stage = self.method[index]
      plan = trainable_split.make_plan(self.engine.model, self.variables, stage)
      if index >= len(self.stages):
        self.stages.append(stages.describe(stage, plan, self.variables))
      logging.info("stage %d (%s) trains %s", index + 1, stage.name, ", ".join(plan.blocks))
      run_stage = (
        stages.probe_stage if isinstance(stage.solver, methods.LBFGS) else stages.gradient_stage
      )
      self.variables = run_stage(self, index, stage, plan, found if index == first else None)
      self._check_stage(stage)
      self._touch(plan)
    moved = relative_distance(self.variables["params"], self.original["params"])
    return FitResult(self.variables, self.touched, self.history, self.stages, self.seconds,
                     self.compile_seconds, moved)  # fmt: skip

  def _check_stage(self, stage: methods.Stage) -> None:
    """Also of what a checkpoint holds, whose epochs are not run again."""
    last = self.history[-1]
    divergence.check("the variables", self.variables, stage, last["epoch"] - 1)
    divergence.check("the numbers of the history", self.history, stage, last["epoch"] - 1)

  def shares(self, examples: Any, unit: str) -> bool:
    """Whether the examples' shared activations hold for `unit`: nothing before it has changed."""
    if not isinstance(examples, prefix_lib.Rows):
      return False
    units = (*self.engine.model.block_names, trainable_split.HEAD)
    before = units[: units.index(unit)]
    trees = [(self.touched[k], masks.paths(self.touched[k])) for k in ("params", "batch_stats")]
    return not any(
      touched and trainable_split.unit_of(path, units) in before
      for tree, paths in trees
      for path, touched in zip(paths, jax.tree.leaves(tree), strict=True)
    )

  def _touch(self, plan: trainable_split.Plan) -> None:
    new = {"params": plan.labels, "batch_stats": plan.stat_labels}
    self.touched = jax.tree.map(lambda old, label: old or label != masks.FROZEN, self.touched, new)

  def record(
    self, row: dict[str, Any], logits: np.ndarray | None, variables: Callable[[], PyTree]
  ) -> None:
    """Adds a row to the history; `logits` are those of the validation set, if there is one."""
    row["validation_loss"] = row["validation_accuracy"] = None
    if logits is not None:
      stage = self.method[row["stage"]]
      divergence.check("the validation logits", logits, stage, row["epoch"] - 1)
      truth = np.asarray(self.validation.labels)
      row["validation_loss"] = evaluate.cross_entropy(logits, truth)
      row["validation_accuracy"] = evaluate.accuracy(logits, truth)
    self.history.append(row)
    if self.on_epoch:
      self.on_epoch(row, logits)
    if self.on_variables:
      self.on_variables(row, variables())

  def save(self, index: int, epoch: int, state: step_lib.TrainState) -> None:
    """Writes a checkpoint when one is due."""
    if self.saver and self.saver.due():
      start = jax.tree.map(lambda x, t: x if t else None, self.variables, self.touched)
      note = {"stage": index, "epoch": epoch, "history": self.history, "stages": self.stages,
              "seconds": self.seconds, "compile_seconds": self.compile_seconds}  # fmt: skip
      self.saver.save(len(self.history), {"start": start, "state": state}, note)

  def _restore(self, found: resume.Found) -> int:
    """Puts back what the checkpoint holds of the finished stages; returns the stage it is in."""
    note = found.note
    self.history, self.stages = note["history"], note["stages"]
    self.seconds, self.compile_seconds = note["seconds"], note["compile_seconds"]
    for stage in self.method[: note["stage"]]:
      self._touch(trainable_split.make_plan(self.engine.model, self.variables, stage))
    template = jax.tree.map(lambda x, t: x if t else None, self.variables, self.touched)
    start = found.fill("start", template)
    self.variables = jax.tree.map(
      lambda x, new: x if new is None else new, self.variables, start, is_leaf=lambda x: x is None
    )
    return note["stage"]


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

  Raises:
    ValueError: images or labels of the wrong shape, type or range, or a batch that does not split
      over the devices.
    NonFiniteLossError: the loss, the weights or the logits became NaN or infinite, the last
      update included.
  """
  for examples, what in ((train, "training"), (validation, "validation")):
    if examples is not None:
      check_examples(examples, engine.model.num_classes, what)
  if not method:
    raise ValueError("the method has no stage; see subtune_jax.methods")
  for stage in method:
    if validation is None and len(getattr(stage.solver, "l2", ())) > 1:
      raise ValueError(
        f"stage {stage.name!r} has {len(stage.solver.l2)} strengths and no validation set to "
        "choose with; give one strength"
      )
  training = _Training(
    engine, variables, method, train, validation, seed, on_epoch, saver, validate, on_variables
  )  # fmt: skip
  return training.run(on_resume or (lambda text: logging.info("%s", text)))
