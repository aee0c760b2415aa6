"""What a plan costs: multiply-adds and bytes counted, milliseconds measured on this device.

`measure` times each form of every unit that runs more than once and keeps the quickest, as a table;
`added_by_fork` gives the milliseconds that one more task adds, by its first tuned block.
"""

from collections.abc import Callable, Mapping, Sequence
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.models import backbone
from subtune_jax.multitask import execution
from subtune_jax.multitask import network as network_lib
from subtune_jax.multitask import plan as plan_lib

PyTree = Any
_GAIN = 0.97  # of the separate form's time: a form that is no quicker than this is not taken


class Row(NamedTuple):
  """Measured forms of a unit.

  Attributes:
    unit: its name.
    runs: nodes of the plan.
    sets: of unequal weights among them.
    milliseconds: form -> median.
    chosen: the form to take.
  """

  unit: str
  runs: int
  sets: int
  milliseconds: dict[str, float]
  chosen: str


class Table(NamedTuple):
  """Measured forms of a plan.

  Attributes:
    rows: a row for each unit that runs more than once, input to output.
    batch_size: images at a time.
    device: as JAX names it.
  """

  rows: tuple[Row, ...]
  batch_size: int
  device: str

  def forms(self) -> dict[str, str]:
    """Unit -> the form to take, for `MultiTask.with_forms`."""
    return {row.unit: row.chosen for row in self.rows}

  def __str__(self) -> str:
    head = f"{'':16}{'runs':>6}{'sets':>6}" + "".join(f"{form:>11}" for form in execution.FORMS)
    lines = [f"ms a batch of {self.batch_size} on {self.device}", f"{head}  chosen"]
    for row in self.rows:
      times = "".join(
        f"{row.milliseconds[form]:11.2f}" if form in row.milliseconds else f"{'-':>11}"
        for form in execution.FORMS
      )
      lines.append(f"{row.unit:16}{row.runs:6}{row.sets:6}{times}  {row.chosen}")
    return "\n".join(lines)


def measure(network: network_lib.MultiTask, batch_size: int, rounds: int = 7) -> Table:
  """Times the forms of each unit that runs more than once, in interleaved rounds.

  Units alike (blocks of one kind, in one place of the tree) are timed once.

  Args:
    network: the tasks.
    batch_size: images at a time.
    rounds: of which the medians are taken.
  """
  plan = network.plan
  shapes = outputs(network, batch_size)
  seen: dict[Any, dict[str, float]] = {}
  rows = []
  for unit, own in plan.levels().items():
    if len(own) < 2 or unit == plan_lib.HEAD:
      continue
    classes = plan.classes(unit)
    parents = {plan.nodes[i].parent for i in own}
    sizes = tuple(sorted(map(len, classes)))
    key = (_kind(network.model, unit), shapes[plan.nodes[own[0]].parent].shape, sizes, len(parents))
    if key not in seen:
      forms: tuple[str, ...] = execution.FORMS if len(classes) > 1 else execution.FORMS[:2]
      forms = forms if max(sizes) > 1 else tuple(form for form in forms if form != "stacked")
      programs = {form: _of_unit(network, unit, form, shapes) for form in forms}
      seen[key] = medians(programs, rounds)
    times = seen[key]
    rows.append(Row(unit, len(own), len(classes), times, _choice(times)))
  return Table(tuple(rows), batch_size, jax.devices()[0].device_kind)


def _choice(times: Mapping[str, float]) -> str:
  best = min(times, key=times.__getitem__)
  return best if times[best] < _GAIN * times["separate"] else "separate"


def _kind(model: Any, unit: str) -> str:
  """What makes two units alike."""
  is_backbone = isinstance(model, backbone.Backbone) and unit != plan_lib.HEAD
  return repr(backbone.block_module(model, unit, False)) if is_backbone else unit


