"""SubTuning with and without the frozen network's features, on the same images and seeds.

  python benchmarks/beside_frozen.py glyph_domains/handwriting

EfficientNet-Lite0. The learning rate of each is the one that validation chose on the first seed;
the difference is paired over test groups (fonts, concepts) and seeds.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from subtune_jax import data, methods, models, weights
from subtune_jax.data import splits
from subtune_jax.models import beside, heads
from subtune_jax.statistics import intervals
from subtune_jax.training import evaluate, loop


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("name", help="a data set with groups")
  parser.add_argument("--blocks", nargs="+", default=("block13", "block14", "block15", "top"))
  parser.add_argument("--num_train", type=int, default=0, help="of a nested subset; 0 is all")
  parser.add_argument("--rates", type=float, nargs="+", default=(1e-3, 3e-3, 1e-2))
  parser.add_argument("--epochs", type=int, default=8)
  parser.add_argument("--image_size", type=int, default=32)
  parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2, 3, 4))
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a row for each and the difference."""
  given = _parser().parse_args(argv)
  train, validation, test = (
    data.load(given.name, split, given.image_size) for split in ("train", "validation", "test")
  )
  if given.num_train:
    (kept,) = splits.nested_subsets(train.labels, [given.num_train], 0, train.groups)
    train = train.subset(kept)
  model = models.create("efficientnet_lite0", len(train.class_names), image_size=given.image_size)
  pretrained = weights.load_pretrained("efficientnet_lite0/imagenet", model)
  networks = {
    "plain": (model, pretrained.variables),
    "beside frozen": beside.wrap(model, pretrained.variables, given.blocks),
  }
  right = {}
  for name, (own, variables) in networks.items():
    engine = loop.Engine(own, pretrained.preprocessing, batch_size=32)

    def fit(rate, seed, engine=engine, variables=variables):
      start = heads.init_head(engine.model, variables, seed, pretrained.sha256)
      method = methods.sub_tuning(tuple(given.blocks), rate, epochs=given.epochs)
      return loop.fit(engine, start, method, train, validation, seed=seed, validate="end")

    tried = {rate: fit(rate, given.seeds[0]) for rate in given.rates}
    rate = max(tried, key=lambda r: tried[r].history[-1]["validation_accuracy"])
    found = [tried[rate], *(fit(rate, seed) for seed in given.seeds[1:])]
    right[name] = np.array([
      evaluate.predictions(engine.predict(result.variables, test.images)) == test.labels
      for result in found
    ])  # fmt: skip
    by_seed = " ".join(f"{100 * own.mean():.1f}" for own in right[name])
    print(f"{name:14} rate {rate:g}: {100 * right[name].mean():.1f} %  ({by_seed})", flush=True)
  made = intervals.paired_bootstrap(right, test.groups, reference="plain")
  mean, low, high = (100 * own for own in made.differences["beside frozen"])
  print(f"difference {mean:+.1f} [{low:+.1f}, {high:+.1f}]")


if __name__ == "__main__":
  main()
