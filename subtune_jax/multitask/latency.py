"""Times many tasks on one backbone against as many separate networks, on this machine.

  python -m subtune_jax.multitask.latency efficientnet_lite0
  python -m subtune_jax.multitask.latency resnet50 --fork=block4/unit1 --tasks=2,4 --out=latency.md

Each task has one tuned block, where the backbone forks, and a head of its own; weights are random,
which changes no time. Every round runs every contender once; a ratio is the median of the ratios
within the rounds. Exit code 0, or 2 and one line where the input is wrong.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import os
import pathlib
import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import console, files, models
from subtune_jax.data import choices, preprocess
from subtune_jax.models import compile_cache, flops, host_memory
from subtune_jax.multitask import costs, execution, tasks
from subtune_jax.multitask import network as network_lib
from subtune_jax.multitask import plan as plan_lib
from subtune_jax.training import evaluate

CLASSES = 10
_SEEN = preprocess.Preprocessing((127.5,), (127.5,))
_ONE, _SEPARATE = "the backbone", "separate networks"


class Result(NamedTuple):
  """Times of a number of tasks at a batch size.

  Attributes:
    tasks: their number.
    batch_size: images at a time.
    milliseconds: contender -> median.
    to_backbone: contender -> median ratio to the backbone alone.
    to_separate: contender -> median ratio to as many separate networks.
  """

  tasks: int
  batch_size: int
  milliseconds: dict[str, float]
  to_backbone: dict[str, float]
  to_separate: dict[str, float]


def _parser() -> argparse.ArgumentParser:
  parser = console.Parser("python -m subtune_jax.multitask.latency", __doc__)
  parser.add_argument("model", help="a backbone, as `subtune models` lists them")
  parser.add_argument("--image_size", type=int, help="of the images, in pixels (the model's)")
  parser.add_argument(
    "--tasks", type=_numbers, default=(1, 2, 4, 8), help="their numbers (1,2,4,8)"
  )
  parser.add_argument("--batch", type=_numbers, default=(1, 8), help="images at a time (1,8)")
  parser.add_argument("--fork", default="0.8", help="the tuned block, or the share of the forward "
                      "pass before it (0.8)")  # fmt: skip
  parser.add_argument("--rounds", type=int, default=9, help="of which medians are taken (9)")
  parser.add_argument("--each_block", action="store_true", help="also what one more task adds, by "
                      "its first tuned block")  # fmt: skip
  parser.add_argument("--budget_ms", type=float, help="with --each_block: the first block whose "
                      "fork adds no more than this, for the first batch size")  # fmt: skip
  parser.add_argument("--out", type=pathlib.Path, help="a file for the tables, in Markdown")
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Times and prints."""
  given = _parser().parse_args(argv)
  with console.reported():
    _check(given)
    host_memory.keep_freed()
    compile_cache.enable()
    model = _model(given.model, given.image_size)
    fork = fork_block(model, given.fork)
    text = "\n".join([*_head(given, model, fork), *_tables(given, model, fork)])
    print(text)
    if given.out is not None:
      files.write_atomically(given.out, f"{text}\n".encode())


def _check(given: argparse.Namespace) -> None:
  if given.rounds < 1:
    raise ValueError(f"--rounds={given.rounds}; give at least 1")
  if given.budget_ms is not None and not given.each_block:
    raise ValueError("--budget_ms needs --each_block, which times the forks")


def _model(name: str, image_size: int | None) -> Any:
  options: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
  return models.create(name, CLASSES, **options)


def fork_block(model: Any, fork: str) -> str:
  """The block at which tasks fork.

  Args:
    model: a backbone.
    fork: a block, or the least share of the forward pass that comes before it, such as "0.8".

  Raises:
    ValueError: an unknown block, or a share that is not in [0, 1).
  """
  if fork in model.block_names:
    return fork
  try:
    share = float(fork)
  except ValueError:
    choices.check("block", fork, model.block_names)
    raise
  if not 0 <= share < 1:
    raise ValueError(f"--fork={fork}; give a block, or a share from 0 to below 1")
  macs = flops.count_macs(model)
  total, before = sum(macs.values()), 0.0
  for block in model.block_names:
    if before >= share * total:
      return block
    before += macs[block]
  return model.block_names[-1]


