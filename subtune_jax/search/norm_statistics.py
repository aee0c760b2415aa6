"""BatchNorm statistics measured on the images of a search, in all blocks or in one unit's.

Training a block normalises by the statistics of its batches, which alone can be most of what it
gains where the images are unlike those of the weights.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from subtune_jax.data import preprocess
from subtune_jax.search import units as units_lib
from subtune_jax.training import blockwise_step, evaluate, loop

PyTree = Any


def reestimate(
  engine: loop.Engine,
  variables: PyTree,
  images: Any,
  batch_size: int,
  blocks: Sequence[str] | None = None,
  start: str | None = None,
) -> PyTree:
  """The network with its BatchNorm statistics measured on images, normalising by batch.

  Means and variances are averaged over batches in a seeded order; images that fill no batch are
  left out. A network without BatchNorm comes back as it is.

  Args:
    engine: model and preprocessing.
    variables: of the model.
    images: [n, ...] uint8, or what `start` reads.
    batch_size: images at a time.
    blocks: whose statistics are measured; the others run on those they have. None: all.
    start: first block that runs; None: the images' own.
  """
  model = engine.model
  blocks = tuple(model.block_names) if blocks is None else tuple(blocks)
  if not _have_statistics(variables, blocks):
    return variables
  names = (*model.block_names, "head")
  stop = names[max(names.index(block) for block in blocks) + 1]
  model = model.clone(norm_momentum=0.0)  # the statistics are those of the last batch

  @jax.jit
  def one(x):
    if start in (None, names[0]):
      x = preprocess.normalize(x, engine.preprocessing)
    _, changed = model.apply(
      variables, x, start=start, stop=stop, train_blocks=frozenset(blocks), mutable=["batch_stats"]
    )
    return changed["batch_stats"]

  order = np.random.default_rng(0).permutation(len(images))
  size = min(batch_size, len(images))
  batches = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
  found = [one(np.asarray(images[np.sort(rows)])) for rows in batches]
  mean = jax.tree.map(lambda *values: sum(values) / len(values), *found)
  return {**variables, "batch_stats": mean}


def candidate_features(
  engine: loop.Engine,
  variables: PyTree,
  images: Any,
  network: units_lib.Network,
  batch_size: int,
) -> dict[str, np.ndarray]:
  """Unit -> [n, D] float32 features where that unit alone has the statistics of the images.

  The blocks before a unit run once, for all units behind it: memory is two activations of all
  images. Units without BatchNorm are left out.
  """
  model, names = engine.model, (*engine.model.block_names, "head")
  options = {**engine.options(), "batch_size": batch_size, "in_pieces": True}
  firsts = {name: min(map(names.index, network.units[name].blocks)) for name in network.names}
  x, at, found = images, 0, {}
  for name in sorted(network.names, key=firsts.__getitem__):
    blocks, first = network.units[name].blocks, firsts[name]
    if not _have_statistics(variables, blocks):
      continue
    if first > at:
      x = evaluate.run_units(model, variables, x, start=names[at], stop=names[first], **options)
      x, at = np.asarray(x), first
    own = reestimate(engine, variables, x, batch_size, blocks, names[first])
    out = evaluate.run_units(model, own, x, start=names[first], stop="head", **options)
    found[name] = np.asarray(out, np.float32)
  return {name: found[name] for name in network.names if name in found}


def _have_statistics(variables: PyTree, blocks: Sequence[str]) -> bool:
  return any(blockwise_step.part(variables.get("batch_stats", {}), block) for block in blocks)
