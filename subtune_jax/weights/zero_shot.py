"""Zero-shot heads: a classifier whose rows are embeddings of the class names (CLIP, 2103.00020)."""

from collections.abc import Sequence
import pathlib
from typing import Any, NamedTuple
import zipfile

from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from subtune_jax.weights import errors

_FIELDS = ("embeddings", "class_names", "scale")


class ClassEmbeddings(NamedTuple):
  """What a text tower says of each class.

  Attributes:
    embeddings: [num_classes, features] float32, each row of length 1.
    class_names: one per row.
    scale: the logits are `scale` times the cosine; CLIP's exp(logit_scale), about 100.
  """

  embeddings: np.ndarray
  class_names: tuple[str, ...]
  scale: float


def read_class_embeddings(path: str | pathlib.Path) -> ClassEmbeddings:
  """Reads an .npz file with `embeddings` [C, d], `class_names` [C] and `scale`, rows normalised.

  `scripts/class_embeddings.py` makes such a file from class names and prompts.

  Raises:
    WeightsError: a file that is missing or not such a file.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in _FIELDS}
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
    raise errors.WeightsError(
      f"{path} is not a file of class embeddings ({e}); make one with scripts/class_embeddings.py"
    ) from e
  rows, names = arrays["embeddings"], arrays["class_names"]
  if rows.ndim != 2 or rows.dtype.kind != "f" or names.shape != rows.shape[:1]:
    raise errors.WeightsError(
      f"{path} holds embeddings {rows.dtype} {rows.shape} and {names.size} class names; expected "
      "floating-point [C, d] and C names"
    )
  lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
  scale = float(arrays["scale"])
  if not (np.isfinite(lengths).all() and lengths.min() > 0 and np.isfinite(scale) and scale > 0):
    raise errors.WeightsError(f"{path} holds an embedding of length 0, or values not finite")
  return ClassEmbeddings((rows / lengths).astype(np.float32), tuple(map(str, names)), scale)


def set_head(
  model: nn.Module, variables: Any, embeddings: ClassEmbeddings, class_names: Sequence[str]
) -> dict[str, Any]:
  """Returns the variables with a head that gives the text tower's logits for `class_names`.

  Args:
    model: a CLIP image tower made with `normalize_features=True`, so that the head's inputs have
      length 1 and its outputs are scaled cosines.
    variables: the model's.
    embeddings: of at least these classes; others are left out.
    class_names: of the model's classes, in their order.

  Raises:
    ValueError: a model that does not normalise, a class without an embedding, or embeddings of
      another size than the model's features.
  """
  if not getattr(model, "normalize_features", False):
    raise ValueError(
      f"a zero-shot head needs features of length 1, and this {type(model).__name__} does not "
      "normalise them; create it with normalize_features=True"
    )
  rows = {name: row for row, name in enumerate(embeddings.class_names)}
  missing = [name for name in class_names if name not in rows]
  if missing:
    raise ValueError(
      f"no embedding for {len(missing)} of {len(class_names)} classes: {missing[:5]}; the file has "
      f"{list(embeddings.class_names[:5])}, ..."
    )
  if len(class_names) != model.num_classes:
    raise ValueError(f"{len(class_names)} class names for a head of {model.num_classes} classes")
  kernel = embeddings.scale * embeddings.embeddings[[rows[name] for name in class_names]].T
  features = variables["params"]["head"]["kernel"].shape[0]
  if kernel.shape[0] != features:
    raise ValueError(
      f"embeddings have {kernel.shape[0]} features, the model {features}; take both from one CLIP"
    )
  head = {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(len(class_names))}
  return {**variables, "params": {**variables["params"], "head": head}}