def pretended(model: Any, blocks: Sequence[str], count: int) -> dict[str, tasks.Task]:
  """So many tasks with random weights, of which each tuned the given blocks and its head.

  Args:
    model: a backbone.
    blocks: that each task tuned.
    count: number of tasks.
  """
  size = model.image_size
  images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  base = jax.tree_util.tree_map_with_path(_weights(0), dict(shapes))
  units = (*blocks, plan_lib.HEAD)

  def is_own(path: Any, leaf: Any) -> bool:
    del leaf
    inside = jax.tree_util.keystr(path[1:], simple=True, separator="/")
    return any(inside.startswith(f"{unit}/") for unit in units)

  own = jax.tree_util.tree_map_with_path(is_own, base)
  backbone = tasks.Backbone(model, base, _SEEN)
  found = {}
  for i in range(count):
    drawn = jax.tree_util.tree_map_with_path(_weights(i + 1), dict(shapes))
    variables = jax.tree.map(lambda new, old, is_own: new if is_own else old, drawn, base, own)
    names = [str(k) for k in range(CLASSES)]
    found[f"task{i + 1}"] = tasks.of_training(backbone, variables, own, names)
  return found


def _weights(seed: int) -> Callable[[Any, Any], np.ndarray]:
  """Draws leaves of the size that keeps activations about as large as they are."""
  rng = np.random.default_rng(seed)

  def draw(path: Any, leaf: Any) -> np.ndarray:
    if jax.tree_util.keystr(path[-1:], simple=True) in ("scale", "var"):
      return np.ones(leaf.shape, leaf.dtype)
    fan_in = max(1, leaf.size // (leaf.shape or (1,))[-1])
    return (rng.standard_normal(leaf.shape, np.float32) / fan_in**0.5).astype(leaf.dtype)

  return draw


def times(
  network: network_lib.MultiTask, batch_size: int, rounds: int
) -> tuple[Result, costs.Table]:
  """Times tasks as one network, as separate ones, and their backbone alone.

  Args:
    network: the tasks.
    batch_size: images at a time.
    rounds: of which medians are taken.

  Returns:
    The times, and the table of forms that the measured network was made by.
  """
  table = costs.measure(network, batch_size, rounds)
  size = network.image_size
  images = jnp.asarray(
    np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), np.uint8)
  )
  alone = [_alone(task, images) for task in network.tasks.values()]
  contenders = {
    _ONE: alone[0], _SEPARATE: lambda: [run() for run in alone], "separate": _all(network, images),
  }  # fmt: skip
  if set(table.forms().values()) - {"separate"}:
    contenders["measured"] = _all(network.with_forms(table.forms()), images)
  found = costs.interleaved(contenders, rounds)
  return _result(len(alone), batch_size, found), table


def _alone(task: tasks.Task, images: Any) -> Callable[[], Any]:
  own = task.network
  run = evaluate.forward_program(own.model, None, None, own.preprocessing)
  variables = jax.device_put(own.variables)
  return lambda: run(variables, images)


def _all(network: network_lib.MultiTask, images: Any) -> Callable[[], Any]:
  run, weights = network.compiled()
  return lambda: run(weights, images)


def _result(count: int, batch_size: int, found: Mapping[str, Sequence[float]]) -> Result:
  def ratios(to: str) -> dict[str, float]:
    pairs = {name: zip(own, found[to], strict=True) for name, own in found.items()}
    return {name: statistics.median(a / b for a, b in own) for name, own in pairs.items()}

  medians = {name: statistics.median(own) for name, own in found.items()}
  return Result(count, batch_size, medians, ratios(_ONE), ratios(_SEPARATE))


