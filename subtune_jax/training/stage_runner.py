"""How one stage is run: the convex probe in one go, or mini-batch steps epoch by epoch.

A solver says how by its class: `run` is a single-dispatch function, and another kind of solver
registers its own.
"""

from collections.abc import Mapping
import functools
import time
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import masks, methods
from subtune_jax.statistics import criteria
from subtune_jax.training import (
  auto_rates,
  batches,
  blockwise_step,
  class_weights,
  divergence,
  evaluate,
  lolsgd,
  probe,
  resume,
  stage_inputs,
  timing,
  trainable_split,
  under_way,
)
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import step as step_lib

PyTree = Any


NonFiniteLossError = divergence.NonFiniteLossError


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


def describe(stage: methods.Stage, plan: trainable_split.Plan, variables: PyTree) -> dict[str, Any]:
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


@functools.singledispatch
def run(
  solver: Any,
  training: under_way.Training,
  index: int,
  plan: trainable_split.Plan,
  found: resume.Found | None,
) -> PyTree:
  """Runs a stage.

  Args:
    solver: of the stage; its class chooses how.
    training: under way; the records go to it.
    index: of the stage among those of the method.
    plan: what the stage trains.
    found: a checkpoint in this stage or an earlier one, None to start it.

  Returns:
    The variables of the whole network after it.
  """
  raise TypeError(f"no way to run a stage with a solver of type {type(solver).__name__}")


@run.register
def probe_stage(
  solver: methods.LBFGS,
  training: under_way.Training,
  index: int,
  plan: trainable_split.Plan,
  found: resume.Found | None,
) -> PyTree:
  """The convex stage: L-BFGS on cached features, strength chosen on validation."""
  del found  # solved anew: it takes seconds
  watch = timing.Watch()
  model = training.engine.model
  sets = [x for x in (training.train, training.validation) if x is not None]
  features = [stage_inputs.features(training, x) for x in sets]
  labels = [np.asarray(x.labels) for x in sets]
  path = probe.fit_path(
    features[0], labels[0], num_classes=model.num_classes, l2=solver.l2,
    standardize=solver.standardize, max_steps=solver.max_steps, class_weights=solver.class_weights,
  )  # fmt: skip
  if training.validation is None:
    chosen, note = 0, {"l2": float(path.l2[0])}
  else:
    choice = probe.choose(path, features[1], labels[1], training.select_by)
    chosen, note = choice.index, _probe_note(path, choice, criteria.CRITERIA[training.select_by])
  head = path.head(chosen)
  if solver.rescale:
    head = probe.rescale(head, np.std(training.variables["params"]["head"]["kernel"]))
  divergence.check("the probe's weights", head, training.method[index], 0)
  logits, *validation = (f @ head["kernel"] + head["bias"] for f in features)
  divergence.check("the training logits", logits, training.method[index], 0)
  watch.add_to(training)
  training.stages[index] |= note
  weights = class_weights.of_examples(solver.class_weights, labels[0], model.num_classes)
  row = {
    "stage": index,
    "epoch": 1,
    "train_loss": evaluate.cross_entropy(logits, labels[0], weights),
    "train_accuracy": evaluate.accuracy(logits, labels[0]),
  }
  variables = {
    **training.variables,
    "params": {**training.variables["params"], "head": jax.tree.map(jnp.asarray, head)},
  }
  training.record(row, validation[0] if validation else None, lambda: variables)
  return variables


def _probe_note(
  path: probe.ProbePath, choice: probe.Choice, criterion: criteria.Criterion
) -> dict[str, Any]:
  """What a record keeps of the strengths that were tried."""
  columns = {"validation_accuracy": choice.accuracy, "validation_loss": choice.loss}
  columns |= {criterion.field: choice.values}
  return {
    "l2": float(path.l2[choice.index]),
    "grid": [
      {"learning_rate": float(l2)}
      | {
        name: float(values[i]) if np.isfinite(choice.loss[i]) else None
        for name, values in columns.items()
      }
      for i, l2 in enumerate(path.l2)
    ],
    "grid_edge": bool(choice.at_edge),
  }


