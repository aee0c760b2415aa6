"""The steps of a stage of mini-batches: their order, and the programs that run them."""

from collections.abc import Callable, Mapping
import time
from typing import Any, NamedTuple

from absl import logging
import jax
import numpy as np

from subtune_jax import methods
from subtune_jax.training import (
  auto_rates,
  batches,
  blockwise_step,
  class_weights,
  compile_once,
  frozen_storage,
  resume,
  stage_inputs,
  trainable_split,
  under_way,
)
from subtune_jax.training import engine as engine_lib
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import step as step_lib

PyTree = Any


class Ready(NamedTuple):
  """A stage of mini-batch steps, compiled.

  Attributes:
    state: to start from.
    fixed: the frozen half of the variables.
    run_epoch: (state, order [steps, batch], epoch) -> (state, metrics); the state is given up.
    set_rates: see `auto_rates.setter`.
    program: the compiled step, or scan over steps; None where it is in pieces.
    scan: whether it runs a whole epoch.
  """

  state: step_lib.TrainState
  fixed: PyTree
  run_epoch: Callable
  set_rates: Callable
  program: Any
  scan: bool

  @property
  def nbytes(self) -> int | None:
    """What the program takes with its arguments and results, on one device.

    Arguments that it does not read, such as frozen weights before kept features, are not counted.
    None where the compiler does not say, and where it is in pieces.
    """
    program = self.program
    found = program.memory_analysis() if hasattr(program, "memory_analysis") else None
    if found is None:
      return None
    kept = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + found.temp_size_in_bytes + kept


