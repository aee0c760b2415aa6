"""Parameters, latency and accuracy after SubTuning of pruned networks against the whole one.

  python benchmarks/pruning.py --epochs=8

EfficientNet-Lite0 on Glyph Domains' handwriting. For each share the blocks lose that part of their
channels, then the same blocks and the head are trained. Latency is the ratio of medians of forward
passes that alternate with those of the whole network, in one process.
"""

import argparse
from collections.abc import Sequence
import statistics
import time

import jax
import numpy as np

from subtune_jax import data, methods, models, pruning, weights
from subtune_jax.models import heads
from subtune_jax.training import evaluate, loop


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--shares", type=float, nargs="+", default=(0.0, 0.25, 0.5, 0.75))
  parser.add_argument("--blocks", nargs="+", default=("block13", "block14", "block15", "top"))
  parser.add_argument("--epochs", type=int, default=8)
  parser.add_argument("--image_size", type=int, default=32)
  parser.add_argument("--rounds", type=int, default=20)
  parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
  return parser


def ratio(first, second, rounds: int) -> float:
  """Median seconds of the second call over those of the first; they alternate."""
  times: tuple[list[float], list[float]] = ([], [])
  for _ in range(rounds):
    for own, call in zip(times, (first, second), strict=True):
      begin = time.perf_counter()
      jax.block_until_ready(call())
      own.append(time.perf_counter() - begin)
  return statistics.median(times[1]) / statistics.median(times[0])


def _count(variables) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a row for each share."""
  given = _parser().parse_args(argv)
  train, test = (
    data.load("glyph_domains/handwriting", s, given.image_size) for s in ("train", "test")
  )
  model = models.create("efficientnet_lite0", len(train.class_names), image_size=given.image_size)
  pretrained = weights.load_pretrained("efficientnet_lite0/imagenet", model)
  whole = pretrained.variables
  x = np.zeros((32, given.image_size, given.image_size, 3), np.float32)
  run = jax.jit(model.apply)
  print("share  parameters  latency  accuracy by seed", flush=True)
  for share in given.shares:
    kept = pruning.choose(model, whole, given.blocks, share=share)
    small, variables = pruning.shrink(model, whole, kept)
    run_small = jax.jit(small.apply)
    jax.block_until_ready((run(whole, x), run_small(variables, x)))
    latency = ratio(lambda: run(whole, x), lambda v=variables, r=run_small: r(v, x), given.rounds)
    engine = loop.Engine(small, pretrained.preprocessing, batch_size=32)
    method = methods.sub_tuning(tuple(given.blocks), 3e-3, epochs=given.epochs)
    found = []
    for seed in given.seeds:
      start = heads.init_head(small, variables, seed, pretrained.sha256)
      result = loop.fit(engine, start, method, train, None, seed=seed)
      found.append(evaluate.accuracy(engine.predict(result.variables, test.images), test.labels))
    accuracies = " ".join(f"{own:.3f}" for own in found)
    print(f"{share:5.2f}  {_count(variables):10,}  {latency:7.2f}  {accuracies}", flush=True)


if __name__ == "__main__":
  main()
