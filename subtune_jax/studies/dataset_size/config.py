"""The fields of a study of the number of training images, on top of those of a search."""

from typing import Any

from subtune_jax.studies.search import config as search_config


def default() -> Any:
  """Profiles of six groups of blocks and the four methods at four sizes of Emoji Domains."""
  config = search_config.default()
  config.save_model = False  # a whole network of every part; save_model writes those wanted
  config.experiment = "dataset_size"
  config.name = "dataset_size"
  config.title = "How many images"
  config.sizes = (100, 200, 400, 652)  # training images, rising; nested subsets
  return config
