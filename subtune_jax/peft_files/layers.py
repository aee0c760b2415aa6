"""Which module of a torch network each module of a Flax model is, by name."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from flax import linen as nn
from flax import nnx, traverse_util

from subtune_jax import nearest
from subtune_jax.models import vit
from subtune_jax.weights import errors, naming, timm_config
from subtune_jax.weights.naming import base

LAYOUTS = ("timm", "torchvision", "transformers", "transformers4")
# Titles of the naming schemes of networks as transformers has them in memory, before 5 and since.
_TRANSFORMERS: dict[str, tuple[str, ...]] = {
  "transformers4": ("transformers ViT", "transformers DINOv2", "transformers ResNet"),
  "transformers": ("transformers ViT's state_dict", "transformers DINOv2's state_dict",
                   "transformers ResNet"),
}  # fmt: skip
_WEIGHTS = ("kernel", "scale")

Names = Mapping[str, str | tuple[str, ...]]


class Layers(NamedTuple):
  """Modules by name.

  Attributes:
    title: of the names, for errors.
    names: our path -> those of the torch modules, whose outputs lie side by side in ours.
    leaves: our path -> leaf -> "weight" or "bias".
  """

  title: str
  names: dict[str, tuple[str, ...]]
  leaves: dict[str, dict[str, str]]

  def part(self, name: str) -> tuple[str, int, int] | None:
    """(our path, which of its parts, of how many) of a torch module; None: there is none."""
    return self.parts().get(name)

  def parts(self) -> dict[str, tuple[str, int, int]]:
    """`part` of every torch module."""
    return {
      name: (path, i, len(names))
      for path, names in self.names.items()
      for i, name in enumerate(names)
    }


def leaves_of(model: nn.Module | Any, variables: Any) -> dict[str, Any]:
  """'/'-path -> leaf of the parameters of a Linen or an NNX model."""
  if isinstance(model, nn.Module):
    return traverse_util.flatten_dict(nn.meta.unbox(variables["params"]), sep="/")
  return {
    "/".join(map(str, path)): leaf[...] if isinstance(leaf, nnx.Variable) else leaf
    for path, leaf in nnx.to_flat_state(variables)
  }


def of_names(names: Names, paths: Iterable[str]) -> Layers:
  """Layers by a table of the caller: our module path -> torch's name, or names side by side.

  Raises:
    ValueError: a path that the model does not have, or a name that is given twice.
  """
  leaves = _by_module(paths)
  made = {path: (own,) if isinstance(own, str) else tuple(own) for path, own in names.items()}
  for path in made:
    if path not in leaves:
      near = ", ".join(nearest.names(path, leaves)) or ", ".join(sorted(leaves)[:5])
      raise ValueError(f"names has {path!r}, which the model lacks; the nearest modules are {near}")
  layers = Layers("names", made, {path: leaves[path] for path in made})
  if len(layers.parts()) < sum(map(len, made.values())):
    raise ValueError("names gives one torch module to two modules; give each its own")
  return layers


def _by_module(paths: Iterable[str]) -> dict[str, dict[str, str]]:
  found: dict[str, dict[str, str]] = {}
  for path in paths:
    module, _, leaf = path.rpartition("/")
    if leaf in (*_WEIGHTS, "bias"):
      found.setdefault(module, {})[leaf] = "bias" if leaf == "bias" else "weight"
  return found


def of_layout(model: nn.Module, paths: Iterable[str], layout: str) -> Layers:
  """Layers of one of the library's backbones under the names of another library.

  Raises:
    ValueError: an unknown layout, or the other library has no such network.
  """
  if layout not in LAYOUTS:
    near = nearest.names(layout, LAYOUTS)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"layout is {layout!r}; allowed: {', '.join(LAYOUTS)}{hint}")
  wanted, prefix = _TRANSFORMERS.get(layout, ()), ""
  if not wanted:
    wanted = (_of_timm(model, layout),)
  elif isinstance(model, vit.ViT):
    prefix = "dinov2." if model.layer_scale else "vit."
  else:
    prefix = "resnet."
  schemes = [s for s in naming.schemes(type(model)) if s.title in wanted]
  if layout in _TRANSFORMERS and isinstance(model, vit.ViT):
    schemes = [s for s in schemes if ("DINOv2" in s.title) == model.layer_scale]
  if not schemes:
    raise ValueError(f"{layout} has no names for a {type(model).__name__}; give names=")
  return of_scheme(schemes[0], model, paths, prefix)


def _of_timm(model: nn.Module, layout: str) -> str:
  """The naming scheme; a network of sizes that timm's function does not build has its names too."""
  try:
    return getattr(timm_config, layout)(model).scheme
  except ValueError:
    schemes = {s.title for s in naming.schemes(type(model))}
    named = [title for title in schemes if layout in title]
    if len(named) != 1:
      raise
    return named[0]


def of_scheme(scheme: base.Scheme, model: nn.Module, paths: Iterable[str], prefix: str) -> Layers:
  """Layers under the names of a naming scheme of weights, without those that have none there."""
  names: dict[str, tuple[str, ...]] = {}
  for path in paths:
    module, _, leaf = path.rpartition("/")
    if leaf not in _WEIGHTS:
      continue
    source = scheme.source(model, f"params/{path}", prefix)
    if source is not None and all(key.endswith(".weight") for key in source.keys):
      names[module] = tuple(key.removesuffix(".weight") for key in source.keys)
  leaves = _by_module(paths)
  return Layers(scheme.title, names, {path: leaves[path] for path in names})


def recognise(model: Any, paths: Iterable[str], modules: Iterable[str], where: str) -> Layers:
  """The layers of the naming scheme that knows most of the modules of a file.

  Raises:
    WeightsError: no scheme knows one of them.
  """
  wanted, paths = set(modules), tuple(paths)
  best, most = None, 0
  schemes = naming.schemes(type(model))
  for scheme in schemes:
    for prefix in scheme.prefixes:
      layers = of_scheme(scheme, model, paths, prefix)
      known = len(wanted & set(layers.parts()))
      if known > most:
        best, most = layers, known
  if best is None:
    some = ", ".join(errors.quote(name) for name in sorted(wanted)[:4]) or "none"
    titles = "; ".join(s.title for s in schemes)
    fix = f"the names known are those of: {titles}" if titles else "none are known"
    raise errors.WeightsError(
      f"{where}: this {type(model).__name__} has none of its layers ({some}); {fix}. Read it into "
      "the model that it was made for, or give names={path: torch's name}"
    )
  return best
