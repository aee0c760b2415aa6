"""Tasks of small networks without a training: leaves of chosen blocks are moved, heads drawn."""

import dataclasses

import jax
import numpy as np

from subtune_jax import multitask
from subtune_jax.data import preprocess
from subtune_jax.deploy import description, folder
from subtune_jax.models import efficientnet
from subtune_jax.training import export

SEEN = preprocess.Preprocessing((127.0, 120.0, 110.0), (64.0,))
RESNET = description.Network("resnet14", {"width": 4, "stage_sizes": (1, 2, 1)})
VIT = description.Network(
  "vit_ti16", {"width": 16, "depth": 3, "heads": 2, "patch_size": 8, "image_size": 32}
)
LITE0 = description.Network("efficientnet_lite0", {"image_size": 32})
_BLOCKS = ((3, 1, 1, 8, 8), (5, 2, 6, 8, 8), (5, 1, 6, 8, 8))
LITE = description.Network(  # three of its blocks: lite0 itself takes long to compile
  "efficientnet_lite0",
  {"blocks": tuple(efficientnet.BlockSpec(*own) for own in _BLOCKS), "stem_features": 8,
   "features": 16, "image_size": 32},
)  # fmt: skip
CONVNEXT = description.Network(
  "convnext_tiny", {"depths": (1, 1, 1, 1), "widths": (4, 6, 8, 10), "image_size": 32}
)


def backbone(network, seed=0):
  """A backbone of random weights, whose BatchNorm statistics are not the initial ones."""
  model, shapes = network.build(2, 32)
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = jax.tree_util.keystr(path[-1:], simple=True)
    if name in ("scale", "var"):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
    fan_in = max(1, leaf.size // (leaf.shape or (1,))[-1])
    return np.asarray(rng.normal(size=leaf.shape) * (2 / fan_in) ** 0.5, leaf.dtype)

  variables = jax.tree_util.tree_map_with_path(draw, dict(shapes))
  return multitask.Backbone(model, variables, SEEN)


def moved(variables, chosen, seed, by=0.05):
  """The variables with numbers added to the leaves that `chosen` says of their paths."""
  rng = np.random.default_rng(seed)

  def move(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    add = by * np.asarray(rng.uniform(0.1, 1, leaf.shape), leaf.dtype)
    return np.asarray(leaf) + add if chosen(name) else np.asarray(leaf)

  return jax.tree_util.tree_map_with_path(move, variables)


def trained(base, blocks, seed, num_classes=3):
  """(variables, touched) after a pretended training of some blocks and a head."""
  units = [*blocks, "head"]

  def chosen(name):
    return any(name.partition("/")[2].startswith(f"{unit}/") for unit in units)

  features = base.variables["params"]["head"]["kernel"].shape[0]
  rng = np.random.default_rng(seed)
  kernel = rng.normal(size=(features, num_classes)).astype(np.float32)
  head = {"kernel": kernel, "bias": np.zeros(num_classes, np.float32)}
  start = {**base.variables, "params": {**base.variables["params"], "head": head}}
  touched = jax.tree_util.tree_map_with_path(
    lambda path, _: chosen(jax.tree_util.keystr(path, simple=True, separator="/")), start
  )
  return moved(start, chosen, seed), touched


def task(base, blocks, seed, num_classes=3):
  """A `Task` without a folder."""
  names = tuple(f"class{i}" for i in range(num_classes))
  return multitask.of_training(base, *trained(base, blocks, seed, num_classes), names)


def write(path, network, base, blocks, seed, num_classes=3, **changes):
  """A model folder; `changes` are of its classifier."""
  variables, touched = trained(base, blocks, seed, num_classes)
  names = tuple(f"class{i}" for i in range(num_classes))
  export.save_task(path / "export", variables, touched, base.variables, {"class_names": names})
  own = multitask.of_training(base, variables, touched, names).network
  own = dataclasses.replace(own, config={"calibration": {"temperature": 2.0}}, **changes)
  return folder.save(path / "best", network, own, task=path / "export")


def images(n=3, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), np.uint8)


def own_answers(own, given):
  """Logits of a task's own network, without anything of `multitask`."""
  network = own.network

  def run(variables, x):
    return network.model.apply(variables, preprocess.normalize(x, network.preprocessing))

  return np.asarray(jax.jit(run)(network.variables, given))
