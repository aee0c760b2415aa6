"""From PEFT's folder to adapters on a model, whole or not at all."""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
import stat
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import adapters, nearest
from subtune_jax.peft_files import config as config_lib
from subtune_jax.peft_files import factors as factors_lib
from subtune_jax.peft_files import layers as layers_lib
from subtune_jax.weights import errors, safetensors_file
from subtune_jax.weights import files as weights_files

PREFIX = "base_model.model."
_FIELDS = ("lora_A", "lora_B", "lora_magnitude_vector")
_ENDS = {".lora_A.weight": "lora_A", ".lora_B.weight": "lora_B",
         ".lora_magnitude_vector": "lora_magnitude_vector"}  # fmt: skip
_MOST = 5  # names in an error
_OTHER = "Read it into the model that it was made for"
_AGAIN = "Save the adapter again with PEFT's save_pretrained"


def read(
  folder: str | os.PathLike,
  model: Any,
  variables: Any,
  *args: Any,
  names: layers_lib.Names | None = None,
  **kwargs: Any,
) -> tuple[adapters.Adapted, adapters.Tree]:
  """Puts the adapter of a folder on a model.

  >>> adapted, tree = peft_files.read("my_adapter", model, variables, images)
  >>> logits = adapted.apply(variables, tree, images)

  Nothing in a folder is executed, and no path or address in it is followed.

  Args:
    folder: with adapter_config.json and adapter_model.safetensors.
    model: of the frozen weights: a backbone of this library, whose layers are found under the names
      of timm, torchvision or transformers, or any Flax module with `names`.
    variables: of the model, as of `adapters.add`.
    *args: of a call of the model, or their shapes.
    names: path of a module -> name of torch's module, or several whose outputs lie side by side.
    **kwargs: of that call.

  Returns:
    The model with LoRA or DoRA at the folder's modules, and the leaves: in float32, modules that
    were saved whole and biases among them.

  Raises:
    WeightsError: a ValueError; the folder is incomplete, contradicts itself or does not fit.
  """
  folder = pathlib.Path(folder)
  _check_files(folder)
  said = config_lib.read(folder)
  where = str(folder / config_lib.WEIGHTS)
  try:
    modules, saved = _sorted(_tensors(folder / config_lib.WEIGHTS))
    leaves = layers_lib.leaves_of(model, variables)
    if names is not None:
      layers = layers_lib.of_names(names, leaves)
    else:
      layers = layers_lib.recognise(model, leaves, [*modules, *_modules(saved)], where)
    _check_modules(said, modules, layers)
    _check_sizes(said, modules, layers, leaves)
    rules = _rules(said, modules, layers)
    adapted, tree = adapters.add(model, variables, rules, jax.random.key(0), *args, **kwargs)
    tree = _filled(adapted, tree, modules, said, layers, leaves)
    return adapted, adapters.with_leaves(tree, _saved(said, saved, layers, leaves))
  except errors.WeightsError:
    raise
  except ValueError as e:
    raise errors.WeightsError(f"{where}: {e}") from e


def _check_files(folder: pathlib.Path) -> None:
  if not folder.is_dir():
    raise errors.WeightsError(f"there is no folder {folder}; give one with {config_lib.FILE}")
  weights = folder / config_lib.WEIGHTS
  if not weights.exists() and (folder / config_lib.PICKLE).exists():
    raise errors.WeightsError(
      f"{folder} has {config_lib.PICKLE}, a pickle, which is not opened, and no "
      f"{config_lib.WEIGHTS}. {_AGAIN}(folder, safe_serialization=True)"
    )
  for file in (folder / config_lib.FILE, weights):
    try:
      regular = stat.S_ISREG(file.stat().st_mode)
    except (OSError, ValueError) as e:
      raise errors.WeightsError(
        f"{file} cannot be read: {getattr(e, 'strerror', e)}. A folder needs {config_lib.FILE} and "
        f"{config_lib.WEIGHTS}. {_AGAIN}"
      ) from e
    if not regular:
      raise errors.WeightsError(f"{file} is not a regular file. {_AGAIN}")


