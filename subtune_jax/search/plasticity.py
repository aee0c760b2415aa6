"""How strongly each block answers to a change of its input, without labels."""

import itertools
from typing import Any

import numpy as np

from subtune_jax.data import preprocess
from subtune_jax.search import units as units_lib
from subtune_jax.training import evaluate, loop

PyTree = Any


def plasticity(
  engine: loop.Engine, variables: PyTree, images: Any, network: units_lib.Network, seed: int = 0
) -> dict[str, float]:
  """Unit -> mean over pairs of images of |f(x) - f(y)| / |x - y|, over its blocks.

  x and y are what a block f reads for two images (arXiv 2602.06883, for the components of a
  transformer). Each image is paired with the next in a seeded order; pairs that a block reads as
  one are left out.

  Args:
    engine: model, preprocessing, batch size.
    variables: of the model; BatchNorm runs on its statistics.
    images: [n, h, w, 3] uint8, two or more; two activations of all are in memory.
    network: the units.
    seed: of the pairs.
  """
  model, names = engine.model, (*engine.model.block_names, "head")
  order = np.random.default_rng(seed).permutation(len(images))
  options = {**engine.options(), "in_pieces": True}
  x, found = np.asarray(images), {}
  before = _distances(np.asarray(preprocess.normalize(x, engine.preprocessing)), order)
  for name, stop in itertools.pairwise(names):
    x = np.asarray(evaluate.run_units(model, variables, x, start=name, stop=stop, **options))
    after = _distances(x, order)
    found[name] = float(np.mean(after[before > 0] / before[before > 0]))
    before = after
  return {
    unit: float(np.mean([found[block] for block in network.units[unit].blocks]))
    for unit in network.names
  }


def _distances(x: np.ndarray, order: np.ndarray) -> np.ndarray:
  """[n] Euclidean distance of each row to the next one of the order."""
  rows = x.reshape(len(x), -1).astype(np.float32)[order]
  return np.linalg.norm(rows - np.roll(rows, -1, axis=0), axis=1)
