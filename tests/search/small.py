"""A search small enough to train: a ResNet of three units on images of 16 pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import data, methods, models
from subtune_jax.data import splits
from subtune_jax.search import evaluator, units
from subtune_jax.training import loop
from tests import tiny

N, CLASSES, FOLDS = 40, 3, 4


def dataset(n: int = N, split: str = "train") -> data.Dataset:
  examples = tiny.examples(n, seed=len(split), num_classes=CLASSES)
  ids = np.array([f"{split}{i:03}" for i in range(n)])
  names = tuple("abc")
  return data.Dataset(examples.images, examples.labels, ids, ids, names, "small", split)


def model(**fields):
  options = {"stage_sizes": (1, 1, 1), "width": 4, "image_size": 16} | fields
  return models.create("resnet14", num_classes=CLASSES, **options)


def variables(net):
  return jax.tree.map(jnp.asarray, _drawn(net))


@functools.cache
def _drawn(net):
  made = net.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  stats = jax.tree.map(lambda x: x + 0.1, made["batch_stats"])
  return jax.device_get({"params": made["params"], "batch_stats": stats})


def problem(net=None, seeds=(0,), spec="blocks") -> evaluator.Problem:
  net, train = net or model(), dataset()
  folds = tuple(splits.fold_indices(train.labels, train.groups, FOLDS, 0))
  return evaluator.Problem(units.network(net, spec), variables(net), "sha", train, folds, seeds)


def recipe(epochs: int = 2, **fields) -> evaluator.Recipe:
  return evaluator.Recipe(
    lambda blocks: methods.sub_tuning(blocks, 1e-2, epochs=epochs),
    methods.linear_probing(l2=(1e-2,)),
    **fields,
  )


def engine(net, **fields) -> loop.Engine:
  return tiny.engine(net, **{"in_pieces": True, **fields})
