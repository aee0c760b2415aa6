"""Forward passes over whole sets: logits for evaluation, activations for the prefix cache."""

from collections.abc import Iterator
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from subtune_jax.calibration import checks
from subtune_jax.data import preprocess
from subtune_jax.models import backbone
from subtune_jax.statistics import classification
from subtune_jax.training import blockwise_step, frozen_storage
from subtune_jax.training import mesh as mesh_lib

PyTree = Any


@functools.lru_cache(maxsize=64)
def forward_program(
  model: Any, start: str | None, stop: str | None, preprocessing: preprocess.Preprocessing
) -> Any:
  """The compiled forward pass over one batch: (variables, x) -> logits or activations."""

  def forward(variables, x):
    variables = frozen_storage.widened(variables)
    if start in (None, model.block_names[0]):
      x = preprocess.normalize(x, preprocessing)
    return model.apply(variables, x, start=start, stop=stop)

  return jax.jit(forward)


def batches(
  x: Any, batch_size: int, rows: np.ndarray | None = None, mesh: jax.sharding.Mesh | None = None
) -> Iterator[tuple[Any, int]]:
  """(batch, real rows): the last batch is filled up with copies of its first row.

  With a mesh it is split over its devices, and a process reads the rows of its own ones.
  """
  if mesh is not None and not mesh_lib.is_local(mesh):
    rows = np.arange(len(x)) if rows is None else rows
    for begin in range(0, len(rows), batch_size):
      own = np.asarray(rows[begin : begin + batch_size], np.int32)
      filled = np.concatenate([own, np.full(batch_size - len(own), own[0])])
      yield mesh_lib.take(x, filled, mesh), len(own)
    return
  n = len(x) if rows is None else len(rows)
  for begin in range(0, n, batch_size):
    if rows is None:
      batch = x[begin : begin + batch_size]
    else:
      batch = x[np.asarray(rows[begin : begin + batch_size], np.int32)]
    real = len(batch)
    if real < batch_size:
      fill = np.zeros(batch_size, np.int32)
      fill[:real] = np.arange(real)
      batch = batch[fill]
    yield batch if mesh is None else jax.device_put(batch, mesh_lib.split(mesh)), real


@functools.lru_cache(maxsize=64)
def program_in_pieces(
  model: Any, start: str | None, stop: str | None, preprocessing: preprocess.Preprocessing
) -> Any:
  """`forward_program` from programs of single units, where units run outside the model."""
  if backbone.fork_of(model) is not None:
    return forward_program(model, start, stop, preprocessing)
  units = (*model.block_names, "head")
  first = units.index(start) if start else 0
  names = units[first : units.index(stop) if stop else len(units)]
  normalize = jax.jit(functools.partial(preprocess.normalize, preprocessing=preprocessing))

  def forward(variables, x):
    if first == 0:
      x = normalize(x)
    for name in names:
      x = blockwise_step.forward(model, variables, name, x)
    return x

  return forward


def run_units(
  model: Any,
  variables: PyTree,
  x: Any,
  *,
  preprocessing: preprocess.Preprocessing,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  start: str | None = None,
  stop: str | None = None,
  rows: np.ndarray | None = None,
  in_pieces: bool = False,
) -> jax.Array:
  """Runs the units from `start` up to, not including, `stop` over every row of `x`.

  BatchNorm runs on running statistics; every row is computed in a batch of `batch_size`, the last
  one filled up, and every row counts.

  Args:
    model: a backbone of `subtune_jax.models`.
    variables: its variables.
    x: [n, ...]: uint8 images where `start` is the first unit, else what `start` reads.
    preprocessing: the backbone's statistics, for images.
    batch_size: rows at a time; rounded up to a multiple of the number of devices.
    mesh: the devices.
    start: first unit, None for the images.
    stop: first unit that does not run, None for the logits.
    rows: [n] positions in `x`; None is all.
    in_pieces: from programs of single units (`training/blockwise_step.py`).

  Returns:
    [n, ...] on the devices, replicated.
  """
  batch_size = -(-batch_size // mesh.size) * mesh.size
  program = program_in_pieces if in_pieces else forward_program
  forward = program(model, start, stop, preprocessing)
  variables = mesh_lib.place(variables, mesh_lib.replicated(mesh))
  if in_pieces:
    variables = frozen_storage.widened(variables)
  parts = []
  for batch, real in batches(x, batch_size, rows, mesh):
    parts.append(forward(variables, batch)[:real])
  return mesh_lib.place(jnp.concatenate(parts), mesh_lib.replicated(mesh))


def predict(model: Any, variables: PyTree, x: Any, **options: Any) -> np.ndarray:
  """Logits [n, num_classes] float32 on the host; the arguments of `run_units`."""
  return np.asarray(run_units(model, variables, x, **options), np.float32)


def predictions(logits: np.ndarray) -> np.ndarray:
  """The class of the largest logit of each row, [n]; ties go to the first class.

  Args:
    logits: [n, num_classes]; -inf is a class that is ruled out.

  Raises:
    ValueError: NaN, +inf, or a row that is all -inf: the argmax of those is an arbitrary class.
  """
  return np.argmax(checks.logits(logits), axis=-1)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
  """Share of the rows whose largest logit is the label's. Errors: see `predictions`."""
  return float(np.mean(predictions(logits) == labels))


def metric(name: str, logits: np.ndarray, labels: np.ndarray) -> float:
  """A metric of `statistics.criteria` by its name. Errors: see `predictions`."""
  if name == "balanced_accuracy":
    return classification.balanced_accuracy(predictions(logits), labels, logits.shape[-1])
  if name == "auroc":
    return classification.auroc(probabilities(logits), labels)
  return {"accuracy": accuracy, "nll": cross_entropy}[name](logits, labels)


def probabilities(logits: np.ndarray) -> np.ndarray:
  """Softmax over the last axis, in float64. Errors: see `predictions`."""
  return scipy.special.softmax(np.asarray(checks.logits(logits), np.float64), axis=-1)


def cross_entropy(
  logits: np.ndarray, labels: np.ndarray, class_weights: np.ndarray | None = None
) -> float:
  """Mean negative log-likelihood in nats, computed in float64. Errors: see `predictions`.

  With `class_weights` [num_classes] each example's is multiplied by the weight of its label.
  """
  logits = np.asarray(checks.logits(logits), np.float64)
  top = logits.max(axis=-1, keepdims=True)
  log_norm = np.log(np.sum(np.exp(logits - top), axis=-1)) + top[:, 0]
  losses = log_norm - logits[np.arange(len(labels)), labels]
  return float(np.mean(losses if class_weights is None else class_weights[labels] * losses))
