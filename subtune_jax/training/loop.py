"""The train loop: runs the stages of any method, one after the other, on resident data."""

from collections.abc import Callable, Mapping
import dataclasses
import time
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import masks, methods
from subtune_jax.data import preprocess
from subtune_jax.training import evaluate, probe, resume
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import plan as plan_lib
from subtune_jax.training import step as step_lib

PyTree = Any
OnEpoch = Callable[[Mapping[str, Any]], None]


class NonFiniteLossError(ValueError):
  """The training loss became NaN or infinite."""


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
    scan: a whole epoch as one program (`lax.scan`); None: on accelerators. On CPU a loop over the
      compiled step is faster.
  """

  model: Any
  preprocessing: preprocess.Preprocessing
  mesh: jax.sharding.Mesh = dataclasses.field(default_factory=mesh_lib.make_mesh)
  batch_size: int = 64
  augmentation: step_lib.Augmentation | None = None
  prefix_cache: bool = True
  scan: bool | None = None

  def options(self) -> dict[str, Any]:
    """Arguments of `evaluate.run_units`."""
    return {
      "preprocessing": self.preprocessing, "batch_size": self.batch_size, "mesh": self.mesh
    }  # fmt: skip

  def predict(self, variables: PyTree, images: Any) -> np.ndarray:
    """Logits [n, num_classes] of uint8 images."""
    return evaluate.predict(self.model, variables, images, **self.options())


@dataclasses.dataclass
class FitResult:
  """A finished training.

  Attributes:
    variables: of the whole network.
    touched: {"params", "batch_stats"} trees of bool: leaves that some stage could change.
    history: a row per epoch: stage, epoch, train_loss, train_accuracy, validation_loss,
      validation_accuracy; train figures are means over the epoch's batches, before each update.
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


def epoch_order(seed: int, stage: int, epoch: int, n: int, batch_size: int) -> np.ndarray:
  """[steps, batch] indices of one epoch: a permutation without the rows that fill no batch."""
  order = np.random.default_rng([seed, stage, epoch]).permutation(n)
  steps = n // batch_size
  return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


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
  images, labels = examples.images, np.asarray(examples.labels)
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

  def __init__(self, engine, variables, method, train, validation, seed, on_epoch, saver):
    self.engine, self.method, self.seed = engine, method, seed
    self.train, self.validation = train, validation
    self.on_epoch, self.saver = on_epoch, saver
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
      plan = plan_lib.make_plan(self.engine.model, self.variables, stage)
      if index >= len(self.stages):
        self.stages.append(_stage_row(stage, plan, self.variables))
      logging.info("stage %d (%s) trains %s", index + 1, stage.name, ", ".join(plan.blocks))
      run_stage = _probe_stage if isinstance(stage.solver, methods.LBFGS) else _gradient_stage
      self.variables = run_stage(self, index, stage, plan, found if index == first else None)
      self._touch(plan)
    moved = relative_distance(self.variables["params"], self.original["params"])
    return FitResult(self.variables, self.touched, self.history, self.stages, self.seconds,
                     self.compile_seconds, moved)  # fmt: skip

  def _touch(self, plan: plan_lib.Plan) -> None:
    new = {"params": plan.labels, "batch_stats": plan.stat_labels}
    self.touched = jax.tree.map(lambda old, label: old or label != masks.FROZEN, self.touched, new)

  def record(self, row: dict[str, Any]) -> None:
    """Adds a row to the history, and stops on a loss that is not finite."""
    self.history.append(row)
    if self.on_epoch:
      self.on_epoch(row)

  def save(self, index: int, epoch: int, state: step_lib.TrainState, *, force: bool) -> None:
    """Writes a checkpoint when one is due."""
    if self.saver and self.saver.due(force):
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
      self._touch(plan_lib.make_plan(self.engine.model, self.variables, stage))
    template = jax.tree.map(lambda x, t: x if t else None, self.variables, self.touched)
    start = found.fill("start", template)
    self.variables = jax.tree.map(
      lambda x, new: x if new is None else new, self.variables, start, is_leaf=lambda x: x is None
    )
    return note["stage"]


def _stage_row(stage: methods.Stage, plan: plan_lib.Plan, variables: PyTree) -> dict[str, Any]:
  counts = masks.count_params(variables["params"], plan.labels)
  solver = stage.solver
  gradient = isinstance(solver, methods.Gradient)
  return {
    "title": stage.name,
    "blocks": list(plan.blocks),
    "trained_params": sum(n for label, n in counts.items() if label != masks.FROZEN),
    "solver": solver.optimizer if gradient else "lbfgs",
    "epochs": solver.epochs if gradient else 1,
  }


