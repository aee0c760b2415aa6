"""Five folds of a search as one program (`jax.vmap`), against one training after the other.

  python benchmarks/batched_folds.py

A step is SGD with momentum on all parameters from one unit on, float32, with the prefix's
activations in memory, as the search takes it. Batched, each fold has parameters of its own, so a
convolution of K folds becomes a grouped one. Median of the paired ratios, rounds interleaved.
"""

import argparse
from collections.abc import Callable
import datetime
import os
import platform
import statistics
import time
from typing import Any

import idle
import jax
import jax.numpy as jnp
import numpy as np
import optax

from subtune_jax import models

CLASSES = 45
# Network, pixels, units that training starts from; None is the first.
CASES = (
  ("resnet14", 32, (None, "block3/unit1")),
  ("efficientnet_lite0", 64, (None, "block14")),
  ("vit_ti16", 64, (None, "encoderblock_10")),
)
Timed = Callable[[], None]


def steps(name: str, size: int, start: str | None, batch: int, folds: int) -> tuple[Timed, Timed]:
  """(one after the other, batched): each takes one step of every fold."""
  model = models.create(name, num_classes=CLASSES, image_size=size)
  images = jnp.asarray(np.random.default_rng(0).normal(size=(batch, size, size, 3)), jnp.float32)
  variables = model.init(jax.random.key(0), images)
  x = images if start is None else model.apply(variables, images, stop=start)
  labels = jnp.arange(batch) % CLASSES
  part = model.init(jax.random.key(0), x, start=start)  # what training from `start` moves
  params, rest = part["params"], {k: v for k, v in variables.items() if k != "params"}
  optimizer = optax.sgd(1e-3, momentum=0.9)

  def step(params: Any, state: Any, x: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
    def loss(params):
      logits = model.apply({"params": params, **rest}, x, start=start)
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  def stacked(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * folds), tree)

  def timed(run: Callable, state: tuple, x: jax.Array, labels: jax.Array, times: int) -> Timed:
    compiled = jax.jit(run, donate_argnums=(0, 1)).lower(*state, x, labels).compile()

    def take() -> None:
      nonlocal state
      for _ in range(times):
        state = compiled(*state, x, labels)
      jax.block_until_ready(state)

    return take

  one = (params, optimizer.init(params))
  many = stacked(one)
  own = jax.tree.map(jnp.copy, one)
  return (
    timed(step, own, x, labels, folds),
    timed(jax.vmap(step), many, stacked(x), stacked(labels), 1),
  )


def measure(pair: tuple[Timed, Timed], rounds: int) -> tuple[float, float, float]:
  """(seconds one after the other, seconds batched, median of their paired ratios)."""
  for run in pair:
    run()  # once to warm up
  found = []
  for _ in range(rounds):
    row = []
    for run in pair:
      begin = time.perf_counter()
      run()
      row.append(time.perf_counter() - begin)
    found.append(row)
  apart, batched = (statistics.median(column) for column in zip(*found, strict=True))
  return apart, batched, statistics.median(a / b for a, b in found)


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--folds", type=int, default=5)
  parser.add_argument("--rounds", type=int, default=9)
  idle.add_option(parser)
  arguments = parser.parse_args()
  load = idle.load(arguments.force)
  facts = {
    "date": datetime.date.today().isoformat(), "device": jax.devices()[0].device_kind,
    "threads": len(os.sched_getaffinity(0)), "load at start": round(load, 2),
    "forced": arguments.force, "folds": arguments.folds, "batch": arguments.batch,
    "rounds": arguments.rounds, "jax": jax.__version__, "python": platform.python_version(),
  }  # fmt: skip
  print(", ".join(f"{k} {v}" for k, v in facts.items()), end="\n\n")
  print("| network | pixels | trained from | one after the other, ms | batched, ms | batched is |")
  print("|---|---|---|---|---|---|")
  for name, size, starts in CASES:
    for start in starts:
      pair = steps(name, size, start, arguments.batch, arguments.folds)
      apart, batched, ratio = measure(pair, arguments.rounds)
      print(
        f"| {name} | {size} | {start or 'the first'} | {1e3 * apart:.1f} | {1e3 * batched:.1f} | "
        f"{ratio:.2f} times as fast |",
        flush=True,
      )


if __name__ == "__main__":
  main()
