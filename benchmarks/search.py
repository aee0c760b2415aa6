"""A finetuning profile against torch: single trainings of each block, interleaved, and their sum.

  python benchmarks/search.py
  python benchmarks/search.py --network resnet14 --size 20
  python benchmarks/search.py --chosen block9 block14     (the third step of a greedy search)

Rows: (a) as the papers' code searches, (b) a good torch loop, (c) ours with the prefix cache off,
and ours. Same network, images, folds, epochs, batch, optimiser and threads. One fold is trained per
block and contender, one contender after the other; a profile of 5 folds is 5 times the sum, plus
what ours compiles, which is measured over the whole run.
"""

import argparse
import datetime
import os
import platform
import shutil
import tempfile
import time

import idle
import jax
import numpy as np

from subtune_jax import data, methods, models
from subtune_jax.data import preprocess, splits
from subtune_jax.models import host_memory
from subtune_jax.search import evaluator, store
from subtune_jax.search import units as units_lib
from subtune_jax.training import loop

RATE, FOLDS = 1e-3, 5
PREPROCESSING = preprocess.Preprocessing(mean=(127.0,), std=(128.0,))
CONTENDERS = ("papers", "good", "cache off", "ours")


def make_evaluator(network: str, train, epochs: int, batch: int, size: int, prefix_bytes: int):
  """(evaluator on a store of its own, folder of the store)."""
  model = models.create(network, num_classes=len(train.class_names), image_size=size)
  variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, size, size, 3), np.float32))
  folds = tuple(splits.fold_indices(train.labels, train.groups, FOLDS, 0))
  problem = evaluator.Problem(
    units_lib.network(model, "blocks"), variables, "random", train, folds, (0,)
  )
  recipe = evaluator.Recipe(
    lambda blocks: methods.sub_tuning(blocks, RATE, epochs=epochs), methods.linear_probing()[:1]
  )
  engine = loop.Engine(model, PREPROCESSING, batch_size=batch, in_pieces=True)
  folder = tempfile.mkdtemp()
  made = evaluator.Evaluator(
    problem, recipe, engine, store.Store(folder), prefix_bytes=prefix_bytes
  )
  return made, folder


def measure(arguments, train) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
  """Seconds of one training by contender and block; of compiling and filling the cache."""
  import torch_search

  options = (arguments.network, train, arguments.epochs, arguments.batch, arguments.size)
  made = {
    "cache off": make_evaluator(*options, 0), "ours": make_evaluator(*options, 2 << 30)
  }  # fmt: skip
  torch = torch_search.Trainer(
    arguments.network, train.images, train.labels, len(train.class_names),
    epochs=arguments.epochs, batch_size=arguments.batch, learning_rate=RATE,
  )  # fmt: skip
  problem = made["ours"][0].problem
  names = problem.network.names
  candidates = [name for name in names if name not in arguments.chosen][:: arguments.every]
  seconds, filling = {who: {} for who in CONTENDERS}, 0.0
  for name in candidates:
    units = tuple(sorted({name, *arguments.chosen}, key=names.index))
    begin = time.perf_counter()
    kept = made["ours"][0].prefix.at(units[0])
    jax.block_until_ready(kept)
    filling += time.perf_counter() - begin
    for trainer, _ in made.values():  # compiles, on another fold
      trainer.cells([units], 1)
    for who in CONTENDERS:
      begin = time.perf_counter()
      if who in made:
        made[who][0].cells([units], 0)
      else:
        getattr(torch, who)(units, *problem.folds[0])
      seconds[who][name] = time.perf_counter() - begin
    print(name, " ".join(f"{who} {seconds[who][name]:.2f}" for who in CONTENDERS), flush=True)
  compiling = {
    who: sum(row["compile_seconds"] for row in trainer.used.values())
    for who, (trainer, _) in made.items()
  }
  compiling["ours"] += filling
  for trainer, folder in made.values():
    trainer.close()
    shutil.rmtree(folder)
  return seconds, compiling


def report(seconds, compiling, every: int) -> None:
  """Prints the sums over blocks and the ratios."""
  blocks = list(seconds["ours"])
  factor = FOLDS * every
  print(f"\n{'all blocks, seconds':<34}{'training':>9}{'compiling':>10}  ratio to ours")
  ours = {name: seconds["ours"][name] for name in blocks}
  titles = {
    "papers": "(a) the papers' way", "good": "(b) a good torch loop",
    "cache off": "(c) ours, prefix cache off", "ours": "ours",
  }  # fmt: skip
  total = {who: factor * sum(rows.values()) for who, rows in seconds.items()}
  with_compiling = total["ours"] + compiling["ours"]
  for who in CONTENDERS:
    ratios = [seconds[who][name] / ours[name] for name in blocks]
    own = compiling.get(who, 0.0)
    print(
      f"{titles[who]:<34}{total[who]:>9.0f}{own:>10.0f}  {total[who] / total['ours']:.2f} "
      f"(blocks {min(ratios):.2f} to {max(ratios):.2f}); compiling counted "
      f"{(total[who] + own) / with_compiling:.2f}"
    )


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--network", default="efficientnet_lite0")
  parser.add_argument("--size", type=int, default=64, help="pixels")
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--epochs", type=int, default=3)
  parser.add_argument("--every", type=int, default=1, help="measure every so many blocks")
  parser.add_argument("--chosen", nargs="*", default=[], help="blocks that are trained beside each")
  idle.add_option(parser)
  arguments = parser.parse_args()
  load = idle.load(arguments.force)
  host_memory.keep_freed()
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  train = data.load("emoji_domains/noto", "train", arguments.size)
  facts = {
    "date": datetime.date.today().isoformat(), "threads": torch.get_num_threads(),
    "load at start": round(load, 2), "forced": arguments.force, "images": len(train),
    **vars(arguments), "python": platform.python_version(), "jax": jax.__version__,
    "torch": torch.__version__,
  }  # fmt: skip
  print(", ".join(f"{k} {v}" for k, v in facts.items()))
  seconds, compiling = measure(arguments, train)
  report(seconds, compiling, arguments.every)


if __name__ == "__main__":
  main()
