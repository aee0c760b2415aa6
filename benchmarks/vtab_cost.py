"""What VTAB-1k costs on 1, 8 and 64 accelerators, by counting.

  python benchmarks/vtab_cost.py                    # the table of docs/scale.md
  python benchmarks/vtab_cost.py --share 0.4        # at another share of the peak

Trainings, images and multiply-adds are the library's own counts for `configs/vtab.py` with
SubTuning's blocks given. Seconds are not measured: they are those counts over a peak and a share of
it that the options state. Of a task first the grids run, then the chosen settings on all 1,000
images, then the test sets; tasks run side by side as `studies.vtab.run` has them.
"""

import argparse
import collections
import heapq

from subtune_jax import models
from subtune_jax.models import flops
from subtune_jax.runner import choice, recipes
from subtune_jax.studies.vtab import config as vtab_config

NETWORKS = ("efficientnet_lite0", "resnet50", "vit_b16")
WORKERS = (1, 8, 64)
# Test images of the 19 tasks, in the order of the paper's appendix (arXiv 1910.04867, table 2).
TEST = (
  6_084, 10_000, 1_880, 6_149, 3_669, 21_750, 26_032, 32_768, 5_400, 42_670, 6_300, 15_000, 15_000,
  73_728, 73_728, 22_735, 711, 12_150, 12_150,
)  # fmt: skip
TRAIN, ALL = 800, 1_000


def calls(config, image_flops: float, num_test: int, start: float, flops_a_second: float):
  """Seconds of the calls of a task: those of its grids, of the choices, of the test sets."""
  grids, chosen, tests = [], [], []
  for name in config.methods:
    method = recipes.make_method(config, name, recipes.learning_rates(config, name)[0], ())
    deterministic = choice.is_deterministic(method)
    passes = 1 if deterministic else 3 * config[name].epochs  # a step costs three forward passes
    one = passes * image_flops / flops_a_second
    grids += [start + TRAIN * one] * len(recipes.learning_rates(config, name))
    seeds = 1 if deterministic else len(config.seeds)
    chosen += [start + ALL * one] * seeds
    tests += [num_test * image_flops / flops_a_second] * seeds
  return grids, chosen, tests


def makespan(tasks, workers: int, driver: float) -> float:
  """Seconds until all calls of all tasks have ended, each on the next free worker.

  Tasks are begun in their order, as many at a time as `studies.vtab.run` does; of a task a part
  begins when the one before has ended, and the driver's seconds come last, one task at a time.
  """
  grids, waiting, free, driver_free = len(tasks[0][0]), collections.deque(), workers, 0.0
  left = collections.deque([[part for part in parts if part] for parts in tasks])
  ends: list[tuple[float, int]] = []  # (time, task)
  open_: dict[int, tuple[list[list[float]], int]] = {}  # task -> (parts to come, calls under way)
  now, number, most = 0.0, 0, 2 + workers // grids
  while left or open_ or ends:
    while left and len(open_) < most:
      first, *rest = left.popleft()
      open_[number] = rest, len(first)
      waiting.extend((seconds, number) for seconds in first)
      number += 1
    while free and waiting:
      seconds, task = waiting.popleft()
      heapq.heappush(ends, (now + seconds, task))
      free -= 1
    now, task = heapq.heappop(ends)
    free += 1
    rest, under_way = open_.pop(task)
    if under_way > 1:
      open_[task] = rest, under_way - 1
    elif rest:
      open_[task] = rest[1:], len(rest[0])
      waiting.extend((seconds, task) for seconds in rest[0])
    else:
      driver_free = max(driver_free, now) + driver
  return max(now, driver_free)


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--peak", type=float, default=989e12, help="FLOP/s; an H100's, dense bf16")
  parser.add_argument("--share", type=float, default=0.25, help="of the peak; assumed")
  parser.add_argument("--start", type=float, default=5.0, help="seconds of a training beside steps")
  parser.add_argument("--driver", type=float, default=20.0, help="seconds of a task on the driver")
  options = parser.parse_args()
  config = vtab_config.default()
  config.subtuning.blocks = ("all",)  # the dearest choice, at the cost of full fine-tuning
  print("| network | GFLOP an image | trainings | of them a task's grids |", end="")
  print("".join(f" {n} | busy |" for n in WORKERS))
  print("|---" * (4 + 2 * len(WORKERS)) + "|")
  for network in NETWORKS:
    model = models.create(network, num_classes=100, image_size=224)
    forward = 2.0 * sum(flops.count_macs(model).values())
    tasks = [
      calls(config, forward, test, options.start, options.share * options.peak) for test in TEST
    ]
    work = sum(sum(map(sum, parts)) for parts in tasks)
    trainings = sum(len(parts[0]) + len(parts[1]) for parts in tasks)
    cells = [f"{forward / 1e9:.1f}", f"{trainings}", f"{len(tasks[0][0])}"]
    for workers in WORKERS:
      seconds = makespan(tasks, workers, options.driver)
      cells += [f"{seconds / 3600:.2f} h", f"{100 * work / (workers * seconds):.0f} %"]
    print(f"| `{network}` | {' | '.join(cells)} |")


if __name__ == "__main__":
  main()
