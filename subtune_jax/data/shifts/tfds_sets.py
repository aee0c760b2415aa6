"""The shift benchmarks' data sets that TensorFlow Datasets has."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import numpy as np
from PIL import Image

from subtune_jax.data import choices, dataset, decode, preprocess, tfds_source
from subtune_jax.data.shifts import maps

VERSION = 1  # Of the pixels; raise it when the same files would give others.
SEVERITIES = (1, 2, 3, 4, 5)
# Ours, as in the paper's files -> in TFDS's cifar10_corrupted, where two differ.
CORRUPTIONS = {
  name: name
  for name in (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression", "gaussian_blur", "saturate", "spatter", "speckle_noise",
  )
} | {"glass_blur": "frosted_glass_blur", "elastic_transform": "elastic"}  # fmt: skip
COMMON = tuple(CORRUPTIONS)[:15]  # The last four are for choosing hyper-parameters.


@dataclasses.dataclass(frozen=True)
class TfdsSet:
  """A data set.

  Attributes:
    source: in TFDS.
    splits: our split -> split expression; "trainval" follows from train and validation.
    class_names: where TFDS has none; empty takes TFDS's, or `keep`.
    keep: the classes to keep, in their new order; empty keeps all.
    crop: share of the resized shorter side that the centre crop keeps; None resizes to a square.
  """

  source: tfds_source.Source
  splits: Mapping[str, str]
  class_names: tuple[str, ...] = ()
  keep: tuple[str, ...] = ()
  crop: float | None = None

  def all_splits(self) -> dict[str, str]:
    """Returns the splits, with "trainval" where there is a validation split."""
    splits = dict(self.splits)
    if "validation" in splits:
      splits["trainval"] = f"{splits['train']}+{splits['validation']}"
    return splits


_IMAGENET_BY_HAND = (
  "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from "
  "https://image-net.org/download-images (needs an account), not unpacked"
)
_TEST_ONLY = {"test": "test"}


def _imagenet(name: str, version: str, download: str, splits: Mapping[str, str], **more: Any):
  manual, needs = more.get("manual", ""), more.get("needs", ())
  source = tfds_source.Source(name, version, download, manual, needs)
  return TfdsSet(source, splits, crop=224 / 256)


def _domainnet(domain: str, download: str, keep: tuple[str, ...]) -> TfdsSet:
  splits = {"train": "train[:90%]", "validation": "train[90%:]", "test": "test"}
  source = tfds_source.Source(f"domainnet/{domain}", "1.0.0", download)
  return TfdsSet(source, splits, keep=keep)


def _corrupted() -> dict[str, TfdsSet]:
  sets = {}
  for ours, theirs in CORRUPTIONS.items():
    for severity in SEVERITIES:
      sets[f"cifar10_c/{ours}/{severity}"] = TfdsSet(
        tfds_source.Source(f"cifar10_corrupted/{theirs}_{severity}", "1.0.0", "2.9 GB (once)"),
        _TEST_ONLY,
        maps.CIFAR10,
      )
      # As in the studies that adapt to one corruption: 1,000 of its test images are labelled.
      sets[f"cifar10_c_1k/{ours}/{severity}"] = dataclasses.replace(
        sets[f"cifar10_c/{ours}/{severity}"],
        splits={"train": "test[:800]", "validation": "test[800:1000]", "test": "test[1000:]"},
      )
      sets[f"imagenet_c/{ours}/{severity}"] = _imagenet(
        f"imagenet2012_corrupted/{ours}_{severity}",
        "3.1.0",
        "155 GB (once; made from ImageNet's validation images)",
        {"test": "validation"},
        manual=_IMAGENET_BY_HAND,
        needs=("cv2", "scipy", "skimage"),
      )
  return sets


_DOMAINS = {
  "real": "5.6 GB",
  "painting": "3.7 GB",
  "clipart": "1.3 GB",
  "quickdraw": "0.4 GB",
  "infograph": "4.0 GB",
  "sketch": "2.5 GB",
}
SENTRY_DOMAINS = ("sketch", "real", "clipart", "painting")

SETS: dict[str, TfdsSet] = {
  "cifar10": TfdsSet(
    tfds_source.Source("cifar10", "3.0.2", "170 MB"),
    {"train": "train[:45000]", "validation": "train[45000:]", "test": "test"},
  ),
  "cifar10_1": TfdsSet(
    tfds_source.Source("cifar10_1/v6", "1.1.0", "6 MB"), _TEST_ONLY, maps.CIFAR10
  ),
  "cifar10_1/v4": TfdsSet(
    tfds_source.Source("cifar10_1/v4", "1.1.0", "6 MB"), _TEST_ONLY, maps.CIFAR10
  ),
  "stl10": TfdsSet(
    tfds_source.Source("stl10", "1.0.0", "2.6 GB"),
    {"train": "train[:90%]", "validation": "train[90%:]", "test": "test"},
    maps.STL10,
  ),
  # What `fashion_mnist`, of 1,000 labelled images, leaves out: to pretrain on.
  "fashion_mnist/rest": TfdsSet(
    tfds_source.Source("fashion_mnist", "3.0.1", "31 MB"),
    {"train": "train[1000:54000]", "validation": "train[54200:]", "test": "test"},
  ),
  "imagenet": _imagenet(
    "imagenet2012",
    "5.1.0",
    "155 GB",
    {"train": "train[:99%]", "validation": "train[99%:]", "test": "validation"},
    manual=_IMAGENET_BY_HAND,
  ),
  "imagenet_v2": _imagenet("imagenet_v2/matched-frequency", "3.0.0", "1.3 GB", _TEST_ONLY),
  "imagenet_v2/threshold-0.7": _imagenet(
    "imagenet_v2/threshold-0.7", "3.0.0", "1.2 GB", _TEST_ONLY
  ),
  "imagenet_v2/topimages": _imagenet("imagenet_v2/topimages", "3.0.0", "1.2 GB", _TEST_ONLY),
  "imagenet_r": _imagenet("imagenet_r", "0.2.0", "2.2 GB", _TEST_ONLY),
  "imagenet_a": _imagenet("imagenet_a", "0.1.0", "0.7 GB", _TEST_ONLY),
  "imagenet_sketch": _imagenet("imagenet_sketch", "1.0.0", "7.6 GB", _TEST_ONLY),
  **{f"domainnet/{name}": _domainnet(name, size, ()) for name, size in _DOMAINS.items()},
  **{
    f"domainnet40/{name}": _domainnet(name, _DOMAINS[name], maps.DOMAINNET40)
    for name in SENTRY_DOMAINS
  },
  **_corrupted(),
}


def load(
  name: str, split: str, image_size: int, *, interpolation: str = "bicubic"
) -> dataset.Dataset:
  """Loads one split of a data set; every image is its own group.

  Photographs of ImageNet's kind are resized by their shorter side and cropped at the centre, the
  others are resized to a square.

  Args:
    name: of `SETS`.
    split: "train", "validation", "trainval" or "test", of those that the data set has.
    image_size: height and width, in pixels.
    interpolation: "bicubic", "bilinear" or "lanczos", antialiased as in Pillow.

  Raises:
    errors.MissingDataError: the data set is not prepared; the message has the command.
    ValueError: an unknown name, split or interpolation, or an image size that is not positive.
  """
  choices.check("data set", name, SETS)
  entry = SETS[name]
  choices.check(f"split of {name!r}", split, entry.all_splits())
  decode.check_size(image_size, interpolation)
  builder = tfds_source.open_builder(entry.source, name)
  native = entry.class_names or tfds_source.class_names(builder)
  columns = tfds_source.read(
    builder,
    entry.all_splits()[split],
    key={
      "name": name,
      "split": split,
      "image_size": image_size,
      "interpolation": interpolation,
      "version": VERSION,
    },
    label=_label(native, entry.keep),
    resize=_resize(image_size, interpolation, entry.crop),
  )
  return dataset.Dataset(
    images=columns.images,
    labels=columns.labels,
    groups=columns.ids,
    ids=columns.ids,
    class_names=entry.keep or native,
    name=name,
    split=split,
  )


def _label(native: tuple[str, ...], keep: tuple[str, ...]) -> Callable[[dict[str, Any]], int]:
  if not keep:
    return lambda example: int(example["label"])
  label_map = maps.by_name(native, keep)
  return lambda example: label_map[int(example["label"])]


def _resize(
  size: int, interpolation: str, crop: float | None
) -> Callable[[np.ndarray], np.ndarray]:
  how = preprocess.Preprocessing((0.0,), (1.0,), interpolation, crop)
  return lambda image: preprocess.resize_and_crop(Image.fromarray(image), how, size)


ENTRIES = {name: functools.partial(load, name) for name in SETS}
SOURCES = {name: entry.source for name, entry in SETS.items()}
