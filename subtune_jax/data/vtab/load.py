"""Loads a split of a VTAB-1k task."""

import functools

import numpy as np
from PIL import Image

from subtune_jax.data import choices, dataset, decode, tfds_source
from subtune_jax.data.vtab import tasks

SPLITS = ("train", "validation", "trainval", "test")
VERSION = 1  # Of the pixels; raise it when the same files would give others.
OFFICIAL = decode.NO_ANTIALIAS
INTERPOLATIONS = tuple(decode.INTERPOLATIONS)


def load(
  task: tasks.Task, split: str, image_size: int = 224, *, interpolation: str = OFFICIAL
) -> dataset.Dataset:
  """Loads one split of a task.

  Greyscale images are repeated to three channels. Every image is its own group. The aspect ratio is
  ignored, as in the official code.

  Args:
    task: of `tasks.TASKS`, or of `tasks.EXTRA`.
    split: "train" (800 images), "validation" (200), "trainval" (both, train first) or "test".
    image_size: height and width of the images in pixels, 224 in VTAB.
    interpolation: "bilinear_no_antialias", VTAB's, rounded to uint8; or antialiased "bilinear",
      "bicubic" or "lanczos".

  Returns:
    A `Dataset`, in the order on disk.

  Raises:
    errors.MissingDataError: the data set is not prepared; the message has the command.
    ValueError: an unknown split or interpolation, or an image size that is not positive.
  """
  choices.check("split", split, SPLITS)
  choices.check("interpolation", interpolation, INTERPOLATIONS)
  if not isinstance(image_size, int) or image_size < 1:
    raise ValueError(f"image_size={image_size!r} must be a positive integer, in pixels.")
  name = full_name(task)
  builder = tfds_source.open_builder(task.source, name)
  columns = tfds_source.read(
    builder,
    task.splits()[split],
    key={
      "name": name,
      "split": split,
      "image_size": image_size,
      "interpolation": interpolation,
      "version": VERSION,
    },
    label=task.label,
    resize=functools.partial(_resize, size=image_size, interpolation=interpolation),
    image_scale=task.image_scale,
  )
  return dataset.Dataset(
    images=columns.images,
    labels=columns.labels,
    groups=columns.ids,
    ids=columns.ids,
    class_names=_class_names(task, builder),
    name=name,
    split=split,
  )


def full_name(task: tasks.Task) -> str:
  """Returns the name in the registry: "vtab/dtd", but "fashion_mnist"."""
  return f"vtab/{task.name}" if task.name in tasks.TASKS else task.name


def _class_names(task: tasks.Task, builder) -> tuple[str, ...]:
  names = task.class_names or tfds_source.class_names(builder)
  if len(names) != task.num_classes:
    raise ValueError(
      f"{full_name(task)} has {task.num_classes} classes, but {builder.info.full_name} names "
      f"{len(names)}; prepare version {task.source.version} again."
    )
  return names


def _resize(image: np.ndarray, *, size: int, interpolation: str) -> np.ndarray:
  return decode.resized(Image.fromarray(image), size, interpolation)
