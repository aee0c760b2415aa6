"""A small trained network for the tests of its use."""

import jax
import jax.numpy as jnp

from subtune_jax.data import preprocess
from subtune_jax.deploy import classifier, description

NETWORK = description.Network("resnet14", {"width": 4, "stage_sizes": (1, 1)})
CLASSES = ("ok", "def,ect", "=odd")


def make(network=NETWORK, class_names=CLASSES, image_size=16, **config):
  """A classifier with variables that are not the initial ones of BatchNorm."""
  model, _ = network.build(len(class_names), image_size)
  images = jnp.zeros((1, image_size, image_size, 3))
  variables = jax.jit(model.init)(jax.random.key(0), images)
  keys = iter(jax.random.split(jax.random.key(1), 1000))
  variables = jax.tree.map(
    lambda x: x + 0.1 * jax.random.uniform(next(keys), x.shape), dict(variables)
  )
  return classifier.Classifier(
    model, variables, preprocess.Preprocessing((127.0,), (64.0,)), image_size, "bicubic",
    class_names, 8, {"calibration": {"temperature": 2.0}, **config},
  )  # fmt: skip


def run(main, capsys, *arguments):
  """(exit code, standard output, standard error) of a command's `main`."""
  code = 0
  try:
    main([str(each) for each in arguments])
  except SystemExit as e:
    code = e.code
  return code, *capsys.readouterr()