def _tensors(file: pathlib.Path) -> dict[str, np.ndarray]:
  data = weights_files.map_file(file)[:]
  if not safetensors_file.matches(data):
    raise errors.WeightsError(
      f"{file} is no safetensors file (it starts with {data[:8]!r}); nothing in it was executed. "
      f"{_AGAIN}"
    )
  try:
    found = safetensors_file.read(data)
  except (errors.Damaged, errors.Refused) as e:
    raise errors.WeightsError(f"{file} is damaged or refused: {e}. {_AGAIN}") from e
  if not found:
    raise ValueError(f"it holds no tensor. {_AGAIN}")
  for name, array in found.items():
    if not jnp.issubdtype(array.dtype, jnp.floating):
      raise ValueError(f"{errors.quote(name)} is {array.dtype}; allowed: floats. {_AGAIN}")
    with np.errstate(over="ignore"):
      found[name] = array.astype(np.float32)
    if not np.isfinite(found[name]).all():
      raise ValueError(f"{errors.quote(name)} holds numbers that are not finite. {_AGAIN}")
  return found


def _sorted(
  tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
  """Torch module -> its adapter's tensors; and the other tensors, by name without the prefix."""
  modules: dict[str, dict[str, np.ndarray]] = {}
  saved = {}
  for key, array in tensors.items():
    name = key.removeprefix(PREFIX)
    if name == key:
      raise ValueError(f"{errors.quote(key)} does not begin with {PREFIX!r}. {_AGAIN}")
    end = next((end for end in _ENDS if name.endswith(end)), None)
    if end is not None:
      modules.setdefault(name.removesuffix(end), {})[_ENDS[end]] = array
    elif ".lora_" in name or not name.endswith((".weight", ".bias")):
      raise ValueError(
        f"{errors.quote(key)} is a tensor that is not known; allowed ends: "
        f"{', '.join((*_ENDS, '.weight', '.bias'))}. {_AGAIN}"
      )
    else:
      saved[name.replace(".base_layer.", ".")] = array
  if not modules:
    raise ValueError(f"it holds no lora_A and lora_B. {_AGAIN}")
  return modules, saved


def _modules(saved: Mapping[str, Any]) -> list[str]:
  return [name.rpartition(".")[0] for name in saved]


def _shown(names: list[str]) -> str:
  more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
  return ", ".join(map(errors.quote, sorted(names)[:_MOST])) + more


def _check_modules(
  said: config_lib.Config, modules: Mapping[str, Any], layers: layers_lib.Layers
) -> None:
  """Raises ValueError unless the tensors are those of the modules that the config chooses."""
  known = layers.parts()
  foreign = [name for name in modules if name not in known]
  if foreign:
    near = nearest.names(foreign[0], known) or sorted(known)[:_MOST]
    raise ValueError(
      f"the model has no layer {_shown(foreign)} ({layers.title}); the nearest are "
      f"{_shown(near)}. {_OTHER}"
    )
  kernels = [name for name, (path, _, _) in known.items() if "kernel" in layers.leaves[path]]
  targets = {name for name in kernels if said.is_target(name)}
  for rows, what in (
    (targets - set(modules), "the config chooses {}, which the file has no tensors for"),
    (set(modules) - targets, "the file has tensors for {}, which the config does not choose"),
  ):
    if rows:
      raise ValueError(f"{what.format(_shown(list(rows)))}: {said.choice()}. {_AGAIN}")
  wanted = set(_FIELDS) if said.dora else set(_FIELDS[:2])
  for name, own in modules.items():
    if set(own) != wanted:
      odd = sorted(wanted ^ set(own))
      raise ValueError(
        f"{name} has {', '.join(sorted(own))}, not {', '.join(sorted(wanted))} (use_dora is "
        f"{said.dora}): {', '.join(odd)} is missing or too much. {_AGAIN}"
      )


def _check_sizes(
  said: config_lib.Config, modules: Mapping[str, Mapping[str, np.ndarray]],
  layers: layers_lib.Layers, leaves: Mapping[str, Any],
) -> None:  # fmt: skip
  """Raises ValueError where the matrices cannot make their kernel, before any memory is taken."""
  known = layers.parts()
  for name, own in modules.items():
    path, _, count = known[name]
    kernel, rank = leaves[f"{path}/kernel"], said.rank_of(name)
    a, b = own["lora_A"], own["lora_B"]
    if len(a) != rank or a.size * b.size * count != rank * rank * kernel.size:
      raise ValueError(
        f"{name}: lora_A {a.shape} and lora_B {b.shape} do not make the model's kernel "
        f"{tuple(kernel.shape)} by rank {rank} (r, rank_pattern){f', cut in {count}' * (count > 1)}"
        f". {_AGAIN}. {_OTHER}"
      )


def _rules(
  said: config_lib.Config, modules: Mapping[str, Any], layers: layers_lib.Layers
) -> list[adapters.Rule]:
  """Rules for whole layers, for each part of those that torch has cut, for those in groups."""
  known = layers.parts()
  found: dict[tuple[int, int, bool], dict[str, str]] = {}
  for name, own in modules.items():
    path, index, count = known[name]
    grouped = own["lora_B"].ndim > 1 and own["lora_B"].shape[1] < said.rank_of(name)
    found.setdefault((index, count, grouped), {})[path] = name
  return [_rule(said, *kind, paths) for kind, paths in sorted(found.items())]


def _rule(
  said: config_lib.Config, index: int, count: int, grouped: bool, paths: Mapping[str, str]
) -> adapters.Rule:
  make = adapters.DoRA if said.dora else adapters.LoRA
  name = ("dora" if said.dora else "lora") + (f"_{index}" if count > 1 else "")
  rule = make(
    _Paths(frozenset(paths)), name=name, rank=said.rank, alpha=said.alpha, rslora=said.rslora,
    grouped="peft" if grouped else "shared",
    rank_pattern=_pattern({path: said.rank_of(own) for path, own in paths.items()}, said.rank),
    alpha_pattern=_pattern({path: said.alpha_of(own) for path, own in paths.items()}, said.alpha),
  )  # fmt: skip
  return rule if count == 1 else adapters.Part(rule=rule, index=index, count=count)


def _pattern(values: Mapping[str, Any], default: Any) -> tuple[tuple["_Paths", Any], ...]:
  """Modules by their value, without the default."""
  found: dict[Any, set[str]] = {}
  for path, value in values.items():
    if value != default:
      found.setdefault(value, set()).add(path)
  return tuple((_Paths(frozenset(paths)), value) for value, paths in found.items())


@dataclasses.dataclass(frozen=True)
class _Paths:
  """A selector of exactly these modules."""

  paths: frozenset[str]

  def __call__(self, path: str, leaf: Any) -> bool:
    return path in self.paths


def _filled(
  adapted: adapters.Adapted, tree: adapters.Tree, modules: Mapping[str, Mapping[str, np.ndarray]],
  said: config_lib.Config, layers: layers_lib.Layers, leaves: Mapping[str, Any],
) -> adapters.Tree:  # fmt: skip
  """The tree with the tensors of the file for its fresh leaves."""
  new: adapters.Tree = {}
  for site in adapted.sites:
    geometry = factors_lib.check(site)
    kernel = jnp.asarray(leaves[f"{site.path}/kernel"])
    lengths = factors_lib.lengths_of(geometry, kernel)
    for rule in site.rules:
      index, target, own = 0, site.target, lengths
      if isinstance(rule, adapters.Part):
        index, target = rule.index, rule.of(site.target)
        start, end = rule.outputs(site.target)
        own = lengths[start:end]
      assert target.geometry is not None
      name = layers.names[site.path][index]
      made = _factors(name, modules[name], said, target.geometry, len(own))
      found = factors_lib.to_ours(target.geometry, made, own)
      fresh = tree[site.path][rule.name]
      assert {k: np.shape(v) for k, v in found.items()} == {k: v.shape for k, v in fresh.items()}
      arrays = {leaf: jnp.asarray(found[leaf], jnp.float32) for leaf in fresh}
      new.setdefault(site.path, {})[rule.name] = arrays
  return new


def _factors(
  name: str, own: Mapping[str, np.ndarray], said: config_lib.Config, geometry: Any, outputs: int
) -> factors_lib.Factors:
  rank = said.rank_of(name)
  wanted = factors_lib.shapes(geometry, outputs, rank)
  for field, array in own.items():
    if array.shape != wanted[field]:
      raise ValueError(
        f"{name}.{field} is {array.shape}; with rank {rank} (r, rank_pattern) this layer needs "
        f"{wanted[field]}. {_AGAIN}. {_OTHER}"
      )
  scaling = said.scaling_of(name)
  magnitude = own["lora_magnitude_vector"].reshape(-1) if said.dora else None
  b = own["lora_B"].reshape(outputs, -1)
  return factors_lib.Factors(own["lora_A"], b, scaling, magnitude)


def _saved(
  said: config_lib.Config, saved: Mapping[str, np.ndarray], layers: layers_lib.Layers,
  leaves: Mapping[str, Any],
) -> dict[str, dict[str, jax.Array]]:  # fmt: skip
  """Modules that were saved whole, and biases: our path -> leaf -> array."""
  known = layers.parts()
  parts: dict[str, dict[str, dict[int, np.ndarray]]] = {}
  for name, array in saved.items():
    module, _, field = name.rpartition(".")
    if module not in known:
      raise ValueError(
        f"{errors.quote(name)} is of no layer of the model ({layers.title}); the nearest are "
        f"{_shown(nearest.names(module, known) or sorted(known)[:_MOST])}. {_OTHER}"
      )
    whole = said.is_saved(module)
    if not whole and (field != "bias" or said.bias == "none"):
      raise ValueError(
        f"the file has {errors.quote(name)}, which neither modules_to_save "
        f"{errors.shown(list(said.modules_to_save))} nor bias {said.bias!r} chooses. {_AGAIN}"
      )
    path, index, _ = known[module]
    leaf = next((own for own, torch in layers.leaves[path].items() if torch == field), None)
    if leaf is None:
      raise ValueError(f"{errors.quote(name)}: the model's {path} has no {field}. {_OTHER}")
    parts.setdefault(path, {}).setdefault(leaf, {})[index] = array
  _check_saved(said, saved, known, layers)
  found: dict[str, dict[str, jax.Array]] = {}
  for path, own in parts.items():
    for leaf, arrays in own.items():
      found.setdefault(path, {})[leaf] = _leaf(path, leaf, arrays, layers, leaves)
  return found


def _check_saved(
  said: config_lib.Config, saved: Mapping[str, Any], known: Mapping[str, Any],
  layers: layers_lib.Layers,
) -> None:  # fmt: skip
  for end in said.modules_to_save:
    if not any(dataclasses.replace(said, modules_to_save=(end,)).is_saved(name) for name in known):
      raise ValueError(
        f"modules_to_save has {errors.quote(end)}, which the model lacks; the nearest are "
        f"{_shown(nearest.names(end, known) or sorted(known)[-_MOST:])}. {_OTHER}"
      )
  for name, (path, _, _) in known.items():
    if said.is_saved(name):
      lacking = [f for f in layers.leaves[path].values() if f"{name}.{f}" not in saved]
      if lacking:
        raise ValueError(f"modules_to_save chooses {name}, and the file lacks its "
                         f"{' and '.join(lacking)}. {_AGAIN}")  # fmt: skip


def _leaf(
  path: str, leaf: str, arrays: Mapping[int, np.ndarray], layers: layers_lib.Layers,
  leaves: Mapping[str, Any],
) -> jax.Array:  # fmt: skip
  """The leaf of our module; parts that the file lacks are the model's."""
  base = np.asarray(leaves[f"{path}/{leaf}"], np.float32)
  names = layers.names[path]
  new = np.array(np.split(base.reshape(-1, base.shape[-1]), len(names), axis=-1))
  for index, array in arrays.items():
    shape = (*base.shape[:-1], base.shape[-1] // len(names))
    turned = to_ours_order(array) if leaf == "kernel" else array
    if turned.shape != shape:
      raise ValueError(
        f"{names[index]} is {array.shape} in the file, in the model's order {turned.shape}; the "
        f"model's {path}/{leaf} is {shape}. Make the model with as many classes as the file has, "
        "by as many class names"
      )
    new[index] = turned.reshape(new[index].shape)
  return jnp.asarray(np.concatenate(list(new), axis=-1).reshape(base.shape))


def to_ours_order(array: np.ndarray) -> np.ndarray:
  """A torch weight [out, in, *window] as [*window, in, out]."""
  return np.moveaxis(array, (0, 1), (-1, -2)) if array.ndim > 1 else array