def _stage_inputs(training: _Training, plan: plan_lib.Plan) -> tuple[Any, Any, str | None]:
  """(train x, validation x, first unit to run): cached activations where the prefix is constant."""
  engine = training.engine
  first = engine.model.block_names[0]
  cached = engine.prefix_cache and engine.augmentation is None and plan.start != first
  if not cached:
    return training.train.images, training.validation.images, None
  options = engine.options() | {"batch_size": training.batch_size, "stop": plan.start}
  run = [
    evaluate.run_units(engine.model, training.variables, x.images, **options)
    for x in (training.train, training.validation)
  ]
  return *run, plan.start


def _probe_stage(training, index, stage, plan, found) -> PyTree:
  """The convex stage: L-BFGS on cached features, strength chosen on validation."""
  del found  # solved anew: it takes seconds
  begin = time.perf_counter()
  model = training.engine.model
  options = training.engine.options() | {"stop": plan_lib.HEAD}
  sets = (training.train, training.validation)
  features = [
    np.asarray(evaluate.run_units(model, training.variables, x.images, **options), np.float32)
    for x in sets
  ]
  labels = [np.asarray(x.labels) for x in sets]
  path = probe.fit_path(
    features[0], labels[0], num_classes=model.num_classes, l2=stage.solver.l2,
    standardize=stage.solver.standardize,
  )  # fmt: skip
  choice = probe.choose(path, features[1], labels[1])
  head = {"kernel": path.kernel[choice.index], "bias": path.bias[choice.index]}
  logits = [f @ np.asarray(head["kernel"]) + np.asarray(head["bias"]) for f in features]
  training.seconds += time.perf_counter() - begin
  training.stages[index] |= {
    "l2": float(path.l2[choice.index]),
    "grid": [
      {"learning_rate": float(value), "validation_accuracy": float(accuracy)}
      for value, accuracy in zip(path.l2, choice.accuracy, strict=True)
    ],
    "grid_edge": bool(choice.at_edge),
  }
  row = {"stage": index, "epoch": 1}
  for name, scores, truth in zip(("train", "validation"), logits, labels, strict=True):
    row[f"{name}_loss"] = evaluate.cross_entropy(scores, truth)
    row[f"{name}_accuracy"] = evaluate.accuracy(scores, truth)
  training.record(row)
  return {
    **training.variables,
    "params": {**training.variables["params"], "head": jax.tree.map(jnp.asarray, head)},
  }


