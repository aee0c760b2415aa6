"""The fields of a study of corruptions, on top of those of a search."""

from typing import Any

from subtune_jax.studies.search import config as search_config

CLEAN, FLIP = "clean", "flip_labels"  # shifts that leave the images as they are


def default() -> Any:
  """Fashion-MNIST corrupted at severity 5, for a network that was trained on clean images."""
  config = search_config.default()
  config.save_model = False  # a whole network of every part; save_model writes those wanted
  config.experiment = "corruption"
  config.name = "corruption"
  config.title = "Which layers under which shift"
  # Data set of a corruption; {} stands for NAME/SEVERITY. Published files: "cifar10_c_1k/{}".
  config.corrupted = "fashion_mnist+{}"
  # NAME/SEVERITY, or "clean" and "flip_labels", which leave the images of data.train as they are.
  config.shifts = ("gaussian_noise/5", "defocus_blur/5", "contrast/5", FLIP)
  config.data.train, config.data.ood = "fashion_mnist", ()
  config.search.kinds = ("profile", "greedy")
  config.search.split = "trainval"
  return config
