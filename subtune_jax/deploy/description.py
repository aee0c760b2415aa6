"""What a model folder's config.json says: the network, how it sees images, the classes.

    {"format": "subtune_jax.model/1",
     "network": {"name", "options", "dtype", "method"},
     "input": {"image_size", "interpolation", "batch_size",
               "preprocessing": {"mean", "std", "interpolation", "resize"}},
     "class_names": [...],
     "calibration": {"temperature", "gamma", "absent"},
     "trained": {...}, "figures": {...}, "versions": {...}, "created": "...",
     "sha256": {"model.safetensors": "...", "config.json": "..."}}

The last digest is that of the rest of the file, so that an edited one is noticed.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from subtune_jax import methods, models
from subtune_jax.data import choices, decode, preprocess

FORMAT = "subtune_jax.model/1"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
MAX_PIXELS = 1 << 29  # of a batch
_MAX_NUMBER = 10_000  # among a network's options
_MAX_CLASSES = 1_000_000
_DTYPES = ("float32", "bfloat16")


class FolderError(ValueError):
  """A model folder that cannot be read, or is not what it says."""


@dataclasses.dataclass(frozen=True)
class Network:
  """How a network is built.

  Attributes:
    name: one of `models.names()`.
    options: of `models.create`.
    dtype: of the computation, "float32" or "bfloat16".
    method: the one that changed the network (`methods.Declaration.prepare`); "" for none.
    method_options: its options.
  """

  name: str
  options: Mapping[str, Any]
  dtype: str = "float32"
  method: str = ""
  method_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def build(self, num_classes: int, image_size: int) -> tuple[nn.Module, Any]:
    """(model, its variables as shapes). Errors: see `models.create`."""
    options = {"image_size": image_size, **self.options}
    model = models.create(self.name, num_classes, jnp.dtype(self.dtype), **options)
    if len(model.block_names) > _MAX_NUMBER:
      raise ValueError(f"a network of {len(model.block_names)} blocks")
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    if not self.method:
      return model, shapes
    declared = methods.DECLARED[self.method]
    unknown = sorted(set(self.method_options) - set(declared.options))
    if unknown:
      raise ValueError(f"{self.method} has no option {_shown(unknown[0])}")
    given = methods.options_of(declared, self.method_options)
    change, changed = declared.prepare, model
    if change is None or not declared.changes_network(given):
      raise ValueError(f"{self.method} changes no network")

    def prepare(variables: Any) -> Any:
      nonlocal changed
      changed, own = change(model, variables, jax.random.key(0), given)
      return own

    shapes = jax.eval_shape(prepare, shapes)
    return changed, shapes


@dataclasses.dataclass(frozen=True)
class Description:
  """What is needed to use a folder's weights.

  Attributes:
    network: how it is built.
    image_size: see `classifier.Classifier`, as the next four.
    interpolation: of files.
    preprocessing: of images.
    batch_size: images at a time.
    class_names: [num_classes].
    weights_sha256: of the file of weights.
    config: the whole file.
  """

  network: Network
  image_size: int
  interpolation: str
  preprocessing: preprocess.Preprocessing
  batch_size: int
  class_names: tuple[str, ...]
  weights_sha256: str
  config: dict[str, Any]


def digest(config: Mapping[str, Any]) -> str:
  """SHA-256 of a config without its digest of itself."""
  own = {k: v for k, v in config.get("sha256", {}).items() if k != CONFIG}
  text = json.dumps({**config, "sha256": own}, sort_keys=True, ensure_ascii=True)
  return hashlib.sha256(text.encode()).hexdigest()


def parse(config: dict[str, Any]) -> Description:
  """Reads a config.json's content; whatever it names is checked.

  Raises:
    ValueError: a field is missing, of another type or out of range, or the file was edited.
  """
  form = config.get("format")
  if form != FORMAT:
    raise ValueError(f"its format is {_shown(form)}, and {FORMAT!r} is read here")
  sha256 = _field(config, "sha256", dict)
  if _field(sha256, CONFIG, str, "sha256.") != digest(config):
    raise ValueError("it was changed after it was written (its SHA-256 is another)")
  given, seen = _field(config, "network", dict), _field(config, "input", dict)
  image_size = _integer(seen, "image_size", 1, 4096)
  batch_size = _integer(seen, "batch_size", 1, 1 << 20)
  if batch_size * image_size**2 > MAX_PIXELS:
    raise ValueError(f"input: {batch_size} images of {image_size} px at a time are too many")
  interpolation = _field(seen, "interpolation", str, "input.")
  choices.check("interpolation", interpolation, decode.INTERPOLATIONS)
  names = _class_names(config)
  _check_calibration(_field(config, "calibration", dict), len(names))
  return Description(
    _network(given), image_size, interpolation, _preprocessing(seen), batch_size,
    names, _field(sha256, WEIGHTS, str, "sha256."), config,
  )  # fmt: skip


def _network(given: Mapping[str, Any]) -> Network:
  name, method = (_field(given, k, str, "network.") for k in ("name", "method"))
  dtype = _field(given, "dtype", str, "network.")
  choices.check("model", name, models.names())
  choices.check("network.dtype", dtype, _DTYPES)
  if method:
    changing = [name for name, own in methods.DECLARED.items() if own.prepare is not None]
    choices.check("network.method", method, changing)
  options = _field(given, "options", dict, "network.")
  method_options = given.get("method_options", {})
  if not isinstance(method_options, dict):
    raise ValueError(f"network.method_options is {_shown(method_options)}; dict is expected")
  for each in (options, method_options):
    _check_option(each)
  return Network(name, options, dtype, method, method_options)


def _check_option(value: Any) -> None:
  """Bounds the numbers among the options, at any depth."""
  if isinstance(value, dict | list):
    for each in value.values() if isinstance(value, dict) else value:
      _check_option(each)
  elif isinstance(value, int | float) and not abs(value) <= _MAX_NUMBER:
    raise ValueError(f"network.options holds {_shown(value)}; the most is {_MAX_NUMBER}")


def _preprocessing(seen: Mapping[str, Any]) -> preprocess.Preprocessing:
  given = _field(seen, "preprocessing", dict, "input.")
  names = [field.name for field in dataclasses.fields(preprocess.Preprocessing)]
  if sorted(given) != sorted(names):
    raise ValueError(f"input.preprocessing has {_shown(sorted(given))}, wanted {names}")
  for name in ("mean", "std"):
    values = given[name]
    if not isinstance(values, list) or not all(map(_is_finite, values)):
      raise ValueError(f"input.preprocessing.{name} is {_shown(values)}; numbers are expected")
  if given["resize"] is not None and not _is_finite(given["resize"]):
    raise ValueError(f"input.preprocessing.resize is {_shown(given['resize'])}")
  return preprocess.Preprocessing(**given)


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
  names = _field(config, "class_names", list)
  if not 1 <= len(names) <= _MAX_CLASSES or not all(isinstance(name, str) for name in names):
    raise ValueError(f"class_names is {_shown(names)}; a list of names is expected")
  if len(set(names)) < len(names):
    raise ValueError("class_names has a name twice")
  return tuple(names)


def _check_calibration(kept: Mapping[str, Any], num_classes: int) -> None:
  temperature, gamma = kept.get("temperature"), kept.get("gamma")
  if temperature is not None and not (_is_finite(temperature) and temperature > 0):
    raise ValueError(f"calibration.temperature is {_shown(temperature)}; a positive number or null")
  if gamma is None:
    return
  absent = kept.get("absent")
  if not _is_finite(gamma) or not isinstance(absent, list):
    raise ValueError(f"calibration: gamma {_shown(gamma)}, absent {_shown(absent)}")
  if not all(type(own) is int and 0 <= own < num_classes for own in absent):
    raise ValueError(f"calibration.absent is {_shown(absent)}; numbers of classes are expected")


def _field(given: Mapping[str, Any], name: str, kind: type, where: str = "") -> Any:
  if name not in given:
    raise ValueError(f"{where}{name} is missing")
  if not isinstance(given[name], kind):
    raise ValueError(f"{where}{name} is {_shown(given[name])}; {kind.__name__} is expected")
  return given[name]


def _integer(given: Mapping[str, Any], name: str, least: int, most: int) -> int:
  value = _field(given, name, int, "input.")
  if isinstance(value, bool) or not least <= value <= most:
    raise ValueError(f"input.{name} is {_shown(value)}; allowed: {least} to {most}")
  return value


def _is_finite(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 80 else f"{text[:80]}..."
