"""Names of ResNet's tensors: torchvision's, those of MoCo's and DINO's files, transformers'.

In all of them a convolution is [out, in, h, w] and a linear layer [out, in].
"""

from collections.abc import Callable, Iterable

from flax import linen as nn

from subtune_jax.data import preprocess
from subtune_jax.models import resnet
from subtune_jax.weights.naming import base

_FIELDS = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_LINEAR = ("weight", "bias")
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_STATISTICS = _NORM[2:]

_MOCO, _MOMENTUM = "encoder_q.", "encoder_k."
_MOCO_V3, _MOMENTUM_V3 = "base_encoder.", "momentum_encoder."


def conv_bn(path: str, prefix: str) -> base.Source:
  """Returns where a variable of a layer lies in torchvision's names, which CLIP has too.

  Args:
    path: of a variable of a unit or the stem, such as "params/block1/unit1/conv1/bn/scale".
    prefix: of the names in the file.
  """
  _, *where, layer = path.partition("/bn/")[0].removesuffix("/kernel").split("/")
  return _tensor(path, *(prefix + name for name in _torchvision(where, layer)))


def _torchvision(where: list[str], layer: str) -> tuple[str, str]:
  """Returns the names of a layer's convolution and BatchNorm."""
  inside = "" if where == ["stem"] else "layer{}.{}.".format(*_numbers(where))
  if layer == "downsample":
    return f"{inside}downsample.0", f"{inside}downsample.1"
  return inside + layer, inside + layer.replace("conv", "bn")


def _transformers(where: list[str], layer: str) -> tuple[str, str]:
  if where == ["stem"]:
    inside = "embedder.embedder"
  else:
    stage, unit = _numbers(where)
    inside = f"encoder.stages.{stage - 1}.layers.{unit}."
    number = int(layer.removeprefix("conv")) - 1 if layer != "downsample" else None
    inside += "shortcut" if number is None else f"layer.{number}"
  return f"{inside}.convolution", f"{inside}.normalization"


def _numbers(where: list[str]) -> tuple[int, int]:
  """Returns a stage's number from 1 and a unit's from 0."""
  stage, unit = where
  return int(stage.removeprefix("block")), int(unit.removeprefix("unit")) - 1


def _tensor(path: str, conv: str, norm: str) -> base.Source:
  field = path.rpartition("/")[2]
  if field == "kernel":
    return base.ordered(f"{conv}.weight", 2, 3, 1, 0)
  return base.ordered(f"{norm}.{_FIELDS[field]}")


def _linear(path: str, name: str) -> base.Source:
  if path.endswith("/kernel"):
    return base.ordered(f"{name}.weight", 1, 0)
  return base.ordered(f"{name}.bias")


def _source(model: nn.Module, path: str, prefix: str) -> base.Source:
  del model
  return _linear(path, f"{prefix}fc") if path in base.HEAD else conv_bn(path, prefix)


def _headless_source(model: nn.Module, path: str, prefix: str) -> base.Source | None:
  """Of a self-supervised encoder, whose `fc` is not a classifier."""
  return None if path in base.HEAD else _source(model, path, prefix)


def _transformers_source(model: nn.Module, path: str, prefix: str) -> base.Source:
  del model
  if path in base.HEAD:
    return _linear(path, f"{prefix.removesuffix('resnet.')}classifier.1")
  _, *where, layer = path.partition("/bn/")[0].removesuffix("/kernel").split("/")
  return _tensor(path, *(prefix + name for name in _transformers(where, layer)))


# ------------------------------------------------------------------ what is left unread


def _group(what: str, prefix: str, *layers: tuple[str, Iterable[str]]) -> base.Dropped:
  """The fields of layers: of `("fc.0", ("weight", "bias"))`, `fc.0.weight` and `fc.0.bias`."""
  keys = (f"{prefix}{name}.{field}" for name, fields in layers for field in fields)
  return base.Dropped(what, frozenset(keys))


def _counters(model: nn.Module, prefix: str, wanted: frozenset[str]) -> Iterable[base.Dropped]:
  del model, prefix
  return (base.counters(wanted),)


