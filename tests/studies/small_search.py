"""A search experiment of seconds: three groups of a small ResNet on images made here.

Run as a command it searches in the folder given, as a process that a test may kill.
"""

import io
import pathlib
import sys

from subtune_jax import data
from subtune_jax.data import registry
from subtune_jax.studies.search import config as search_config
from subtune_jax.studies.search import run as search
from tests.search import small

NAME = "small"
SIZES = {"train": 36, "validation": 12, "test": 15}


def load(split, image_size, *, interpolation="bicubic"):
  del image_size, interpolation
  if split == "trainval":
    parts = [small.dataset(SIZES[s], s) for s in ("train", "validation")]
    return data.dataset.concatenate(parts, "trainval")
  return small.dataset(SIZES[split], split)


def register():
  if NAME not in registry._REGISTERED:
    data.register(NAME, load)


def config(**fields):
  """The config; `fields` are those of its section `search`."""
  made = search_config.default()
  made.name = "small"
  made.seeds, made.batch_size, made.tensorboard = (0,), 8, False
  made.data.train, made.data.ood, made.data.image_size = NAME, (), 16
  made.backbone.name, made.backbone.weights = "resnet14", "random"
  made.backbone.options = "stage_sizes=(1,1,2),width=8"
  made.backbone.preprocessing = "half"
  made.methods = ("lp", "subtuning")
  made.lp.l2, made.subtuning.epochs = (0.1,), 1
  made.search.units = "early: stem block1/unit1; mid: block2/unit1; late: block3/unit1 block3/unit2"
  made.search.folds, made.search.epochs, made.search.learning_rate = 3, 1, 1e-2
  made.search.kinds = ("profile", "greedy")
  made.search.rule, made.search.size = "size", 2
  for name, value in fields.items():
    made.search[name] = value
  return made


def run(folder, made, stream=None):
  register()
  return search.run(made, pathlib.Path(folder), stream=stream or io.StringIO())


if __name__ == "__main__":
  run(sys.argv[1], config(final=False))
