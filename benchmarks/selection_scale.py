"""Processor time and memory of predicted scores against the number of images.

  python benchmarks/selection_scale.py --counts 250 500 1000 2000 4000

EfficientNet-Lite0 with its ImageNet weights, one probe, 5 folds; glyphs of handwriting, repeated as
often as the number asks: what is measured does not depend on what the images show. Each number runs
in a process of its own, whose peak of resident memory is read at its end.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import jax
import numpy as np

from subtune_jax import data
from subtune_jax.models import compile_cache
from subtune_jax.runner import network as network_lib
from subtune_jax.search import kernels, predicted
from subtune_jax.search import units as units_lib
from subtune_jax.studies import arguments
from subtune_jax.studies.search import config as search_config

DATASET, FOLDS = "glyph_domains/handwriting", 5


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--counts", type=int, nargs="+", default=[250, 500, 1000, 2000, 4000])
  parser.add_argument("--image_size", type=int, default=32)
  parser.add_argument("--landmarks", type=int, help="images that span the kernels; without: all")
  parser.add_argument("--one", action="store_true", help="measure the one count, print JSON")
  args = parser.parse_args()
  if args.one:
    print(json.dumps(measure(args.counts[0], args.image_size, args.landmarks)))
    return
  print("| images | gradients, s | Gram matrices, s | a set, s | peak memory, GB |")
  print("|---|---|---|---|---|")
  for count in args.counts:
    command = [sys.executable, __file__, "--one", "--counts", str(count)]
    command += ["--image_size", str(args.image_size)]
    command += ["--landmarks", str(args.landmarks)] if args.landmarks else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row = json.loads(done.stdout.splitlines()[-1])
    print(
      f"| {count:,} | {row['gradients']:.0f} | {row['gram']:.1f} | {row['set']:.2f} "
      f"| {row['peak'] / 1e9:.1f} |",
      flush=True,
    )


def measure(count: int, image_size: int, landmarks: int | None) -> dict[str, float]:
  """Seconds of processor time without compiling, and peak bytes."""
  compile_cache.enable()
  config = search_config.default()
  arguments.use_dataset(config, DATASET)
  config.data.image_size = image_size
  own = data.load(DATASET, "train", image_size)
  engine, pretrained = network_lib.load_network(config, len(own.class_names))
  network = units_lib.network(engine.model, "blocks")
  images = np.resize(np.asarray(own.images), (count, *own.images.shape[1:]))
  labels = np.resize(np.asarray(own.labels), count)
  variables = pretrained.variables
  blocks = {name: unit.blocks for name, unit in network.units.items()}
  unit_labels = kernels.unit_labels(variables["params"], blocks)

  def features(params, x):
    x = data.preprocess.normalize(x, engine.preprocessing)
    return engine.model.apply({**variables, "params": params}, x, stop="head")

  def run(images):
    return kernels.gradient_kernels(
      features, variables["params"], images, unit_labels, probes=1, landmarks=landmarks
    )

  run(images[:65])  # compiles
  spent = [0.0]
  products, kernels.products = kernels.products, lambda *args: _timed(spent, products, *args)
  begin = time.process_time()
  found = run(images)
  whole = time.process_time() - begin
  rows = np.arange(count)
  folds = [(rows[rows % FOLDS != k], rows[rows % FOLDS == k]) for k in range(FOLDS)]
  predictor = predicted.Predictor(found, labels, folds)
  predictor.evaluate([()])
  sets = [(network.names[0],), network.names[:2], (network.names[-1],)]
  begin = time.process_time()
  predictor.evaluate(sets)
  fits = time.process_time() - begin
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return {"gradients": whole - spent[0], "gram": spent[0], "set": fits / len(sets), "peak": peak}


def _timed(spent, function, *args):
  begin = time.process_time()
  out = jax.block_until_ready(function(*args))
  spent[0] += time.process_time() - begin
  return out


if __name__ == "__main__":
  main()
