"""What a stage reads of the training and validation set: images, or activations kept of them."""

import functools
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.training import evaluate, trainable_split, under_way
from subtune_jax.training import prefix as prefix_lib


class Inputs(NamedTuple):
  """What a stage reads of some examples.

  Attributes:
    x: images, or activations.
    labels: integers, one per row of `x`.
    rows: [n] positions of the examples in `x`; None where they are all of it.
    start: the first unit that reads `x`; None for images.
  """

  x: Any
  labels: np.ndarray
  rows: np.ndarray | None
  start: str | None


def start_of(training: under_way.Training, plan: trainable_split.Plan) -> str | None:
  """The first unit that the stage runs in every step, where what it reads is kept; else None."""
  engine = training.engine
  first = engine.model.block_names[0]
  if not engine.prefix_cache or engine.augmentation is not None or plan.start == first:
    return None
  present = _present(training)
  if all(training.shares(x, plan.start) for x in present):
    return plan.start
  needed = sum(_activation_bytes(training, x, plan.start) for x in present)
  if needed <= engine.resident_bytes:
    return plan.start
  logging.info(
    "what comes before %s is run in every step: its cache would take %.1f GB of the %.1f allowed",
    plan.start, needed / 1e9, engine.resident_bytes / 1e9,
  )  # fmt: skip
  return None


def of_stage(
  training: under_way.Training, plan: trainable_split.Plan
) -> tuple[Inputs, Inputs | None]:
  """(training, validation) inputs: cached activations where the prefix is constant."""
  start, present = start_of(training, plan), _present(training)
  shared = [training.shares(x, plan.start) for x in present]
  train, *validation = (
    _inputs(training, x, start, own) for x, own in zip(present, shared, strict=True)
  )
  return train, validation[0] if validation else None


def like(training: under_way.Training, start: str | None) -> Inputs:
  """Training inputs of the shapes that `of_stage` gives: zeros in place of activations."""
  examples = training.train
  shared = isinstance(examples, prefix_lib.Rows)
  labels, rows = (examples.all_labels, examples.rows) if shared else (examples.labels, None)
  if start is None:
    x = examples.prefix.images_on_device() if shared else examples.images
    return Inputs(x, labels, rows, None)
  row = activation(training, examples, start)
  x = jnp.zeros((len(labels), *row.shape[1:]), row.dtype)
  return Inputs(x, labels, rows, start)


def activation(training: under_way.Training, examples: Any, unit: str) -> jax.ShapeDtypeStruct:
  """What `unit` reads of one image, [1, ...]."""
  shared = isinstance(examples, prefix_lib.Rows)
  shape = (examples.prefix if shared else examples).images.shape[1:]
  image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  return _before.eval_shape(training.engine.model, training.variables, image, unit)


@functools.partial(jax.jit, static_argnames=("model", "unit"))
def _before(model, variables, image, unit):
  """Traced once for all that ask for the same."""
  return model.apply(variables, image, stop=unit)


def _present(training: under_way.Training) -> list[Any]:
  return [x for x in (training.train, training.validation) if x is not None]


def _inputs(training: under_way.Training, examples: Any, start: str | None, shared: bool) -> Inputs:
  """What the units from `start` on read of the examples; None is the images.

  Args:
    training: under way.
    examples: its training or validation set.
    start: a unit, or None.
    shared: whether the shared activations of the examples hold for `start`.
  """
  if isinstance(examples, prefix_lib.Rows) and (start is None or shared):
    x = None if start is None else examples.prefix.at(start)
    if x is None:
      x, start = examples.prefix.images_on_device(), None
    return Inputs(x, examples.all_labels, examples.rows, start)
  if start is None:
    return Inputs(examples.images, examples.labels, None, None)
  options = training.engine.options() | {"batch_size": training.batch_size, "stop": start}
  x = evaluate.run_units(training.engine.model, training.variables, examples.images, **options)
  return Inputs(x, examples.labels, None, start)


def _activation_bytes(training: under_way.Training, examples: Any, unit: str) -> int:
  """What `unit` reads of all examples takes."""
  row = activation(training, examples, unit)
  return len(examples.labels) * row.size * row.dtype.itemsize


def features(training: under_way.Training, examples: Any) -> np.ndarray:
  """What the head reads, [n, features] float32."""
  engine = training.engine
  if engine.prefix_cache and training.shares(examples, trainable_split.HEAD):
    kept = examples.prefix.at(trainable_split.HEAD)
    if kept is not None:
      return np.asarray(kept[examples.rows], np.float32)
  options = engine.options() | {"stop": trainable_split.HEAD}
  features = evaluate.run_units(engine.model, training.variables, examples.images, **options)
  return np.asarray(features, np.float32)
