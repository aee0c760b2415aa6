"""The network of a run: the backbone with its weights, as the config and a method ask for it."""

import ast
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import masks, methods, models, weights
from subtune_jax.data import choices
from subtune_jax.models import compile_cache
from subtune_jax.runner import recipes
from subtune_jax.training import frozen_storage, loop, remat, trainable_split
from subtune_jax.training import step as step_lib

Row = dict[str, Any]


def load_network(config: Any, num_classes: int) -> tuple[loop.Engine, weights.Pretrained]:
  """(engine, pretrained weights with a fresh head); keeps compiled programs from here on."""
  compile_cache.enable()
  model = models.create(
    config.backbone.name,
    num_classes=num_classes,
    dtype=jnp.dtype(config.backbone.dtype),
    image_size=config.data.image_size,
    **options(config.backbone.options),
  )
  preprocessing: Any = config.backbone.preprocessing or None
  if config.backbone.weights == "random":
    pretrained = weights.random_weights(model, preprocessing=preprocessing)
  else:
    pretrained = weights.load_pretrained(
      config.backbone.weights, model, preprocessing=preprocessing
    )
  if config.backbone.keep_head and pretrained.not_loaded:
    raise ValueError(
      f"backbone.keep_head is True, but {config.backbone.weights} has no head of {num_classes} "
      f"classes (not loaded: {', '.join(pretrained.not_loaded)}); set it to False"
    )
  stored = frozen_dtype(config)
  if stored == frozen_storage.BFLOAT16:
    pretrained = pretrained._replace(variables=frozen_storage.rounded(pretrained.variables))
  engine = loop.Engine(
    model, pretrained.preprocessing, batch_size=config.batch_size,
    augmentation=augmentation(config.augment),
    remat=_remat(config, model, pretrained.variables), frozen_dtype=stored,
  )  # fmt: skip
  return engine, pretrained


def frozen_dtype(config: Any) -> str:
  """`backbone.frozen_dtype`, float32 in configs of older runs. Raises ValueError: unknown."""
  stored = config.backbone.get("frozen_dtype", frozen_storage.FLOAT32)
  choices.check("backbone.frozen_dtype", stored, frozen_storage.DTYPES)
  return stored


def _remat(config: Any, model: Any, variables: Any) -> tuple[str, ...]:
  """Blocks that the config names to be computed anew; records of older runs have no such field."""
  return remat.blocks_of(config.backbone.get("remat", ""), model, variables["params"])


def augmentation(fields: Any) -> step_lib.Augmentation | None:
  """The section `augment` of a config; None at kind "none".

  Raises:
    ValueError: fields that make no sense, or a view that is asked for at kind "none".
  """
  given = fields.to_dict()
  if given["kind"] != "none":
    return step_lib.Augmentation(**given | {"color": tuple(given["color"])})
  views = ("flip", "flip_vertical", "rotate", "quarter_turns", "color", "mixup")
  asked = [name for name in views if np.any(given.get(name, 0))]
  if asked:
    raise ValueError(
      f"augment.{asked[0]} is {given[asked[0]]} and augment.kind 'none', which augments nothing; "
      "set augment.kind='shift', with augment.pad=0 for no shift"
    )
  return None


def options(text: str) -> dict[str, Any]:
  """Options of `models.create` from "name=value,name=value", values as in Python."""
  try:
    call = ast.parse(f"f({text})", mode="eval").body
    if not isinstance(call, ast.Call) or call.args or not all(own.arg for own in call.keywords):
      raise ValueError("a value without a name")
    return {str(own.arg): ast.literal_eval(own.value) for own in call.keywords}
  except (SyntaxError, ValueError) as e:
    raise ValueError(
      f"backbone.options is {text!r}; give name=value pairs such as norm_epsilon=1e-12"
    ) from e


def prepared(
  name: str, config: Any, engine: loop.Engine, pretrained: weights.Pretrained
) -> tuple[loop.Engine, weights.Pretrained]:
  """The network and its variables as a method's declaration changes them, if it does."""
  if not recipes.changes_network(config, name):
    return engine, pretrained
  prepare = methods.DECLARED[name].prepare
  assert prepare is not None  # it changes the network
  model, variables = prepare(
    engine.model, pretrained.variables, jax.random.key(0), method_options(name, config)
  )
  return (
    dataclasses.replace(engine, model=model, remat=_remat(config, model, variables)),
    pretrained._replace(variables=variables),
  )


def method_options(name: str, config: Any) -> dict[str, Any]:
  """The options with which a method changes the network, by the config; {} if it changes none."""
  if not recipes.changes_network(config, name):
    return {}
  return methods.options_of(methods.DECLARED[name], config.get(name))


def backbone_row(config: Any, model: Any, pretrained: weights.Pretrained) -> Row:
  """What a record says of the network."""
  params = pretrained.variables["params"]
  counts = dict.fromkeys((*model.block_names, trainable_split.HEAD), 0)
  for path, leaf in zip(masks.paths(params), jax.tree.leaves(params), strict=True):
    counts[trainable_split.unit_of(path, tuple(counts))] += int(np.size(leaf))
  head = counts.pop(trainable_split.HEAD)
  return {
    "name": config.backbone.name, "weights": config.backbone.weights,
    **({"revision": pretrained.revision} if pretrained.revision else {}),
    "sha256": pretrained.sha256, "image_size": config.data.image_size,
    "block_names": list(model.block_names), "block_params": counts, "head_params": head,
    "num_params": sum(counts.values()) + head,
  }  # fmt: skip
