"""How one stage is run: the convex probe in one go, or mini-batch steps epoch by epoch.

The functions take the training under way (`loop._Training`): its engine, data, seed and variables.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import masks, methods
from subtune_jax.training import evaluate, probe
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import plan as plan_lib
from subtune_jax.training import step as step_lib

PyTree = Any


class NonFiniteLossError(ValueError):
  """The training loss became NaN or infinite."""


def epoch_order(seed: int, stage: int, epoch: int, n: int, batch_size: int) -> np.ndarray:
  """[steps, batch] indices of one epoch: a permutation without the rows that fill no batch."""
  order = np.random.default_rng([seed, stage, epoch]).permutation(n)
  steps = n // batch_size
  return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def describe(stage: methods.Stage, plan: plan_lib.Plan, variables: PyTree) -> dict[str, Any]:
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


def _stage_inputs(training: Any, plan: plan_lib.Plan) -> tuple[Any, Any, str | None]:
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


def probe_stage(training, index, stage, plan, found) -> PyTree:
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
  head = path.head(choice.index)
  logits, validation = (f @ head["kernel"] + head["bias"] for f in features)
  training.seconds += time.perf_counter() - begin
  training.stages[index] |= {
    "l2": float(path.l2[choice.index]),
    "grid": [
      {
        "learning_rate": float(l2),
        "validation_accuracy": float(acc),
        "validation_loss": float(loss),
      }
      for l2, acc, loss in zip(path.l2, choice.accuracy, choice.loss, strict=True)
    ],
    "grid_edge": bool(choice.at_edge),
  }
  row = {
    "stage": index,
    "epoch": 1,
    "train_loss": evaluate.cross_entropy(logits, labels[0]),
    "train_accuracy": evaluate.accuracy(logits, labels[0]),
  }
  training.record(row, validation)
  return {
    **training.variables,
    "params": {**training.variables["params"], "head": jax.tree.map(jnp.asarray, head)},
  }


def gradient_stage(training, index, stage, plan, found) -> PyTree:
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
    row = {
      "stage": index,
      "epoch": epoch + 1,
      "train_loss": float(np.mean(metrics["loss"])),
      "train_accuracy": float(np.sum(metrics["correct"]) / order.size),
      "gradient_norm": float(np.mean(metrics["gradient_norm"])),
    }
    training.record(row, logits)
    training.save(index, epoch + 1, state)
  return _current(state, fixed)


def _current(state: step_lib.TrainState, fixed: PyTree) -> PyTree:
  """The whole variables; the running average, if any, in place of the trained leaves."""
  moving = state.moving
  if state.average is not None:
    moving = {**moving, "params": state.average}
  return plan_lib.join_variables(moving, fixed)


def _compile_epoch(training: Any, spec, state, fixed, initial, data):
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
