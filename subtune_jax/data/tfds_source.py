"""The one place that opens data sets of TensorFlow Datasets (TFDS): prepared ones, read-only.

Nothing here downloads: `prepare.py` does, when asked. TensorFlow is imported only when a prepared
data set is opened, without its start-up text and without taking a GPU.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any

import numpy as np

from subtune_jax.data import cache, errors

_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "GRPC_VERBOSITY": "ERROR"}


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set in TFDS.

  Attributes:
    name: the builder, with its configuration where there are several: "sun397/tfds".
    version: that we read, such as "4.0.0".
    download: how much preparing fetches, in words.
    manual: what has to be fetched by hand; empty if nothing.
    needs: modules that preparing imports and TFDS does not install.
  """

  name: str
  version: str
  download: str
  manual: str = ""
  needs: tuple[str, ...] = ()

  @property
  def path(self) -> pathlib.Path:
    """Where the prepared data set is looked for."""
    return data_dir() / self.name / self.version

  def is_prepared(self) -> bool:
    """Returns whether it is there, without importing TFDS."""
    return (self.path / "dataset_info.json").is_file()

  def missing_modules(self) -> list[str]:
    """Returns the modules that preparing needs and that are not installed."""
    return [module for module in self.needs if importlib.util.find_spec(module) is None]


def data_dir() -> pathlib.Path:
  """Returns TFDS's folder: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
  return pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def manual_dir() -> pathlib.Path:
  """Returns TFDS's folder for files fetched by hand."""
  return data_dir() / "downloads" / "manual"


def import_tfds() -> Any:
  """Imports TFDS quietly and returns the module.

  Raises:
    ImportError: it or TensorFlow is not installed.
  """
  for name, value in _QUIET.items():
    os.environ.setdefault(name, value)
  try:
    with _silent_stderr():
      import tensorflow as tf
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise ImportError(
      f"{error}. Data sets other than the bundled ones and image folders are read with TensorFlow "
      "Datasets: pip install 'subtune-jax[tfds]'"
    ) from error
  tf.config.set_visible_devices([], "GPU")
  tf.get_logger().setLevel("ERROR")
  return tfds


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
  """Drops what is written to file descriptor 2, or writes it after all when the block raises.

  TensorFlow's C++ code greets before its logging is set up, whatever the log level.
  """
  if "tensorflow" in sys.modules:
    yield
    return
  sys.stderr.flush()
  saved = os.dup(2)
  with tempfile.TemporaryFile() as file:
    os.dup2(file.fileno(), 2)
    try:
      yield
    except BaseException:
      file.seek(0)
      os.write(saved, file.read())
      raise
    finally:
      os.dup2(saved, 2)
      os.close(saved)


def missing(source: Source, name: str) -> errors.MissingDataError:
  """Returns the error for a data set that is not prepared, with what to do.

  Args:
    source: the data set.
    name: ours, that `python -m subtune_jax.data.prepare` takes.
  """
  command = f"python -m subtune_jax.data.prepare {name}"
  fix = f"To get it: {command}"
  if source.manual:
    fix = f"By hand, put into {manual_dir()}: {source.manual}. Then: {command}"
  if source.missing_modules():
    fix += f" (it needs these, not installed here: {', '.join(source.missing_modules())})"
  return errors.missing(
    f"{name} (TFDS {source.name} {source.version})",
    source.path,
    f"{fix}. If it is in another folder, set TFDS_DATA_DIR.",
    download=source.download,
  )


def open_builder(source: Source, name: str) -> Any:
  """Returns the TFDS builder of a prepared data set.

  Raises:
    errors.MissingDataError: it is not prepared.
  """
  if not source.is_prepared():
    raise missing(source, name)
  tfds = import_tfds()
  return tfds.builder(f"{source.name}:{source.version}", data_dir=data_dir(), try_gcs=False)