def _head(given: argparse.Namespace, model: Any, fork: str) -> list[str]:
  macs = flops.count_macs(model)
  names = (*model.block_names, plan_lib.HEAD)
  behind = sum(macs[unit] for unit in names[names.index(fork) :]) / sum(macs.values())
  return [
    f"# {given.model}: tasks that fork at {fork}",
    "",
    f"{model.image_size} px, float32, {jax.devices()[0].device_kind}, {os.cpu_count()} threads, "
    f"load {os.getloadavg()[0]:.2f} at the start, jax {jax.__version__}, {given.rounds} "
    "interleaved rounds.",
    f"{1 - behind:.0%} of the multiply-adds come before the fork; each task adds {behind:.0%}.",
    "",
  ]


def _tables(given: argparse.Namespace, model: Any, fork: str) -> list[str]:
  every = pretended(model, (fork,), max(given.tasks))
  lines = [
    "| batch | tasks | backbone, ms | separate networks, ms | one network, ms | to the backbone | "
    "to separate networks | measured forms, ms | to the backbone |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  chosen = []
  for batch_size in given.batch:
    for count in given.tasks:
      network = network_lib.MultiTask(dict(list(every.items())[:count]))
      result, table = times(network, batch_size, given.rounds)
      lines.append(_row(result))
      if table.rows and count == max(given.tasks):
        chosen += ["", f"Forms of {count} tasks:", "", *_form_rows(table)]
  return [*lines, *chosen, *(_forks(given, model) if given.each_block else [])]


def _row(result: Result) -> str:
  ms, ratio = result.milliseconds, result.to_backbone
  cells = [
    result.batch_size, result.tasks, f"{ms[_ONE]:.1f}", f"{ms[_SEPARATE]:.1f}",
    f"{ms['separate']:.1f}", f"{ratio['separate']:.2f}", f"{result.to_separate['separate']:.2f}",
  ]  # fmt: skip
  if "measured" in ms:
    cells += [f"{ms['measured']:.1f}", f"{ratio['measured']:.2f}"]
  else:
    cells += ["the same", ""]
  return f"| {' | '.join(map(str, cells))} |"


def _form_rows(table: costs.Table) -> list[str]:
  lines = [
    f"| batch of {table.batch_size} | runs | sets of weights | {' | '.join(execution.FORMS)} "
    "| chosen |",
    "|---|---|---|---|---|---|---|",
  ]
  for row in table.rows:
    cells = [
      f"{row.milliseconds[form]:.2f}" if form in row.milliseconds else ""
      for form in execution.FORMS
    ]
    lines.append(f"| {row.unit} | {row.runs} | {row.sets} | {' | '.join(cells)} | {row.chosen} |")
  return lines


def _forks(given: argparse.Namespace, model: Any) -> list[str]:
  network = network_lib.MultiTask(pretended(model, (), 1))
  found = {n: costs.added_by_fork(network, n, given.rounds) for n in given.batch}
  lines = ["", "What one more task adds, in ms, by its first tuned block:", ""]
  lines += [f"| first tuned | {' | '.join(f'batch of {n}' for n in found)} |"]
  lines += ["|---" * (len(found) + 1) + "|"]
  for unit in network.units:
    lines.append(f"| {unit} | {' | '.join(f'{own[unit]:.2f}' for own in found.values())} |")
  if given.budget_ms is not None:
    batch_size, own = next(iter(found.items()))
    lines += ["", _within(own, batch_size, given.budget_ms)]
  return lines


def _within(added: Mapping[str, float], batch_size: int, budget: float) -> str:
  fits = [unit for unit, ms in added.items() if ms <= budget]
  where = f"a fork at {fits[0]} or later" if fits else "no fork, not even a head,"
  return f"{where} adds at most {budget:g} ms to a batch of {batch_size}."


def _numbers(text: str) -> tuple[int, ...]:
  numbers = tuple(int(each) for each in text.split(","))
  if min(numbers) < 1:
    raise argparse.ArgumentTypeError(f"{text!r}: numbers of at least 1 are expected")
  return numbers


if __name__ == "__main__":
  main()
