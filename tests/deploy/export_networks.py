"""Small networks of every family whose activations stay of order 1, for the tests of exports."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import data, models, weights
from subtune_jax.data import preprocess
from subtune_jax.deploy import classifier, description
from subtune_jax.models import side

_TINY = {"depth": 2, "width": 32, "heads": 2}
_STAGES = (1, 1, 1, 1)
# Name -> model, options, image size.
NETWORKS = {
  "vit": ("vit_ti16", _TINY, 32),
  "dinov2": ("dinov2_reg_vit_s14", _TINY, 28),
  "siglip": ("siglip_vit_b16", _TINY, 32),
  "clip_vit": ("clip_vit_b16", _TINY, 32),
  "resnet": ("resnet50", {"stage_sizes": _STAGES, "width": 8}, 64),
  "resnet14": ("resnet14", {"width": 4}, 32),
  "convnext": ("convnext_tiny", {"depths": _STAGES, "widths": (8, 16, 32, 64)}, 64),
  "efficientnet": ("efficientnet_lite0", {}, 32),
  "clip_resnet": (
    "clip_resnet50", {"stage_sizes": _STAGES, "width": 8, "features": 16, "heads": 4}, 64,
  ),
  "bit": ("bit_resnet50", {"stage_sizes": _STAGES, "width": 32}, 64),
}  # fmt: skip
CLASSES = ("ok", "bad", "odd", "none", "ünïcode")


def make(name, options, image_size, class_names=CLASSES, **fields):
  """A classifier with random weights, statistics of BatchNorm and layer scales among them."""
  model, _ = description.Network(name, options).build(len(class_names), image_size)
  images = jnp.zeros((1, image_size, image_size, 3))
  variables = jax.jit(model.init)(jax.random.key(0), images)
  rng = np.random.default_rng(1)

  def moved(path, leaf):
    last = path[-1].key
    if last in ("var", "scale") or last.startswith(("scale", "layer_scale")):
      return np.float32(rng.uniform(0.5, 1.0, leaf.shape))
    if last in ("mean", "bias"):
      return np.float32(rng.normal(0, 0.1, leaf.shape))
    return np.asarray(leaf)

  variables = jax.tree_util.tree_map_with_path(moved, dict(variables))
  seen = preprocess.Preprocessing((120.0, 115.0, 100.0), (60.0,) * 3)
  return classifier.Classifier(
    model, variables, seen, image_size, "bicubic", class_names, 4, **fields
  )


def of_family(name):
  """One of `NETWORKS`, or "side": two copies of a network side by side."""
  if name != "side":
    return make(*NETWORKS[name])
  base = make(*NETWORKS["resnet14"])
  model, variables = side.wrap(base.model, base.variables)
  return dataclasses.replace(base, model=model, variables=variables)


def with_imagenet_weights():
  """EfficientNet-Lite0 with its ImageNet head at 64 px, and emoji for it to see."""
  model = models.create("efficientnet_lite0", 1000, image_size=64)
  own = weights.load_pretrained("efficientnet_lite0/imagenet", model)
  names = tuple(f"n{i}" for i in range(1000))
  made = classifier.Classifier(model, own.variables, own.preprocessing, 64, "bicubic", names)
  return made, data.load("emoji_domains/noto", "test", 64).images


def images(made, n, seed=0):
  size = made.image_size
  return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)