def examples(builder: Any, split: str, *, skip_images: bool = False) -> Iterator[dict[str, Any]]:
  """Yields the examples of a split in their order on disk, as NumPy values.

  Args:
    builder: of `open_builder`.
    split: a split expression, such as "train[:800]+validation[:200]".
    skip_images: leave "image" encoded, for a fast pass over the labels.
  """
  tfds = import_tfds()
  decoders = {"image": tfds.decode.SkipDecoding()} if skip_images else None
  config = tfds.ReadConfig(interleave_cycle_length=1, add_tfds_id=True, try_autocache=False)
  data = builder.as_dataset(split=split, shuffle_files=False, read_config=config, decoders=decoders)
  yield from tfds.as_numpy(data)


def num_examples(builder: Any, split: str) -> int:
  """Returns how many examples a split expression gives."""
  return builder.info.splits[split].num_examples


def class_names(builder: Any, feature: str = "label") -> tuple[str, ...]:
  """Returns the names of a label's classes, "0", "1", ... where the data set names none."""
  return tuple(builder.info.features[feature].names)


def rgb(image: np.ndarray, scale: int = 1) -> np.ndarray:
  """Returns [h, w, 3] uint8; one channel is repeated, values are multiplied with `scale`."""
  image = np.asarray(image)
  if scale != 1:
    image = (image.astype(np.int64) * scale).astype(np.uint8)
  return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


@dataclasses.dataclass(frozen=True)
class Columns:
  """What a split is read into: images [n, size, size, 3] uint8, labels [n] int32, ids [n] str."""

  images: np.ndarray
  labels: np.ndarray
  ids: np.ndarray


def read(
  builder: Any,
  split: str,
  *,
  key: Mapping[str, Any],
  label: Callable[[dict[str, Any]], int],
  resize: Callable[[np.ndarray], np.ndarray],
  image_scale: int = 1,
) -> Columns:
  """Reads a split into arrays, in the order on disk.

  The labels are read each time. The resized images are kept in the cache where they fit
  (`cache.fits`), and are built in memory or in a scratch file where they do not.

  Args:
    builder: of `open_builder`.
    split: a split expression.
    key: "name", "split", "image_size" and "interpolation", which name the images in the cache.
    label: from an example to its class; a negative one leaves the example out.
    resize: from [h, w, 3] uint8 to [image_size, image_size, 3] uint8.
    image_scale: what stored values are multiplied with to reach 0..255.

  Raises:
    ValueError: no example is left.
    OSError: the images need a scratch file and the disk has no room for it.
  """
  rows = [
    (label(example), example["tfds_id"].decode())
    for example in examples(builder, split, skip_images=True)
  ]
  labels = np.array([row[0] for row in rows], np.int32)
  kept = labels >= 0
  if not kept.any():
    raise ValueError(f"TFDS {builder.info.full_name}, split {split!r}: no example is left.")
  ids = np.array([row[1] for row in rows])[kept]

  def build() -> Iterator[np.ndarray]:
    for keep, example in zip(kept, examples(builder, split), strict=True):
      if keep:
        yield resize(rgb(example["image"], image_scale))[None]

  size = key["image_size"]
  shape = (size, size, 3)
  if cache.fits(len(ids), shape):
    info = (pathlib.Path(builder.data_path) / "dataset_info.json").read_bytes()
    stamp = hashlib.sha256(info + split.encode() + kept.tobytes()).hexdigest()
    images = cache.images({**key, "tfds": stamp}, build, len(ids), shape)
  else:
    images = _scratch((len(ids), *shape))
    for position, image in enumerate(build()):
      images[position] = image[0]
  return Columns(images, labels[kept], ids)


def _scratch(shape: tuple[int, ...]) -> np.ndarray:
  """Returns a uint8 array in an unlinked file in the folder for temporary files."""
  size, folder = int(np.prod(shape, dtype=np.int64)), tempfile.gettempdir()
  free = shutil.disk_usage(folder).free
  if size > free:
    raise OSError(
      f"{shape[0]} images of {shape[1]} x {shape[2]} need {size / 2**30:.1f} GiB in {folder}, "
      f"which has {free / 2**30:.1f}. Set TMPDIR to a larger disk, or ask for a smaller image size."
    )
  with tempfile.TemporaryFile() as file:  # The mapping keeps it until it goes itself.
    return np.memmap(file, np.uint8, "w+", shape=shape)
