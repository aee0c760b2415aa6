"""An epoch as the mean of several runs that each leave out classes (`methods.LeaveOut`)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import methods
from subtune_jax.training import mesh as mesh_lib

PyTree = Any
Epoch = Callable[..., tuple[Any, dict[str, Any]]]


def orders(
  leave_out: methods.LeaveOut, labels: np.ndarray, order: np.ndarray, seed: Sequence[int]
) -> list[np.ndarray]:
  """The examples of each run: those of the epoch without some classes, repeated to fill its steps.

  Args:
    leave_out: number of runs, share of the classes.
    labels: [n] integers; read at `order` alone.
    order: [steps, batch] examples of the epoch.
    seed: of the draw; other integers for another epoch.

  Returns:
    One [steps, batch] int32 per run.

  Raises:
    ValueError: the epoch's examples are of one class.
  """
  rows = order.reshape(-1)
  classes = np.unique(labels[rows])
  if len(classes) < 2:
    raise ValueError(
      f"leave_out needs at least 2 classes in an epoch, and all its examples are of class "
      f"{int(classes[0])}"
    )
  number = min(max(round(leave_out.share * len(classes)), 1), len(classes) - 1)
  generator = np.random.default_rng(list(seed))
  found = []
  for _ in range(leave_out.runs):
    left_out = generator.permutation(classes)[:number]
    kept = generator.permutation(rows[~np.isin(labels[rows], left_out)])
    found.append(np.resize(kept, order.shape).astype(np.int32))
  return found


@jax.jit
def _mean(trees: Sequence[PyTree]) -> PyTree:
  """Leaf by leaf; exactly the leaf where all are equal. Integers are those of the first tree."""

  def mean(first, *rest):
    if not jnp.issubdtype(first.dtype, jnp.floating) or not rest:
      return first
    return first + sum(x - first for x in rest) / (1 + len(rest))

  return jax.tree.map(mean, *trees)


def over_runs(
  solver: methods.Gradient,
  run_epoch: Epoch,
  labels: Any,
  seed: Sequence[int],
  mesh: jax.sharding.Mesh,
) -> Epoch:
  """An epoch of the solver: as it is, or with `leave_out` the mean of its runs.

  Args:
    solver: of the stage.
    run_epoch: (state, order [steps, batch], epoch) -> (state, metrics [steps]).
    labels: [n] integers of the training set.
    seed: of the stage; the epoch is added.
    mesh: the devices.
  """
  leave_out = solver.leave_out
  if leave_out is None:
    return run_epoch

  def run_all(state, order, epoch):
    drawn = orders(leave_out, np.asarray(labels), order, [*seed, epoch])
    return run(run_epoch, state, drawn, epoch, mesh)

  return run_all


def run(
  run_epoch: Epoch,
  state: Any,
  orders: Sequence[np.ndarray],
  epoch: int,
  mesh: jax.sharding.Mesh,
) -> tuple[Any, dict[str, np.ndarray]]:
  """Runs every order from the same state; returns the mean of the ends, and of the metrics.

  Args:
    run_epoch: (state, order [steps, batch], epoch) -> (state, metrics [steps]); gives up the state.
    state: parameters, running statistics, optimiser state and average, all of which are averaged.
    orders: one per run.
    epoch: of the stage.
    mesh: the devices.
  """
  ends, metrics = [], []
  for order in orders:
    start = mesh_lib.place(jax.tree.map(jnp.copy, state), mesh_lib.replicated(mesh))
    end, found = run_epoch(start, order, epoch)
    ends.append(end)
    metrics.append(jax.device_get(found))
  merged = mesh_lib.place(_mean(ends), mesh_lib.replicated(mesh))
  return merged, {name: np.mean([m[name] for m in metrics], axis=0) for name in metrics[0]}
