"""Data sets as arrays: `data.load(name, split, image_size)` and `data.names()`."""

from subtune_jax.data.dataset import Dataset
from subtune_jax.data.registry import (
  attribution,
  base_name,
  canonical,
  load,
  names,
  nested,
  register,
  require,
  tested_split,
)

__all__ = [
  "Dataset",
  "attribution",
  "base_name",
  "canonical",
  "load",
  "names",
  "nested",
  "register",
  "require",
  "tested_split",
]
