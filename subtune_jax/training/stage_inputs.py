"""What a stage reads of the training and validation set: images, or activations kept of them."""

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


def of_stage(
  training: under_way.Training, plan: trainable_split.Plan
) -> tuple[Inputs, Inputs | None]:
  """(training, validation) inputs: cached activations where the prefix is constant."""
  engine = training.engine
  present = [x for x in (training.train, training.validation) if x is not None]
  first = engine.model.block_names[0]
  cached = engine.prefix_cache and engine.augmentation is None and plan.start != first
  shared = [training.shares(x, plan.start) for x in present]
  if cached and not all(shared):
    needed = sum(_activation_bytes(training, x.images, plan.start) for x in present)
    cached = needed <= engine.resident_bytes
    if not cached:
      logging.info(
        "what comes before %s is run in every step: its cache would take %.1f GB of the %.1f "
        "allowed", plan.start, needed / 1e9, engine.resident_bytes / 1e9,
      )  # fmt: skip
  start = plan.start if cached else None
  train, *validation = (
    _inputs(training, x, start, own) for x, own in zip(present, shared, strict=True)
  )
  return train, validation[0] if validation else None


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


def _activation_bytes(training: under_way.Training, x: Any, stop: str) -> int:
  """What `stop` reads of every row of `x` takes."""
  model = training.engine.model
  image = jax.ShapeDtypeStruct((1, *x.shape[1:]), jnp.float32)
  out = jax.eval_shape(lambda v, i: model.apply(v, i, stop=stop), training.variables, image)
  return len(x) * out.size * out.dtype.itemsize


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