def outputs(network: network_lib.MultiTask, batch_size: int) -> dict[int | None, Any]:
  """Position in the plan's nodes -> shape of the node's output; None -> of the images."""
  size = network.image_size
  model, plan = network.model, network.plan
  found: dict[int | None, Any] = {
    None: jax.ShapeDtypeStruct((batch_size, size, size, 3), model.dtype or jnp.float32)
  }
  for i, node in enumerate(plan.nodes):

    def run(variables: PyTree, x: Any, unit: str = node.unit) -> Any:
      return execution.run_unit(model, unit, variables, x)

    found[i] = jax.eval_shape(run, network.weights_of(node), _read(node, found))
  return found


def _read(node: plan_lib.Node, shapes: Mapping[int | None, Any]) -> Any:
  """Shape of what a node reads."""

  def run(*parts: Any) -> Any:
    return execution.read(node, dict(zip(node.reads, parts, strict=True)))

  return jax.eval_shape(run, *(shapes[i] for i in node.reads))


def _of_unit(
  network: network_lib.MultiTask, unit: str, form: str, shapes: Mapping[int | None, Any]
) -> Callable[[], Any]:
  """All runs of one unit in one form, on inputs of the right shapes."""
  plan = network.plan
  order = [step for step in execution.steps(plan, {unit: form}) if step.unit == unit]
  weights = tuple(network.weights_of_step(step) for step in order)
  parents = sorted({plan.nodes[i].parent for i in plan.levels()[unit]}, key=str)
  inputs = [drawn(shapes[i]) for i in parents]

  def run(weights: Sequence[PyTree], inputs: Sequence[Any]) -> list[Any]:
    there = dict(zip(parents, inputs, strict=True))
    for step, own in zip(order, weights, strict=True):
      execution.run_step(network.model, plan, step, own, there)
    return [there[i] for i in plan.levels()[unit]]

  program = jax.jit(run)
  return lambda: program(weights, inputs)


def drawn(shape: Any) -> jax.Array:
  """Numbers of a shape and type."""
  return jnp.asarray(np.random.default_rng(0).uniform(0, 1, shape.shape), shape.dtype)


def added_by_fork(
  network: network_lib.MultiTask, batch_size: int, rounds: int = 7
) -> dict[str, float]:
  """First tuned unit -> milliseconds of all units from it on: what one more task adds.

  Args:
    network: any tasks of the backbone; units are timed one by one on those of the first.
    batch_size: images at a time.
    rounds: of which the medians are taken.
  """
  plan, shapes = network.plan, outputs(network, batch_size)
  path = plan.path(plan.tasks[0])
  programs: dict[Any, Callable[[], Any]] = {}
  keys = []
  for i in path:
    node = plan.nodes[i]
    keys.append((_kind(network.model, node.unit), _read(node, shapes).shape))
    if keys[-1] not in programs:
      programs[keys[-1]] = _unit_alone(network, node, _read(node, shapes))
  times = medians(programs, rounds)
  each = [times[key] for key in keys]
  return {plan.nodes[i].unit: sum(each[at:]) for at, i in enumerate(path)}


def _unit_alone(
  network: network_lib.MultiTask, node: plan_lib.Node, shape: Any
) -> Callable[[], Any]:
  weights, x = network.weights_of(node), drawn(shape)
  program = jax.jit(lambda own, x: execution.run_unit(network.model, node.unit, own, x))
  return lambda: program(weights, x)


def medians(programs: Mapping[Any, Callable[[], Any]], rounds: int) -> dict[Any, float]:
  """Median milliseconds of each program, over rounds in which each runs once.

  Args:
    programs: functions whose results are waited for; each runs once before.
    rounds: how many.
  """
  times = interleaved(programs, rounds)
  return {name: statistics.median(own) for name, own in times.items()}


def interleaved(programs: Mapping[Any, Callable[[], Any]], rounds: int) -> dict[Any, list[float]]:
  """Milliseconds of each program in each round; see `medians`."""
  for run in programs.values():
    jax.block_until_ready(run())
  times: dict[Any, list[float]] = {name: [] for name in programs}
  for _ in range(rounds):
    for name, run in programs.items():
      begin = time.perf_counter()
      jax.block_until_ready(run())
      times[name].append(1e3 * (time.perf_counter() - begin))
  return times
