"""Hyper-parameters that `config.json` beside the weights states, against those of the model.

Neither the number of heads, nor an epsilon, an activation or the place of a stride shows in the
shape of a tensor: weights of another function would load in silence.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
from typing import Any

from flax import linen as nn
import numpy as np

from subtune_jax.models import convnext, registry, resnet, vit
from subtune_jax.weights import errors, hub_types, matching, sidecar, timm_names
from subtune_jax.weights.naming import base

_AWAY = "move the file away to load the weights without its word"

# What shapes do not tell, by family; an option's name stands for its value in the model.
_UNTOLD: dict[type[nn.Module], tuple[str, ...]] = {
  vit.ViT: ("heads", "activation", "norm_epsilon", "pool"),
  resnet.ResNet: ("the stride's place in a bottleneck", "the activation", "BatchNorm's epsilon"),
  convnext.ConvNeXt: ("the activation", "LayerNorm's epsilon", "top_epsilon"),
}
_UNTOLD_OTHERS = ("strides", "activations", "epsilons")


def check(
  path: pathlib.Path,
  model: nn.Module,
  match: matching.Match,
  tensors: Mapping[str, np.ndarray],
  head_is_loaded: bool,
) -> tuple[str, ...]:
  """Compares what `config.json` (transformers' or timm's) states with the model.

  A field that transformers' file leaves out has its class' default (`hub_types`).

  Args:
    path: of the weights.
    model: that they were read for.
    match: the scheme that they follow.
    tensors: of the file.
    head_is_loaded: the model's head is the file's.

  Returns:
    What could not be checked, one text for each reason.

  Raises:
    WeightsError: the file cannot be read, or states another function: every field with both sides.
  """
  file = path.parent / "config.json"
  config = sidecar.read_json(file)
  if config is None:
    return (_unchecked(f"no {file.name} lies beside the weights", model),)
  known = frozenset().union(*(hub_type.defaults for hub_type in hub_types.TYPES.values()))
  if sidecar.is_own(config):
    rows, notes = _own(config, model), list[str]()
  elif "architecture" in config:
    rows, notes = timm_names.compare(config, model, head_is_loaded)
  elif known & set(config) or {"model_type", "architectures"} & set(config):
    rows, notes = _transformers(config, model, match, tensors, head_is_loaded)
  else:
    return (_unchecked(f"{file.name} beside the weights is not transformers' or timm's", model),)
  if rows:
    raise errors.WeightsError(
      "\n  ".join([f"{file} describes another network than this {type(model).__name__}:", *rows])
      + "\nBuild the model as the file says: options of models.create, from a config as "
      f"--config.backbone.options={_suggestion(model, rows)}; or {_AWAY}"
    )
  return tuple(notes)


def _own(config: Mapping[str, Any], model: nn.Module) -> list[str]:
  """Rows of what differs between a model folder's network and the model."""
  said = config["network"]
  if said.get("method"):
    return [f"network: {said['name']} as {said['method']} changed it, in the file"]
  there = registry.create(said["name"], model.num_classes, **said["options"])
  same = {"num_classes", "dtype", "image_size", "parent", "name"}
  rows = [] if type(there) is type(model) else [f"network: {errors.shown(said['name'])}"]
  return rows + [
    f"{f.name}: {getattr(there, f.name)!r} in the file, {getattr(model, f.name, None)!r} in the "
    "model" for f in dataclasses.fields(there)
    if f.name not in same and getattr(there, f.name) != getattr(model, f.name, None)
  ]  # fmt: skip


# Fields of transformers' files -> options of our models that say the same.
_OPTIONS = {
  "num_attention_heads": ("heads",), "layer_norm_eps": ("norm_epsilon", "top_epsilon"),
  "hidden_act": ("activation",),
}  # fmt: skip


def _suggestion(model: nn.Module, rows: Sequence[str]) -> str:
  """The options that would change what the rows name; an example where there are none."""
  made = []
  for row in rows:
    field, _, rest = row.partition(": ")
    value = rest.partition(" in the file")[0]
    made += [f"{o}={value}" for o in _OPTIONS.get(field, ()) if hasattr(model, o)][:1]
  return f'"{",".join(made) or "name=value"}"'


def _unchecked(reason: str, model: nn.Module) -> str:
  values = (
    f"{name}={getattr(model, name)!r}" if hasattr(model, name) else name
    for name in _UNTOLD.get(type(model), _UNTOLD_OTHERS)
  )
  return f"{reason}; taken from the model and not checked: {', '.join(values)}"


