"""From adapters on a model to PEFT's folder."""

from collections import Counter
from collections.abc import Mapping
import math
import os
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from subtune_jax import adapters, files, strict_json
from subtune_jax.adapters import dora, sites
from subtune_jax.peft_files import config as config_lib
from subtune_jax.peft_files import factors as factors_lib
from subtune_jax.peft_files import layers as layers_lib
from subtune_jax.peft_files import reading


def write(
  folder: str | os.PathLike,
  adapted: adapters.Adapted,
  tree: adapters.Tree,
  variables: Any,
  *,
  layout: str = "timm",
  names: layers_lib.Names | None = None,
  base_model: str | None = None,
  model: Any = None,
) -> pathlib.Path:
  """Writes an adapter for torch: `peft.PeftModel.from_pretrained(network, folder)`.

  A layer of ours that is several in torch gives each its own adapter with a copy of A; adapters of
  parts of a layer that is one in torch become one of the sum of their ranks, whose scaling is the
  first one's, so that alpha grows with the rank. Convolutions in groups get an A for all channels,
  as PEFT has it.

  Args:
    folder: made if need be; files of these names in it are replaced.
    adapted: of `adapters.add`.
    tree: leaves of the adapters. Leaves of modules themselves in it (`adapters.with_leaves`) become
      modules_to_save where they have a kernel, with what the base has of the rest, and "bias" else.
    variables: of the frozen weights.
    layout: whose names torch's modules have, for backbones of this library: "timm", "torchvision",
      "transformers" (5 and later) or "transformers4".
    names: for other models: path of a module -> torch's name, or names side by side.
    base_model: name or folder of the frozen weights, for the config.
    model: whose names are asked for, where `adapted.model` is not the backbone itself.

  Returns:
    The folder.

  Raises:
    ValueError: adapters that PEFT's files have no form for, modules without a name, or leaves that
      are not finite.
  """
  model = adapted.model if model is None else model
  leaves = layers_lib.leaves_of(adapted.model, variables)
  if names is not None:
    layers = layers_lib.of_names(names, leaves)
  else:
    layers = layers_lib.of_layout(model, leaves, layout)
  sites.check(adapted.sites, tree)
  found = _adapters(adapted, tree, layers, leaves)
  saved, modules, bias = _own_leaves(tree, layers, leaves, found)
  arrays = _arrays(adapted, found, layers) | saved
  for key, array in arrays.items():
    if not np.isfinite(array).all():
      raise ValueError(f"{key} holds numbers that are not finite; write an earlier state")
  config = _config(adapted, found, modules, bias, base_model)
  return _write(pathlib.Path(folder), _settled(config, found, layers), arrays)


def _adapters(
  adapted: adapters.Adapted, tree: adapters.Tree, layers: layers_lib.Layers,
  leaves: Mapping[str, Any],
) -> dict[str, factors_lib.Factors]:  # fmt: skip
  """Torch module -> its adapter."""
  found = {}
  for site in adapted.sites:
    geometry = factors_lib.check(site)
    if site.path not in layers.names:
      raise ValueError(
        f"{site.path} has no name among {layers.title}; leave it out, or give names="
      )
    lengths = factors_lib.lengths_of(geometry, jnp.asarray(leaves[f"{site.path}/kernel"]))
    own = [
      factors_lib.of_ours(site, rule, tree[site.path][rule.name], lengths) for rule in site.rules
    ]
    names = layers.names[site.path]
    size, odd = divmod(len(lengths), len(names))
    if odd or (len(names) > 1 and geometry.groups > 1):
      raise ValueError(
        f"{site.path} has {len(lengths)} outputs, which are not {names} side by side"
      )
    for i, name in enumerate(names):
      made = factors_lib.joined(own, i * size, (i + 1) * size, lengths)
      if made is not None:
        found[name] = made
  doras = {made.magnitude is not None for made in found.values()}
  if len(doras) > 1:
    raise ValueError("a folder of PEFT holds LoRA or DoRA, not both; write them to two folders")
  return found


def _own_leaves(
  tree: adapters.Tree, layers: layers_lib.Layers, leaves: Mapping[str, Any],
  found: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], list[str], str]:  # fmt: skip
  """Tensors of modules saved whole and of biases, names of the former, the config's bias."""
  arrays: dict[str, np.ndarray] = {}
  modules, bias = list[str](), "none"
  for path, own in tree.items():
    given = own.get(sites.LEAVES)
    if not given:
      continue
    if path not in layers.names:
      raise ValueError(f"{path} has no name among {layers.title}; leave its leaves out")
    whole = set(given) != {"bias"}
    names = layers.names[path]
    if whole and set(names) & set(found):
      raise ValueError(f"{path} has an adapter and leaves of its own; PEFT takes one of the two")
    if whole:
      modules += names
    elif set(names) <= set(found):
      bias = "lora_only" if bias == "none" else bias
    else:
      bias = "all"
    for leaf in layers.leaves[path] if whole else given:
      _put(arrays, path, leaf, given.get(leaf, leaves[f"{path}/{leaf}"]), layers, found)
  return arrays, modules, bias