def _dino(model: nn.Module, prefix: str, wanted: frozenset[str]) -> Iterable[base.Dropped]:
  """Counters, and DINO's projection beside a "backbone.", with BatchNorm in it or without.

  `mlp.4` has a weight and a bias in both, as a linear layer or as BatchNorm.
  """
  del model
  yield base.counters(wanted)
  if prefix.endswith("backbone."):
    outer = prefix.removesuffix("backbone.") + "head."
    last = ("last_layer", ("weight_g", "weight_v"))
    yield _group("projection", outer, ("mlp.0", _LINEAR), ("mlp.4", _LINEAR), last)
    yield _group("projection without BatchNorm", outer, ("mlp.2", _LINEAR))
    rest = (("mlp.1", _NORM), ("mlp.3", _LINEAR), ("mlp.4", _STATISTICS), ("mlp.6", _LINEAR))
    yield _group("projection with BatchNorm", outer, *rest)


def _momentum(prefix: str, other: str, wanted: frozenset[str]) -> Iterable[base.Dropped]:
  """The momentum encoder's copies of the wanted tensors, and its counters."""
  copies = frozenset(other + key.removeprefix(prefix) for key in wanted)
  yield base.Dropped("momentum encoder", copies)
  yield base.counters(copies)


def _moco(model: nn.Module, prefix: str, wanted: frozenset[str]) -> Iterable[base.Dropped]:
  """MoCo v1 and v2: both encoders' projections, one layer or two, and the queue."""
  del model
  outer = prefix.removesuffix(_MOCO)
  yield base.counters(wanted)
  yield from _momentum(prefix, outer + _MOMENTUM, wanted)
  for encoder in (prefix, outer + _MOMENTUM):
    yield _group("projection of MoCo v1", encoder, ("fc", _LINEAR))
    yield _group("projection of MoCo v2", encoder, ("fc.0", _LINEAR), ("fc.2", _LINEAR))
  yield base.Dropped("queue", frozenset((f"{outer}queue", f"{outer}queue_ptr")))


def _moco_v3(model: nn.Module, prefix: str, wanted: frozenset[str]) -> Iterable[base.Dropped]:
  """MoCo v3: both encoders' projections and the predictor, whose last BatchNorm came and went."""
  del model
  outer = prefix.removesuffix(_MOCO_V3)
  yield base.counters(wanted)
  yield from _momentum(prefix, outer + _MOMENTUM_V3, wanted)

  def mlp(name: str) -> tuple[tuple[str, Iterable[str]], ...]:
    return (f"{name}.0", ("weight",)), (f"{name}.1", _NORM), (f"{name}.3", ("weight",))

  for encoder in (prefix, outer + _MOMENTUM_V3):
    yield _group("projection", encoder, *mlp("fc"), ("fc.4", _STATISTICS))
  yield _group("predictor", outer, *mlp("predictor"))
  yield _group("predictor's last BatchNorm", outer, ("predictor.4", _STATISTICS))


def _scheme(
  title: str,
  source: Callable[[nn.Module, str, str], base.Source | None] = _headless_source,
  prefixes: tuple[str, ...] = ("",),
  dropped: Callable[[nn.Module, str, frozenset[str]], Iterable[base.Dropped]] = _counters,
  preset: str | None = None,
) -> base.Scheme:
  preprocessing = preprocess.PRESETS[preset] if preset else None
  return base.Scheme(title, resnet.ResNet, source, prefixes, dropped, preprocessing)


# The first and the last name the tensors of any training; their preprocessing differs.
SCHEMES: tuple[base.Scheme, ...] = (
  _scheme("torchvision, timm or DINO ResNet", _source, dropped=_dino),
  _scheme(
    "MoCo v1 or v2 ResNet",
    prefixes=(f"module.{_MOCO}", _MOCO),
    dropped=_moco,
    preset="imagenet",
  ),
  _scheme(
    "MoCo v3 ResNet",
    prefixes=(f"module.{_MOCO_V3}", _MOCO_V3),
    dropped=_moco_v3,
    preset="imagenet",
  ),
  _scheme("transformers ResNet", _transformers_source, ("", "resnet.")),
)
