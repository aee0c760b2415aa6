"""How one stage is run: the convex probe in one go, or mini-batch steps epoch by epoch.

A solver says how by its class: `run` is a single-dispatch function, and another kind of solver
registers its own.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import masks, methods
from subtune_jax.statistics import criteria
from subtune_jax.training import (
  class_weights,
  divergence,
  evaluate,
  frozen_storage,
  lolsgd,
  probe,
  resume,
  stage_inputs,
  stage_steps,
  timing,
  trainable_split,
  under_way,
)
from subtune_jax.training import step as step_lib

PyTree = Any


NonFiniteLossError = divergence.NonFiniteLossError


def describe(stage: methods.Stage, plan: trainable_split.Plan, variables: PyTree) -> dict[str, Any]:
  counts = masks.count_params(variables["params"], plan.labels)
  solver = stage.solver
  return {
    "title": stage.name,
    "blocks": list(plan.blocks),
    "trained_params": sum(n for label, n in counts.items() if label != masks.FROZEN),
    "solver": solver.optimizer if isinstance(solver, methods.Gradient) else "lbfgs",
    "epochs": solver.epochs if isinstance(solver, methods.Gradient) else 1,
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
  head, note, _ = fit_probe(solver, features, labels, model.num_classes, training.select_by)
  if solver.rescale:
    head = probe.rescale(head, np.std(training.variables["params"]["head"]["kernel"]))
  divergence.check("the probe's weights", head, training.method[index], 0)
  watch.add_to(training)
  training.stages[index] |= note
  variables = {
    **training.variables,
    "params": {**training.variables["params"], "head": jax.tree.map(jnp.asarray, head)},
  }
  record_probe(training, index, head, features, labels, lambda: variables)
  return variables


def fit_probe(
  solver: methods.LBFGS,
  features: Sequence[np.ndarray],
  labels: Sequence[np.ndarray],
  num_classes: int,
  select_by: str,
) -> tuple[dict[str, np.ndarray], dict[str, Any], probe.Choice | None]:
  """(head, what a record keeps of it, the choice) on features of one set, or of two.

  Args:
    solver: says how.
    features: of the training images; and of those that choose, if any.
    labels: likewise.
    num_classes: of the head.
    select_by: a metric of `statistics.criteria`.
  """
  path = probe.fit_path(
    features[0], labels[0], num_classes=num_classes, l2=solver.l2,
    standardize=solver.standardize, max_steps=solver.max_steps, class_weights=solver.class_weights,
  )  # fmt: skip
  if len(features) == 1:
    return path.head(0), {"l2": float(path.l2[0])}, None
  choice = probe.choose(path, features[1], labels[1], select_by)
  note = _probe_note(path, choice, criteria.CRITERIA[select_by])
  return path.head(choice.index), note, choice


def record_probe(
  training: under_way.Training,
  index: int,
  head: Mapping[str, np.ndarray],
  features: Sequence[np.ndarray],
  labels: Sequence[np.ndarray],
  variables: Callable[[], PyTree],
) -> None:
  """The row of the history of a head on features, which are as in `fit_probe`."""
  solver = training.method[index].solver
  logits, *validation = (f @ head["kernel"] + head["bias"] for f in features)
  divergence.check("the training logits", logits, training.method[index], 0)
  weights = class_weights.of_examples(solver.class_weights, labels[0], len(head["bias"]))
  row = {
    "stage": index,
    "epoch": 1,
    "train_loss": evaluate.cross_entropy(logits, labels[0], weights),
    "train_accuracy": evaluate.accuracy(logits, labels[0]),
  }
  training.record(row, validation[0] if validation else None, variables)


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
  stage, engine = training.method[index], training.engine
  watch = timing.Watch()
  inputs, validation = stage_inputs.of_stage(training, plan)
  epochs = solver.epochs
  resumed = found if found and found.note["stage"] == index else None
  ready = stage_steps.prepare(training, index, plan, inputs, resumed)
  state, fixed, set_rates = ready.state, ready.fixed, ready.set_rates
  cost = training.stages[index].setdefault("step", {"number": 0, "seconds": 0.0})
  cost["bytes"] = _step_bytes(ready, inputs, validation)
  run_epoch = lolsgd.over_runs(
    solver, _timed(ready.run_epoch, cost), inputs.labels, [training.seed, index], engine.mesh
  )
  first_epoch = resumed.note["epoch"] if resumed else 0
  for epoch in range(first_epoch, epochs):
    order = stage_steps.order(training, solver, index, epoch)
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
    training.record(row, logits, functools.partial(_whole, state, fixed))
    training.save(index, epoch + 1, state)
    watch.lap()  # hooks and checkpoints are not training
  return _whole(state, fixed)


def _whole(state: step_lib.TrainState, fixed: PyTree) -> PyTree:
  """The whole variables as other stages and callers take them."""
  return frozen_storage.widened(_current(state, fixed))


def _timed(run_epoch: Callable, cost: dict[str, Any]) -> Callable:
  """The same, that adds its steps and their seconds to `cost`."""

  def run_(state: Any, order: np.ndarray, epoch: int) -> Any:
    watch = timing.Watch()
    state, metrics = jax.block_until_ready(run_epoch(state, order, epoch))
    cost["seconds"] += watch.lap()[0]
    cost["number"] += len(order)
    return state, metrics

  return run_


def _step_bytes(
  ready: stage_steps.Ready, inputs: stage_inputs.Inputs, validation: stage_inputs.Inputs | None
) -> int | None:
  """Of the step, and of activations that are kept of the validation set beside it."""
  beside = 0
  if validation is not None and validation.start is not None and validation.x is not inputs.x:
    beside = validation.x.nbytes
  return None if ready.nbytes is None else ready.nbytes + beside


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


def _current(state: step_lib.TrainState, fixed: PyTree) -> PyTree:
  """The whole variables; the running average, if any, in place of the trained leaves."""
  moving = state.moving
  if state.average is not None:
    moving = {**moving, "params": state.average}
  return trainable_split.join_variables(moving, fixed)


def _check_state(state: step_lib.TrainState, stage: methods.Stage, epoch: int) -> None:
  """Raises NonFiniteLossError where the last update left something that is not finite."""
  parts = {
    "the weights": state.moving["params"], "the running statistics": state.moving["batch_stats"],
    "the running average": state.average, "the optimizer's state": state.opt_state,
  }  # fmt: skip
  for what, tree in parts.items():
    divergence.check(what, tree, stage, epoch)
