"""The preprocessing that a JSON file beside the weights tells: a hub's, or a model folder's."""

from collections.abc import Callable, Mapping
import json
import pathlib
from typing import Any

import numpy as np

from subtune_jax.data import preprocess
from subtune_jax.weights import errors

_MAX_BYTES = 16 * 2**20
_PILLOW_FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}


def read(path: pathlib.Path) -> preprocess.Preprocessing | None:
  """Returns what a JSON file beside says: Hugging Face's, timm's or a model folder's.

  Args:
    path: of the file of weights.

  Returns:
    None where neither file lies beside the weights, or they say nothing of it.

  Raises:
    WeightsError: such a file that cannot be read.
  """
  readers: tuple[tuple[str, Callable[[Mapping[str, Any]], Any]], ...] = (
    ("preprocessor_config.json", _transformers),
    ("config.json", _own),
    ("config.json", _timm),
  )
  for name, reader in readers:
    beside = path.parent / name
    config = read_json(beside)
    if config is not None:
      try:
        found = reader(config)
      except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise errors.WeightsError(f"{beside} says no preprocessing that is understood: {e}") from e
      if found is not None:
        return found
  return None


def read_json(path: pathlib.Path) -> Mapping[str, Any] | None:
  """Returns the object in a JSON file; None where there is no such file.

  Raises:
    WeightsError: it cannot be read, is too large, or holds something else.
  """
  if not path.exists():
    return None
  try:
    with path.open("rb") as f:
      content = f.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
      raise ValueError(f"it has more than {_MAX_BYTES} bytes")
    found = json.loads(content, object_pairs_hook=_once, parse_constant=_no_constant)
    if not isinstance(found, dict):
      raise ValueError(f"it holds a {type(found).__name__}, an object is expected")
  except (OSError, ValueError, RecursionError) as e:
    raise errors.WeightsError(
      f"{path} beside the weights cannot be read: {e}; get it again, or move it away"
    ) from e
  return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError(f"a key is written twice among {errors.shown([key for key, _ in pairs])}")
  return found


def _no_constant(name: str) -> float:
  raise ValueError(f"{name} is not a number of JSON")


def _bytes(values: Any, scale: float = 255.0) -> tuple[float, ...]:
  return tuple(float(v) * scale for v in np.atleast_1d(values))


def _transformers(config: Mapping[str, Any]) -> preprocess.Preprocessing | None:
  if "image_mean" not in config:
    return None
  scale = 1.0
  if config.get("do_rescale", True):
    scale = 1.0 / float(config.get("rescale_factor", 1 / 255))
  mean, std = config["image_mean"], config["image_std"]
  if config.get("do_normalize") is False:
    mean, std = (0.0,), (1.0,)
  size = config.get("size", {})
  short = size.get("shortest_edge") if isinstance(size, dict) else None
  return preprocess.Preprocessing(
    _bytes(mean, scale),
    _bytes(std, scale),
    _PILLOW_FILTERS[config.get("resample", 2)],
    _share(config, short),
  )


def is_own(config: Mapping[str, Any]) -> bool:
  """Whether a config.json is that of a model folder of this library (`deploy.folder`)."""
  return str(config.get("format", "")).startswith("subtune_jax.model/")


def _own(config: Mapping[str, Any]) -> preprocess.Preprocessing | None:
  return preprocess.Preprocessing(**config["input"]["preprocessing"]) if is_own(config) else None


def _share(config: Mapping[str, Any], short: int | None) -> float | None:
  """The share that a centre crop keeps; None where the image is resized to a square."""
  if config.get("crop_pct"):  # ConvNeXt
    return float(config["crop_pct"])
  crop = config.get("crop_size")
  if not config.get("do_center_crop") or not crop or not short:
    return None
  return (crop["height"] if isinstance(crop, dict) else crop) / short


def _timm(config: Mapping[str, Any]) -> preprocess.Preprocessing | None:
  said = config.get("pretrained_cfg")
  if not said or "mean" not in said:
    return None
  return preprocess.Preprocessing(
    _bytes(said["mean"]),
    _bytes(said["std"]),
    said.get("interpolation", "bicubic"),
    float(said.get("crop_pct", 0.875)),
  )
