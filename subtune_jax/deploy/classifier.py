"""A trained network with what its use needs: classes, preprocessing, how images are resized."""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from subtune_jax.calibration import gamma, scaling
from subtune_jax.data import decode, lazy, preprocess
from subtune_jax.training import engine, evaluate

PyTree = Any
Images = Any  # see `Classifier.images`


class Predictions(NamedTuple):
  """Answers for n images.

  Attributes:
    labels: [n] str, the class of the largest logit.
    probabilities: [n, num_classes] float32, softmax of the logits.
    logits: [n, num_classes] float32.
  """

  labels: np.ndarray
  probabilities: np.ndarray
  logits: np.ndarray


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A trained network that answers for images.

  Attributes:
    model: a backbone of `subtune_jax.models`, with its head.
    variables: {"params", "batch_stats"} of the model; NumPy or JAX arrays.
    preprocessing: mean and std that images are normalised by, in units of 0..255.
    image_size: height and width of the images that the network reads, in pixels.
    interpolation: how files are resized to that square, a key of `data.decode.INTERPOLATIONS`.
    class_names: [num_classes], in the order of the logits.
    batch_size: images at a time; the last bits of a logit may depend on it.
    config: what the folder's config.json holds: network, figures, versions, digests.
  """

  model: Any
  variables: PyTree
  preprocessing: preprocess.Preprocessing
  image_size: int
  interpolation: str
  class_names: tuple[str, ...]
  batch_size: int = 64
  config: dict[str, Any] = dataclasses.field(default_factory=dict)

  def predict(self, images: Images, *, calibrate: bool = False) -> Predictions:
    """Answers for images.

    Args:
      images: paths, Pillow images, or an array; see `images`.
      calibrate: by the gamma or the temperature that the folder keeps, as `calibrated` does.

    Raises:
      ValueError: as of `images` and `calibrated`.
    """
    return self.answer(self.logits(images), calibrate=calibrate)

  def answer(self, logits: np.ndarray, *, calibrate: bool = False) -> Predictions:
    """What logits [n, num_classes] of this network say; see `predict`.

    Raises:
      ValueError: as of `calibrated`.
    """
    if calibrate:
      logits = self.calibrated(logits)
    return Predictions(
      np.array(self.class_names)[evaluate.predictions(logits)],
      evaluate.probabilities(logits).astype(np.float32),
      logits,
    )

  def logits(self, images: Images) -> np.ndarray:
    """[n, num_classes] float32; the arguments and errors of `images`.

    On CPU those of a run's test images are the run's own, bit for bit.
    """
    return self._engine().predict(self.variables, self.images(images))

  def features(self, images: Images) -> np.ndarray:
    """What the head reads, [n, features] float32; the arguments and errors of `images`."""
    return self._run(self.images(images), stop="head")

  def logits_of(self, features: np.ndarray) -> np.ndarray:
    """[n, num_classes] float32 of what `features` returned: as `logits`, but for rounding."""
    return self._run(features, start="head")

  def _run(self, x: Any, **part: str) -> np.ndarray:
    return evaluate.predict(self.model, self.variables, x, **part, **self._engine().options())

  def images(self, images: Images) -> np.ndarray | lazy.LazyImages:
    """Images as the network reads them.

    Args:
      images: a path or a Pillow image, a sequence of them, resized to the square by the decoder of
        the training; or a uint8 array [n, image_size, image_size, 3], or one image of it.

    Returns:
      [n, image_size, image_size, 3] uint8; those of paths are decoded when they are used.

    Raises:
      ValueError: an array of another size or type, something else, or nothing.
      BrokenImageError: a file that cannot be read as an image.
    """
    if isinstance(images, str | os.PathLike | Image.Image):
      images = [images]
    if hasattr(images, "shape") and hasattr(images, "dtype"):
      return self._array(images)
    if isinstance(images, Sequence) and images:
      if all(isinstance(each, str | os.PathLike) for each in images):
        return lazy.from_files(images, self.image_size, self.interpolation)
      if all(isinstance(each, Image.Image) for each in images):
        size = (self.image_size, self.interpolation)
        return np.stack([decode.resized(each, *size) for each in images])
    raise ValueError(
      f"images are {_kind(images)}; give paths, Pillow images, or a uint8 array "
      f"[n, {self.image_size}, {self.image_size}, 3]"
    )

  def calibrated(self, logits: np.ndarray) -> np.ndarray:
    """The logits with gamma added to those of classes absent from the training, or divided by T.

    Raises:
      ValueError: see `check_calibration`.
    """
    kept = self.check_calibration()
    if kept.get("gamma") is not None:
      absent = np.isin(np.arange(len(self.class_names)), kept["absent"])
      return np.asarray(gamma.calibrate(logits, absent, np.float32(kept["gamma"])), np.float32)
    return np.asarray(scaling.apply_temperature(logits, kept["temperature"]), np.float32)

  def check_calibration(self) -> dict[str, Any]:
    """What the folder keeps to calibrate by: "gamma" and "absent", or "temperature".

    Raises:
      ValueError: it keeps neither.
    """
    kept = self.config.get("calibration", {})
    if kept.get("gamma") is None and kept.get("temperature") is None:
      why = f": {kept['why']}" if kept.get("why") else ""
      raise ValueError(
        f"the model folder keeps neither a gamma nor a temperature to calibrate by{why}"
      )
    return kept

  def with_batch_size(self, batch_size: int) -> "Classifier":
    """The same network for another number of images at a time.

    Raises:
      ValueError: not a positive integer.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
      raise ValueError(f"batch_size is {batch_size!r}; give an integer of at least 1")
    return dataclasses.replace(self, batch_size=batch_size)

  def _array(self, images: Any) -> Any:
    wanted = (self.image_size, self.image_size, 3)
    if images.ndim == 3:
      images = images[None]
    if images.dtype != np.uint8 or images.shape[1:] != wanted or not len(images):
      raise ValueError(
        f"images are {_kind(images)}; the network reads uint8 [n, {wanted[0]}, {wanted[1]}, 3] in "
        "0..255: resize them as in training, or give paths or Pillow images, which are resized here"
      )
    return images

  def _engine(self) -> engine.Engine:
    return engine.Engine(self.model, self.preprocessing, batch_size=self.batch_size)


def _kind(value: Any) -> str:
  if hasattr(value, "shape") and hasattr(value, "dtype"):
    return f"{value.dtype} {list(value.shape)}"
  if isinstance(value, Sequence) and not isinstance(value, str | bytes):
    kinds = sorted({type(each).__name__ for each in value})
    return f"a {type(value).__name__} of {', '.join(kinds) or 'nothing'}"
  return f"a {type(value).__name__}"
