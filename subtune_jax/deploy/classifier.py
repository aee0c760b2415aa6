"""A trained network with what its use needs: classes, preprocessing, how images are resized."""

import dataclasses
from typing import Any

from subtune_jax.data import preprocess

PyTree = Any


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
    batch_size: images at a time; on CPU the bits of a logit may depend on it.
    config: what the folder's config.json holds: architecture, figures, versions, digests.
  """

  model: Any
  variables: PyTree
  preprocessing: preprocess.Preprocessing
  image_size: int
  interpolation: str
  class_names: tuple[str, ...]
  batch_size: int = 64
  config: dict[str, Any] = dataclasses.field(default_factory=dict)