def epoch_order(
  seed: int, stage: int, epoch: int, n: int, batch_size: int, steps: int = 0
) -> np.ndarray:
  """[steps, batch] indices of one epoch.

  A permutation without the rows that fill no batch; or, with `steps`, the next so many batches of
  one permutation after the other.
  """
  if not steps:
    order = np.random.default_rng([seed, stage, epoch]).permutation(n)
    steps = n // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)
  begin, end = (e * steps * batch_size for e in (epoch, epoch + 1))
  passes = range(begin // n, -(-end // n))
  rows = np.concatenate([np.random.default_rng([seed, stage, p]).permutation(n) for p in passes])
  first = begin - passes.start * n
  return rows[first : first + end - begin].reshape(steps, batch_size).astype(np.int32)


def step_of(
  training: under_way.Training, index: int, plan: trainable_split.Plan, start: str | None
) -> step_lib.StepSpec:
  """What is static about the steps of a stage whose first unit is `start`, None for images."""
  stage, engine = training.method[index], training.engine
  steps = stage.gradient.steps_per_epoch or len(training.train.labels) // training.batch_size
  augmentation = None if start else engine.augmentation
  units = (*engine.model.block_names, trainable_split.HEAD)
  differentiated = units[units.index(plan.start) :]
  return step_lib.StepSpec(
    engine.model, plan, stage, stage.gradient.epochs * steps, engine.preprocessing, augmentation,
    start, tuple(block for block in engine.remat if block in differentiated),
  )  # fmt: skip


def prepare(
  training: under_way.Training, index: int, plan: trainable_split.Plan,
  inputs: stage_inputs.Inputs, found: resume.Found | None = None,
) -> Ready:  # fmt: skip
  """Compiles the steps of a stage.

  Args:
    training: under way.
    index: of the stage.
    plan: what it trains.
    inputs: of the training set.
    found: a checkpoint in this stage.
  """
  stage, engine, mesh = training.method[index], training.engine, training.engine.mesh
  spec = step_of(training, index, plan, inputs.start)
  assembled = _assembled(engine, spec)
  moving, fixed = trainable_split.split_variables(training.variables, plan)
  if engine.frozen_dtype == frozen_storage.BFLOAT16:
    fixed = frozen_storage.narrowed(fixed)
  state = (assembled or spec).create_state(mesh_lib.put(moving, mesh))
  state = mesh_lib.put(found.fill("state", state) if found else state, mesh)
  fixed = mesh_lib.place(fixed, mesh_lib.replicated(mesh))
  initial = mesh_lib.put(moving["params"], mesh) if stage.penalty is not None else None
  columns = _columns(training, stage.gradient, inputs.labels)
  source = batches.choose(inputs.x, inputs.labels, engine.resident_bytes, columns)
  done = found.note["epoch"] if found else 0
  called = _Calls(training, stage, done)
  compile_epoch = _compile_streamed if source.streamed else _compile_resident
  example = order(training, stage.gradient, 0, 0)  # of the right shape, to compile with
  run_epoch, program, scan = compile_epoch(
    training, assembled or spec, state, fixed, initial, source, example, called
  )
  set_rates = auto_rates.setter(training, spec, fixed, source)
  return Ready(state, fixed, run_epoch, set_rates, program, scan)


class _Calls:
  """What is put around the step of a stage.

  Args:
    training: under way.
    stage: of it.
    done: epochs of the stage that a checkpoint holds.
  """

  def __init__(self, training: under_way.Training, stage: methods.Stage, done: int):
    self._trace, self._stage, self._epochs = training.trace, stage, stage.gradient.epochs - done

  def around(self, step: Callable, per_epoch: int | None) -> Callable:
    """The step, checked and perhaps traced; it is called so often in an epoch, None: once."""
    step = compile_once.Once(step, self._stage.name)
    if self._trace is None:
      return step
    calls, what = self._epochs * (per_epoch or 1), "epoch" if per_epoch is None else "step"
    return self._trace.of(step, self._stage.name, calls, what)


def _columns(
  training: under_way.Training, solver: methods.Gradient, labels: np.ndarray
) -> Mapping[str, np.ndarray]:
  """What a batch has beside images and labels [n]: those of the set, and weights of examples."""
  columns = getattr(training.train, "columns", batches.NO_COLUMNS)
  weights = class_weights.of_examples(
    solver.class_weights, np.asarray(training.train.labels), training.engine.model.num_classes,
    solver.sampling,
  )  # fmt: skip
  return columns if weights is None else {**columns, step_lib.WEIGHTS: weights[np.asarray(labels)]}


def _assembled(engine: engine_lib.Engine, spec: step_lib.StepSpec) -> blockwise_step.Step | None:
  """The step in pieces, where the engine asks for it and the stage allows it."""
  if not engine.in_pieces:
    return None
  reason = blockwise_step.why_not(spec, engine.mesh.size)
  if engine.frozen_dtype != frozen_storage.FLOAT32:
    reason = f"frozen_dtype={engine.frozen_dtype}"
  if reason:
    logging.info("stage %r is compiled whole, because of %s", spec.stage.name, reason)
    return None
  return blockwise_step.Step(spec)


def _view(training: under_way.Training, epoch: int) -> dict[str, jax.Array]:
  seen = {"seed": np.int32(training.seed), "epoch": np.int32(epoch)}
  return mesh_lib.place(seen, mesh_lib.replicated(training.engine.mesh))


def order(
  training: under_way.Training, solver: methods.Gradient, index: int, epoch: int
) -> np.ndarray:
  """[steps, batch] rows of the training set in an epoch of the stage at `index`."""
  labels, batch_size = np.asarray(training.train.labels), training.batch_size
  n, steps = len(labels), solver.steps_per_epoch
  if solver.sampling == "balanced":
    steps = steps or n // batch_size
    return batches.balanced_order(training.seed, index, epoch, labels, batch_size, steps)
  return epoch_order(training.seed, index, epoch, n, batch_size, steps)


def _compile_resident(
  training: under_way.Training, spec, state, fixed, initial, source, order, called
):
  """`run_epoch`, `program` and `scan` of `Ready`; a step whole or in pieces."""
  mesh = training.engine.mesh
  data = batches.resident(source, mesh)
  assembled = isinstance(spec, blockwise_step.Step)
  scan = False if assembled else training.engine.scan
  scan = jax.default_backend() != "cpu" if scan is None else scan
  sharding = mesh_lib.split(mesh)
  if scan:
    sharding = jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec(None, mesh_lib.DATA_AXIS)
    )
  if assembled:
    step = spec
  else:
    sample = mesh_lib.place(order if scan else order[0], sharding)
    step, _ = step_lib.compile_step(
      spec, mesh, state, fixed, initial, data, sample, _view(training, 0), scan=scan
    )
  program, step = None if assembled else step, called.around(step, None if scan else len(order))

  def run_epoch(state, order, epoch):
    seen = _view(training, epoch)
    if scan:
      return step(state, fixed, initial, data, mesh_lib.place(order, sharding), seen)
    rows = []
    for indices in order:
      state, metrics = step(state, fixed, initial, data, mesh_lib.place(indices, sharding), seen)
      rows.append(metrics)
    return state, _stacked(rows)

  return run_epoch, program, scan


def _compile_streamed(
  training: under_way.Training, spec, state, fixed, initial, source, order, called
):
  """As `_compile_resident`, a batch at a time; "data_wait" is the share of the epoch spent waiting
  for batches."""
  mesh = training.engine.mesh
  example = batches.one(source, order[0], mesh)
  step = spec
  if not isinstance(spec, blockwise_step.Step):
    step, _ = step_lib.compile_step(
      spec, mesh, state, fixed, initial, example, None, _view(training, 0)
    )
  program = None if isinstance(step, blockwise_step.Step) else step
  step = called.around(step, len(order))

  def run_epoch(state, order, epoch):
    begin = time.perf_counter()
    seen, rows = _view(training, epoch), []
    with batches.stream(source, order, mesh) as ahead:
      for batch in ahead:
        state, metrics = step(state, fixed, initial, batch, None, seen)
        rows.append(metrics)
      metrics = _stacked(rows)
    share = ahead.waited_seconds / (time.perf_counter() - begin)
    logging.info("epoch %d: %.0f %% of the time was spent waiting for data", epoch + 1, 100 * share)
    return state, metrics | {"data_wait": share}

  return run_epoch, program, False


def _stacked(rows: list[Any]) -> dict[str, np.ndarray]:
  """Metrics [steps] on the host."""
  rows = jax.device_get(rows)
  return {name: np.asarray([row[name] for row in rows]) for name in rows[0]}