def _transformers(
  config: Mapping[str, Any],
  model: nn.Module,
  match: matching.Match,
  tensors: Mapping[str, np.ndarray],
  head_is_loaded: bool,
) -> tuple[list[str], list[str]]:
  """Rows of what differs, and what could not be checked."""
  name: Any = config.get("model_type")
  written = name is not None
  name = name or _by_architecture(config) or hub_types.guess(model)
  hub_type = hub_types.TYPES.get(name) if isinstance(name, str) else None
  if hub_type is None or not isinstance(model, hub_type.family):
    fits = sorted(n for n, t in hub_types.TYPES.items() if isinstance(model, t.family))
    return [f"model_type: {errors.shown(name)} in the file, {_any_of(fits)} in the model"], []
  inner, inert = config, hub_types.INERT
  if hub_type.nested:
    inner = config.get("vision_config", {})
    if inner is None:
      inner = {}
    if not isinstance(inner, dict):
      return [f"vision_config: {errors.shown(inner)} in the file, an object is expected"], []
    inert = inert | hub_types.INERT_OUTSIDE
    vision_type = inner.get("model_type", f"{name}_vision_model")
    if vision_type not in (f"{name}_vision_model", name):
      return [f"vision_config.model_type: {errors.shown(vision_type)} in the file"], []
  rows = _architecture(config, name)
  notes = [] if written else [f"the file states no model_type; read as {name!r}"]
  ours = hub_type.fields(model)
  for field, value in ours.items():
    if field not in inner and field not in hub_type.defaults:
      continue  # optional, and derived from the others
    if field not in inner and not written:
      notes.append(f"{field}: the file does not state it; {value!r} in the model")
    else:
      rows += _row(field, inner, hub_type.defaults, value)
  rows += _structure(hub_type, name, model, head_is_loaded)
  rows += _sizes(config, inner, hub_type, model, match, tensors)
  for place, fields in (("", config), ("vision_config.", inner if inner is not config else {})):
    if fields.get("quantization_config"):
      rows.append(f"{place}quantization_config: the weights are quantised; only floats are read")
    unknown = set(fields) - set(ours) - set(hub_type.defaults) - inert
    names = sorted(f for f in unknown - hub_type.ignored if fields[f] not in (None, {}, []))
    notes += [f"{place}{n}: {errors.shown(fields[n])} is a field that is not known" for n in names]
  return rows, notes


def _by_architecture(config: Mapping[str, Any]) -> str | None:
  named = config.get("architectures")
  for name, hub_type in hub_types.TYPES.items():
    if isinstance(named, list) and any(a in hub_type.architectures for a in named):
      return name
  return None


def _architecture(config: Mapping[str, Any], name: str) -> list[str]:
  named = config.get("architectures")
  if named is None:
    return []
  allowed = hub_types.TYPES[name].architectures
  if isinstance(named, list) and all(isinstance(a, str) and a in allowed for a in named):
    return []
  return [
    f"architectures: {errors.shown(named)} in the file, read here of {name!r}: {_any_of(allowed)}"
  ]


def _row(
  field: str, stated: Mapping[str, Any], defaults: Mapping[str, Any], ours: Any
) -> list[str]:
  """A row where a field has another value, or one of a wrong type."""
  value = stated[field] if field in stated else defaults[field]
  written = "in the file" if field in stated else "by transformers' default, not written"
  if ours is hub_types.ANY or _same(field, value, ours):
    return []
  return [f"{field}: {errors.shown(value)} {written}, {ours!r} in the model"]


def _same(field: str, value: Any, ours: Any) -> bool:
  if field == "hidden_act":
    return isinstance(value, str) and hub_types.ACTIVATIONS.get(value) == ours
  if field == "layer_scale_init_value":
    return _number(value) and (value > 0) == ours
  if field == "patch_size":
    value = _side(value)
  if isinstance(ours, bool):
    return value is ours
  if isinstance(ours, float):
    return _number(value) and math.isclose(value, ours, rel_tol=1e-6)
  if isinstance(ours, int):
    return type(value) is int and value == ours
  return type(value) is type(ours) and value == ours


def _number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _side(size: Any) -> Any:
  """The side of a square that is written as two numbers."""
  if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
    return size[0]
  return size


def _structure(
  hub_type: hub_types.HubType, name: str, model: nn.Module, head_is_loaded: bool
) -> list[str]:
  """Rows of what the type's class has and the model has not, or the other way round."""
  found = {option: getattr(model, option) for option in hub_type.structure}
  rows = [
    f"{option}: {theirs!r} by model_type {name!r}, {found[option]!r} in the model"
    for option, theirs in hub_type.structure.items()
    if theirs is not hub_types.ANY and found[option] != theirs
  ]
  reads_pool = head_is_loaded or getattr(model, "projection", None) is not None
  theirs = hub_type.head_pool if head_is_loaded else hub_type.projection_pool
  if reads_pool and hasattr(model, "pool") and model.pool != theirs:
    what = "classifier" if head_is_loaded else "projection"
    rows.append(f"pool: {theirs!r} before the {what} of {name!r}, {model.pool!r} in the model")
  return rows


def _sizes(
  config: Mapping[str, Any],
  inner: Mapping[str, Any],
  hub_type: hub_types.HubType,
  model: nn.Module,
  match: matching.Match,
  tensors: Mapping[str, np.ndarray],
) -> list[str]:
  """Rows where a size in the file is not that of the tensors beside it."""
  rows = []
  if isinstance(model, vit.ViT):  # its positions are resized, so its image_size may differ
    size = _side(inner.get("image_size", hub_type.defaults["image_size"]))
    (key,) = match.sources["params/embedding/positions"].keys
    count = int(np.prod(tensors[key].shape[:-1]))
    if type(size) is not int or (size // model.patch_size) ** 2 + model.class_token != count:
      rows.append(
        f"image_size: {errors.shown(size)} in the file, beside {count} positions of patches of "
        f"{model.patch_size} pixels{' and the class token' if model.class_token else ''}"
      )
  head = match.sources.get(base.HEAD[1])
  if head and head.keys[0] in tensors:
    classes = tensors[head.keys[0]].shape[0]
    for field, count in (("num_labels", _count(config)), ("id2label", _count(config, "id2label"))):
      if count is not None and count != classes:
        rows.append(f"{field}: {errors.shown(count)} classes in the file, {classes} in the weights")
  if hub_type.projection_pool and model.projection is not None:
    rows += _row("projection_dim", config, {"projection_dim": 512}, model.projection)
  return rows


def _count(config: Mapping[str, Any], field: str = "num_labels") -> Any:
  value = config.get(field)
  return len(value) if isinstance(value, dict) else value


def _any_of(names: Sequence[str] | frozenset[str]) -> str:
  return " or ".join(repr(n) for n in sorted(names)) or "none that transformers has"
