"""Head2Toe with a million features of each image: the most memory that it takes, and seconds.

  python benchmarks/head2toe_memory.py

The whole method in a process of its own: a ResNet-50 of random weights reads Glyph Domains'
handwriting (training and validation images together are 1,152) at 64 px, layers of its units pooled
to about `--target_size` numbers each; then the lasso, the heads on up to 30 % of the features and
the choice among them. Random weights, so accuracy says nothing.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

DATA, NETWORK = "glyph_domains/handwriting", "resnet50"


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--target_size", type=int, default=10_000)
  parser.add_argument("--image_size", type=int, default=64)
  parser.add_argument("--strengths", type=float, nargs="+", default=(0.2,))
  parser.add_argument("--fractions", type=float, nargs="+", default=(0.01, 0.03, 0.1, 0.3))
  parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
  return parser


def _peak() -> float:
  """The most memory of this process so far, GiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def _fit(given: argparse.Namespace) -> dict[str, float]:
  """Trains, and says what it took."""
  from subtune_jax import data, methods, models, weights
  from subtune_jax.models import head2toe
  from subtune_jax.training import loop

  train, validation = (data.load(DATA, s, given.image_size) for s in ("train", "validation"))
  model = models.create(NETWORK, len(train.class_names), image_size=given.image_size)
  start = weights.random_weights(model, preprocessing="half")
  fields = given.target_size, "layers", max(given.fractions)
  own, variables = head2toe.wrap(model, start.variables, *fields)
  engine = loop.Engine(own, start.preprocessing, batch_size=32)
  method = methods.head2toe(strengths=given.strengths, fractions=given.fractions)
  before, begin = _peak(), time.perf_counter()
  result = loop.fit(engine, variables, method, train, validation)
  return {
    "images": len(train) + len(validation), "features": own.num_features,
    "kept": result.stages[0]["selection"]["kept"], "heads": len(given.fractions),
    "GiB before": before, "GiB at most": _peak(), "seconds": time.perf_counter() - begin,
  }  # fmt: skip


def main() -> None:
  """Prints the row of a fresh process."""
  given = _parser().parse_args()
  if given.inside:
    print(json.dumps(_fit(given)))
    return
  command = [sys.executable, __file__, "--inside", *sys.argv[1:]]
  done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
  for name, value in json.loads(done.stdout.splitlines()[-1]).items():
    print(f"{name:12} {value:,.2f}" if isinstance(value, float) else f"{name:12} {value:,}")


if __name__ == "__main__":
  main()