def _gradient_stage(training, index, stage, plan, found) -> PyTree:
  """Mini-batch steps; evaluates on validation and may write a checkpoint after every epoch."""
  engine, mesh = training.engine, training.engine.mesh
  begin = time.perf_counter()
  x, validation_x, start = _stage_inputs(training, plan)
  n, epochs = len(training.train.labels), stage.solver.epochs
  spec = step_lib.StepSpec(
    engine.model, plan, stage, epochs * (n // training.batch_size), engine.preprocessing,
    None if start else engine.augmentation, start,
  )  # fmt: skip
  moving, fixed = plan_lib.split_variables(training.variables, plan)
  state = step_lib.create_train_state(spec, mesh_lib.put(moving, mesh))
  first_epoch = 0
  if found and found.note["stage"] == index:
    state, first_epoch = found.fill("state", state), found.note["epoch"]
  state = mesh_lib.put(state, mesh)
  fixed = jax.device_put(fixed, mesh_lib.replicated(mesh))
  initial = mesh_lib.put(moving["params"], mesh) if stage.penalty is not None else None
  data = {"x": x, "labels": np.asarray(training.train.labels, np.int32)}
  data = jax.device_put(data, mesh_lib.replicated(mesh))
  run_epoch, compile_seconds = _compile_epoch(training, spec, state, fixed, initial, data)
  training.compile_seconds += compile_seconds
  begin += compile_seconds
  for epoch in range(first_epoch, epochs):
    order = epoch_order(training.seed, index, epoch, n, training.batch_size)
    state, metrics = run_epoch(state, order, epoch)
    _check_finite(metrics["loss"], stage, epoch)
    variables = _current(state, fixed)
    logits = evaluate.predict(
      engine.model, variables, validation_x, **engine.options() | {"start": start}
    )
    training.seconds += time.perf_counter() - begin
    begin = time.perf_counter()
    truth = np.asarray(training.validation.labels)
    training.record({
      "stage": index, "epoch": epoch + 1,
      "train_loss": float(np.mean(metrics["loss"])),
      "train_accuracy": float(np.sum(metrics["correct"]) / order.size),
      "gradient_norm": float(np.mean(metrics["gradient_norm"])),
      "validation_loss": evaluate.cross_entropy(logits, truth),
      "validation_accuracy": evaluate.accuracy(logits, truth),
    })  # fmt: skip
    training.save(index, epoch + 1, state, force=False)
  return _current(state, fixed)


def _current(state: step_lib.TrainState, fixed: PyTree) -> PyTree:
  """The whole variables; the running average, if any, in place of the trained leaves."""
  moving = state.moving
  if state.average is not None:
    moving = {**moving, "params": state.average}
  return plan_lib.join_variables(moving, fixed)


def _compile_epoch(training: _Training, spec, state, fixed, initial, data):
  """(state, order [steps, batch], epoch) -> (state, metrics [steps]), and the compile time."""
  mesh = training.engine.mesh
  scan = training.engine.scan
  scan = jax.default_backend() != "cpu" if scan is None else scan
  sharding = mesh_lib.split(mesh)
  if scan:
    sharding = jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec(None, mesh_lib.DATA_AXIS)
    )

  def view(epoch):
    return jax.device_put(
      {"seed": np.int32(training.seed), "epoch": np.int32(epoch)}, mesh_lib.replicated(mesh)
    )

  n = len(training.train.labels)
  order = epoch_order(training.seed, 0, 0, n, training.batch_size)
  sample = jax.device_put(order if scan else order[0], sharding)
  step, seconds = step_lib.compile_step(
    spec, mesh, state, fixed, initial, data, sample, view(0), scan=scan
  )

  def run_epoch(state, order, epoch):
    seen = view(epoch)
    if scan:
      return step(state, fixed, initial, data, jax.device_put(order, sharding), seen)
    rows = []
    for indices in order:
      state, metrics = step(state, fixed, initial, data, jax.device_put(indices, sharding), seen)
      rows.append(metrics)
    rows = jax.device_get(rows)
    return state, {name: np.asarray([row[name] for row in rows]) for name in rows[0]}

  return run_epoch, seconds


def _check_finite(losses: Any, stage: methods.Stage, epoch: int) -> None:
  losses = np.asarray(losses)
  bad = np.flatnonzero(~np.isfinite(losses))
  if len(bad):
    step = epoch * len(losses) + int(bad[0]) + 1
    rates = dict(stage.solver.learning_rates)
    raise NonFiniteLossError(
      f"the loss is {losses[bad[0]]} at step {step} (epoch {epoch + 1}) of stage {stage.name!r} "
      f"with learning rates {rates}; lower them, or clip the gradient (clip_norm)"
    )


def fit(
  engine: Engine,
  variables: PyTree,
  method: methods.Method,
  train: Any,
  validation: Any,
  *,
  seed: int = 0,
  on_epoch: OnEpoch | None = None,
  saver: resume.Saver | None = None,
  on_resume: Callable[[str], None] | None = None,
) -> FitResult:
  """Trains a network by any method.

  Args:
    engine: model, devices, batch size.
    variables: {"params", "batch_stats"}: the pretrained backbone and the head to start from.
    method: stages (`subtune_jax.methods`).
    train: `images` uint8 [n, h, w, 3] and `labels` [n]; the examples that fill no whole batch are
      left out of an epoch, others in each.
    validation: likewise; read after every epoch, and by a probe to choose its strength.
    seed: of the order of the examples and of their views.
    on_epoch: called with each row of the history.
    saver: writes and finds checkpoints; a training goes on from the one it finds.
    on_resume: told what was resumed, if anything.

  Raises:
    ValueError: images or labels of the wrong shape, type or range, or a batch that does not split
      over the devices.
    NonFiniteLossError: the loss became NaN or infinite.
  """
  for examples, what in ((train, "training"), (validation, "validation")):
    check_examples(examples, engine.model.num_classes, what)
  if not method:
    raise ValueError("the method has no stage; see subtune_jax.methods")
  training = _Training(engine, variables, method, train, validation, seed, on_epoch, saver)
  return training.run(on_resume or (lambda text: logging.info("%s", text)))