def _put(
  arrays: dict[str, np.ndarray], path: str, leaf: str, value: Any, layers: layers_lib.Layers,
  found: Mapping[str, Any],
) -> None:  # fmt: skip
  names, base = layers.names[path], np.asarray(value, np.float32)
  field = layers.leaves[path][leaf]
  for name, part in zip(names, np.split(base, len(names), axis=-1), strict=True):
    if leaf == "kernel":
      part = np.moveaxis(part, (-1, -2), (0, 1))
    inside = f"{name}.base_layer" if name in found else name
    arrays[f"{reading.PREFIX}{inside}.{field}"] = part


def _arrays(
  adapted: adapters.Adapted, found: Mapping[str, factors_lib.Factors], layers: layers_lib.Layers
) -> dict[str, np.ndarray]:
  geometries = {site.path: site.target.geometry for site in adapted.sites}
  arrays = {}
  for name, own in found.items():
    geometry = geometries[layers.parts()[name][0]]
    assert geometry is not None
    shapes = factors_lib.shapes(geometry, len(own.b), own.rank)
    key = f"{reading.PREFIX}{name}."
    arrays[f"{key}lora_A.weight"] = own.a.reshape(shapes["lora_A"])
    arrays[f"{key}lora_B.weight"] = own.b.reshape(shapes["lora_B"])
    if own.magnitude is not None:
      shape = shapes["lora_magnitude_vector"]
      arrays[f"{key}lora_magnitude_vector"] = own.magnitude.reshape(shape)
  return arrays


def _config(
  adapted: adapters.Adapted, found: Mapping[str, factors_lib.Factors], modules: list[str],
  bias: str, base_model: str | None,
) -> dict[str, Any]:  # fmt: skip
  rules = [factors_lib.rule_of(rule) for site in adapted.sites for rule in site.rules]
  rslora = all(rule.rslora for rule in rules)
  ranks = {name: own.rank for name, own in found.items()}
  alphas = {name: _alpha(own, rslora) for name, own in found.items()}
  rank, alpha = (Counter(rows.values()).most_common(1)[0][0] for rows in (ranks, alphas))
  dropout = {rule.dropout for rule in rules}
  return {
    "peft_type": "LORA", "task_type": None, "auto_mapping": None,
    "base_model_name_or_path": base_model, "revision": None, "inference_mode": True,
    "r": rank, "lora_alpha": alpha, "lora_dropout": max(dropout), "use_rslora": rslora,
    "use_dora": any(isinstance(rule, dora.DoRA) for rule in rules), "bias": bias,
    "target_modules": sorted(found), "exclude_modules": None, "modules_to_save": modules or None,
    "rank_pattern": _pattern(ranks, rank), "alpha_pattern": _pattern(alphas, alpha),
    "layers_to_transform": None, "layers_pattern": None, "init_lora_weights": True,
    "fan_in_fan_out": False,
  }  # fmt: skip


def _alpha(own: factors_lib.Factors, rslora: bool) -> float:
  """The shortest alpha that gives the scaling in float32; whole numbers as such."""
  divisor = math.sqrt(own.rank) if rslora else own.rank
  alpha = own.scaling * divisor
  for digits in range(12):
    short = round(alpha, digits)
    if np.float32(short / divisor) == np.float32(own.scaling):
      return int(short) if short == int(short) else short
  return alpha


def _pattern(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
  return {f"^{re.escape(name)}": value for name, value in values.items() if value != default}


def _settled(
  config: dict[str, Any], found: Mapping[str, Any], layers: layers_lib.Layers
) -> dict[str, Any]:
  """The config, seen to choose these modules of the model's and no others.

  PEFT takes a name in a list for the end of one: ResNet's "conv1" would be all of them. Then the
  modules are a regular expression.

  Raises:
    ValueError: modules_to_save, which are ends of names in any case, choose others.
  """
  said = config_lib.parse(config)
  if any(said.is_target(name) != (name in found) for name in layers.parts()):
    config["target_modules"] = f"({'|'.join(map(re.escape, sorted(found)))})"
  for name in layers.parts():
    if said.is_saved(name) != (name in (config["modules_to_save"] or ())):
      raise ValueError(
        f"torch's {name} ends in the name of another module that is to be saved, and PEFT chooses "
        "them by the ends of names; give it leaves of its own too, or leave the other's out"
      )
  return config


def _write(
  folder: pathlib.Path, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> pathlib.Path:
  import safetensors.numpy

  host = {key: np.ascontiguousarray(array, np.float32) for key, array in sorted(arrays.items())}
  data = safetensors.numpy.save(host, metadata={"format": "pt"})
  files.write_atomically(folder / config_lib.WEIGHTS, data)
  text = strict_json.dumps(config, indent=2) + "\n"
  files.write_atomically(folder / config_lib.FILE, text.encode())
  return folder
