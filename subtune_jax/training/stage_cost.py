"""What the stages of a training will take, from a few steps on its own images and shapes.

The steps are the ones that the training compiles, so in the same process nothing is compiled twice.
Nothing is kept of what they compute.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, Literal

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import methods
from subtune_jax.training import engine as engine_lib
from subtune_jax.training import (
  evaluate,
  probe,
  stage_inputs,
  stage_steps,
  timing,
  trainable_split,
  under_way,
)
from subtune_jax.training import mesh as mesh_lib

PyTree = Any
_STEPS = 2  # timed, after one that is not
_PROBED = 2000  # rows that a probe is timed on, at most


@dataclasses.dataclass(frozen=True)
class StageCost:
  """What one stage will take; seconds without compiling.

  Attributes:
    prefix: seconds before the first epoch, for the activations that are kept.
    epoch: seconds of an epoch, with what is read after each.
    epochs: their number.
    end: seconds after the last, for what is read then.
    nbytes: of its step by the compiler's count: arguments (the training set among them), results
      and temporary arrays; None where it does not say.
  """

  prefix: float
  epoch: float
  epochs: int
  end: float
  nbytes: int | None

  @property
  def seconds(self) -> float:
    """Of the whole stage."""
    return self.prefix + self.epochs * self.epoch + self.end


class Meter:
  """Measures stages; equal ones once.

  Args:
    engine: model, devices, batch size.
    variables: of the whole network.
    train: training set, as for `loop.fit`.
    validation: likewise, or None.
    validate: "epoch" or "end".
  """

  def __init__(
    self, engine: engine_lib.Engine, variables: PyTree, train: Any, validation: Any | None,
    validate: Literal["epoch", "end"] = "epoch",
  ):  # fmt: skip
    variables = mesh_lib.place({"batch_stats": {}, **variables}, mesh_lib.replicated(engine.mesh))
    self._sets = (engine, variables, train, validation, validate)
    self._known: dict[Any, Any] = {}

  def stages(self, method: methods.Method) -> tuple[StageCost, ...]:
    """The cost of each stage of a method. Errors: see `loop.fit`."""
    engine, variables, train, validation, validate = self._sets
    training = under_way.Training(
      engine, variables, method, train, validation, seed=0, on_epoch=None, saver=None,
      validate=validate, on_variables=None,
    )  # fmt: skip
    found = []
    for index, stage in enumerate(method):
      plan = trainable_split.make_plan(engine.model, training.variables, stage)
      probing = isinstance(stage.solver, methods.LBFGS)
      measure = self._probe if probing else self._gradient
      found.append(measure(training, index, plan))
      training.touch(plan)
    return tuple(found)

  def forward(self, images: Any) -> float:
    """Seconds that reading images [n, h, w, 3] with the whole network will take."""
    engine, variables, *_ = self._sets
    return self._pass(engine, variables, images, None, None, len(images))

  def _once(self, key: Any, measure: Callable[[], Any]) -> Any:
    if key not in self._known:
      self._known[key] = measure()
    return self._known[key]

  def _pass(self, engine, variables, x, start, stop, rows) -> float:
    """Seconds of a forward pass over so many rows, from one batch of `x`."""

    def measure() -> float:
      options = engine.options() | {"start": start, "stop": stop}
      for _ in range(2):  # the first compiles
        watch = timing.Watch()
        done = evaluate.run_units(engine.model, variables, x[: engine.batch_size], **options)
        jax.block_until_ready(done)
        seconds, _ = watch.lap()
      return seconds

    key = ("pass", start, stop, x.shape[1:], min(len(x), engine.batch_size))
    return self._once(key, measure) * -(-rows // engine.batch_size)

  def _gradient(self, training, index: int, plan) -> StageCost:
    engine, solver = training.engine, training.method[index].solver
    start = stage_inputs.start_of(training, plan)
    spec = stage_steps.step_of(training, index, plan, start)
    measure = lambda: self._steps(training, index, plan, start)  # noqa: E731
    step, rates, nbytes = self._once(spec.key(), measure)
    n = len(training.train.labels)
    held = 0 if training.validation is None else len(training.validation.labels)
    prefix = read = 0.0
    if start:
      prefix = self._pass(engine, training.variables, _images(training), None, start, n + held)
    if held:
      x = _images(training)
      if start:
        row = stage_inputs.activation(training, training.train, start)
        x = jnp.zeros((engine.batch_size, *row.shape[1:]), row.dtype)
      read = self._pass(engine, training.variables, x, start, None, held)
    steps = solver.steps_per_epoch or n // training.batch_size
    each, end = (read, 0.0) if training.validate == "epoch" else (0.0, read)
    return StageCost(prefix, steps * step + rates + each, solver.epochs, end, nbytes)

  def _steps(self, training, index: int, plan, start) -> tuple[float, float, int | None]:
    """Seconds of a step, seconds at the start of an epoch, bytes."""
    inputs = stage_inputs.like(training, start)
    ready = stage_steps.prepare(training, index, plan, inputs)
    rows = np.arange(len(training.train.labels)) if inputs.rows is None else inputs.rows
    solver = training.method[index].solver
    order = rows[stage_steps.order(training, solver, index, 0)].astype(np.int32)
    watch = timing.Watch()
    state, _ = ready.set_rates(ready.state, order, 0)
    jax.block_until_ready(state)
    rates, _ = watch.lap()
    if not ready.scan:
      state, _ = ready.run_epoch(state, order[:1], 0)
    used = order if ready.scan else order[:_STEPS]
    watch.lap()
    state, _ = ready.run_epoch(state, used, 0)
    jax.block_until_ready(state)
    seconds, _ = watch.lap()
    rates = 0.0 if solver.rates is None else rates
    return seconds / len(used), rates, ready.nbytes

  def _probe(self, training, index: int, plan) -> StageCost:
    """Reads one batch, and fits random features of the real number and width."""
    solver, engine = training.method[index].solver, training.engine
    labels = np.asarray(training.train.labels)
    held = 0 if training.validation is None else len(training.validation.labels)
    images = _images(training)
    stop = trainable_split.HEAD
    read = self._pass(engine, training.variables, images, None, stop, len(labels) + held)
    width = stage_inputs.activation(training, training.train, stop).shape[-1]
    fit = self._once(("fit", solver), lambda: _fit_seconds(engine, solver, labels, width))
    fits = solver.num_settings // len(solver.l2)
    return StageCost(0.0, read + fits * fit, 1, 0.0, None)


def _images(training: under_way.Training) -> Any:
  examples = training.train
  return getattr(examples, "prefix", examples).images


def _fit_seconds(engine, solver: methods.LBFGS, labels: np.ndarray, width: int) -> float:
  """Of a probe on noise; on the first rows, and in proportion, where there are many."""
  labels = labels[:_PROBED]
  if len(np.unique(labels)) < 2:
    return 0.0  # the probe says what is wrong
  features = np.random.default_rng(0).normal(size=(len(labels), width)).astype(np.float32)
  said = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)  # that noise is hard to fit is no warning
  watch = timing.Watch()
  try:
    probe.fit_path(
      features, labels, num_classes=engine.model.num_classes, l2=solver.l2,
      standardize=solver.standardize, max_steps=solver.max_steps,
      class_weights=solver.class_weights,
    )  # fmt: skip
  finally:
    logging.set_verbosity(said)
  seconds, _ = watch.lap()
  return seconds