@run.register
def gradient_stage(
  solver: methods.Gradient,
  training: under_way.Training,
  index: int,
  plan: trainable_split.Plan,
  found: resume.Found | None,
) -> PyTree:
  """Mini-batch steps; evaluates on validation and may write a checkpoint after every epoch."""
  stage, engine, mesh = training.method[index], training.engine, training.engine.mesh
  watch = timing.Watch()
  inputs, validation = stage_inputs.of_stage(training, plan)
  n, epochs = len(training.train.labels), solver.epochs
  steps = solver.steps_per_epoch or n // training.batch_size
  spec = step_lib.StepSpec(
    engine.model, plan, stage, epochs * steps, engine.preprocessing,
    None if inputs.start else engine.augmentation, inputs.start,
  )  # fmt: skip
  assembled = _assembled(engine, spec)
  moving, fixed = trainable_split.split_variables(training.variables, plan)
  create = (assembled or spec).create_state
  state = create(mesh_lib.put(moving, mesh))
  first_epoch = 0
  if found and found.note["stage"] == index:
    state, first_epoch = found.fill("state", state), found.note["epoch"]
  state = mesh_lib.put(state, mesh)
  fixed = jax.device_put(fixed, mesh_lib.replicated(mesh))
  initial = mesh_lib.put(moving["params"], mesh) if stage.penalty is not None else None
  columns = _columns(training, solver, inputs.labels)
  source = batches.choose(inputs.x, inputs.labels, engine.resident_bytes, columns)
  compile_epoch = _compile_streamed if source.streamed else _compile_resident
  example = _order(training, solver, 0, 0)  # of the right shape, to compile with
  run_epoch = compile_epoch(training, assembled or spec, state, fixed, initial, source, example)
  run_epoch = lolsgd.over_runs(solver, run_epoch, inputs.labels, [training.seed, index], mesh)
  set_rates = auto_rates.setter(training, spec, fixed, source)
  for epoch in range(first_epoch, epochs):
    order = _order(training, solver, index, epoch)
    if inputs.rows is not None:
      order = inputs.rows[order].astype(np.int32)
    state, rates = set_rates(state, order, epoch)
    state, metrics = run_epoch(state, order, epoch)
    divergence.check_steps(metrics, stage, epoch)
    _check_state(state, stage, epoch)
    logits = None
    if validation is not None and (training.validate == "epoch" or epoch + 1 == epochs):
      options = engine.options() | {"start": validation.start, "rows": validation.rows}
      logits = evaluate.predict(engine.model, _current(state, fixed), validation.x, **options)
    watch.add_to(training)
    row = {"stage": index, "epoch": epoch + 1} | _measured(metrics, order.size) | rates
    training.record(row, logits, functools.partial(_current, state, fixed))
    training.save(index, epoch + 1, state)
    watch.lap()  # hooks and checkpoints are not training
  return _current(state, fixed)


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


def _measured(metrics: Any, num_seen: int) -> dict[str, float]:
  """What an epoch says of itself; the share of time spent waiting for data where it streams."""
  row = {
    "train_loss": float(np.mean(metrics["loss"])),
    "train_accuracy": float(np.sum(metrics["correct"]) / num_seen),
    "gradient_norm": float(np.mean(metrics["gradient_norm"])),
  }
  if "data_wait" in metrics:
    row["data_wait"] = float(metrics["data_wait"])
  return row


def _assembled(engine: Any, spec: step_lib.StepSpec) -> blockwise_step.Step | None:
  """The step in pieces, where the engine asks for it and the stage allows it."""
  if not engine.in_pieces:
    return None
  reason = blockwise_step.why_not(spec, engine.mesh.size)
  if reason:
    logging.info("stage %r is compiled whole, because of %s", spec.stage.name, reason)
    return None
  return blockwise_step.Step(spec)


def _current(state: step_lib.TrainState, fixed: PyTree) -> PyTree:
  """The whole variables; the running average, if any, in place of the trained leaves."""
  moving = state.moving
  if state.average is not None:
    moving = {**moving, "params": state.average}
  return trainable_split.join_variables(moving, fixed)


def _view(training: under_way.Training, epoch: int) -> dict[str, jax.Array]:
  seen = {"seed": np.int32(training.seed), "epoch": np.int32(epoch)}
  return jax.device_put(seen, mesh_lib.replicated(training.engine.mesh))


def _order(
  training: under_way.Training, solver: methods.Gradient, index: int, epoch: int
) -> np.ndarray:
  """[steps, batch] rows of the training set in an epoch of the stage at `index`."""
  labels, batch_size = np.asarray(training.train.labels), training.batch_size
  n, steps = len(labels), solver.steps_per_epoch
  if solver.sampling == "balanced":
    steps = steps or n // batch_size
    return batches.balanced_order(training.seed, index, epoch, labels, batch_size, steps)
  return epoch_order(training.seed, index, epoch, n, batch_size, steps)


def _compile_resident(training: under_way.Training, spec, state, fixed, initial, source, order):
  """(state, order [steps, batch], epoch) -> (state, metrics [steps]); a step whole or in pieces."""
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
    sample = jax.device_put(order if scan else order[0], sharding)
    step, _ = step_lib.compile_step(
      spec, mesh, state, fixed, initial, data, sample, _view(training, 0), scan=scan
    )

  def run_epoch(state, order, epoch):
    seen = _view(training, epoch)
    if scan:
      return step(state, fixed, initial, data, jax.device_put(order, sharding), seen)
    rows = []
    for indices in order:
      state, metrics = step(state, fixed, initial, data, jax.device_put(indices, sharding), seen)
      rows.append(metrics)
    return state, _stacked(rows)

  return run_epoch


def _compile_streamed(training: under_way.Training, spec, state, fixed, initial, source, order):
  """As `_compile_resident`, a batch at a time; "data_wait" is the share of the epoch spent waiting
  for batches."""
  mesh = training.engine.mesh
  example = batches.one(source, order[0], mesh)
  step = spec
  if not isinstance(spec, blockwise_step.Step):
    step, _ = step_lib.compile_step(
      spec, mesh, state, fixed, initial, example, None, _view(training, 0)
    )

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

  return run_epoch


def _stacked(rows: list[Any]) -> dict[str, np.ndarray]:
  """Metrics [steps] on the host."""
  rows = jax.device_get(rows)
  return {name: np.asarray([row[name] for row in rows]) for name in rows[0]}


def _check_state(state: step_lib.TrainState, stage: methods.Stage, epoch: int) -> None:
  """Raises NonFiniteLossError where the last update left something that is not finite."""
  parts = {
    "the weights": state.moving["params"], "the running statistics": state.moving["batch_stats"],
    "the running average": state.average, "the optimizer's state": state.opt_state,
  }  # fmt: skip
  for what, tree in parts.items():
    divergence.check(what, tree, stage, epoch)
