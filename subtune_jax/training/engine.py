"""What stays the same from one training to the next: the model, its devices, how steps are made."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from subtune_jax.data import choices, preprocess
from subtune_jax.training import divergence, evaluate, frozen_storage
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import step as step_lib

PyTree = Any


class Examples(NamedTuple):
  """A labelled set in memory; `data.Dataset` has the same fields and serves as well.

  Attributes:
    images: [n, h, w, 3] uint8.
    labels: [n] integers.
  """

  images: Any
  labels: Any


@dataclasses.dataclass(frozen=True)
class Engine:
  """What stays the same from one training to the next.

  Attributes:
    model: a backbone of `subtune_jax.models`.
    preprocessing: the statistics its weights were trained with.
    mesh: the devices; a batch is split over them.
    batch_size: examples per step; a smaller training set is one batch.
    augmentation: random views of the training images, or None.
    prefix_cache: run the units before the first trained block once per image and keep the result.
      Not with augmentation.
    resident_bytes: a training set of more bytes than this streams from the host, and a prefix
      whose output would take more is not cached.
    scan: a whole epoch as one program (`lax.scan`); None: on accelerators. On CPU a loop over the
      compiled step is faster.
    in_pieces: put steps and evaluation together from programs of single blocks, so that another
      set of blocks compiles nothing new (`training/blockwise_step.py`); a step that cannot be
      put together is compiled whole.
    remat: blocks that the backward pass computes anew (`training/remat.py`).
    frozen_dtype: in which steps keep the weights that they do not train; "bfloat16" takes half the
      memory and needs weights that are rounded to it (`training/frozen_storage.py`).

  Raises:
    ValueError: an unknown `frozen_dtype`.
  """

  model: Any
  preprocessing: preprocess.Preprocessing
  mesh: jax.sharding.Mesh = dataclasses.field(default_factory=mesh_lib.make_mesh)
  batch_size: int = 64
  augmentation: step_lib.Augmentation | None = None
  prefix_cache: bool = True
  resident_bytes: int = 4 << 30
  scan: bool | None = None
  in_pieces: bool = False
  remat: tuple[str, ...] = ()
  frozen_dtype: str = frozen_storage.FLOAT32

  def __post_init__(self):
    choices.check("frozen_dtype", self.frozen_dtype, frozen_storage.DTYPES)

  def portable(self) -> "Engine":
    """The same for another machine, which has devices of its own."""
    return dataclasses.replace(self, mesh=None)  # type: ignore[arg-type]  # made there

  def options(self) -> dict[str, Any]:
    """Arguments of `evaluate.run_units`."""
    return {
      "preprocessing": self.preprocessing, "batch_size": self.batch_size, "mesh": self.mesh,
      "in_pieces": self.in_pieces,
    }  # fmt: skip

  def predict(self, variables: PyTree, images: Any) -> np.ndarray:
    """Logits [n, num_classes] of uint8 images.

    Raises:
      NonFiniteLossError: a logit is not finite.
    """
    logits = evaluate.predict(self.model, variables, images, **self.options())
    row = int(np.argmin(np.isfinite(logits).all(axis=-1)))
    if not np.isfinite(logits[row]).all():
      raise divergence.NonFiniteLossError(
        f"the logits of image {row} of {len(logits)} are not finite: the weights have diverged; "
        "train with lower learning rates"
      )
    return logits
