"""Pretrained weights: files of tensors, read without torch and merged with nothing left over."""

from subtune_jax.weights.errors import WeightsError
from subtune_jax.weights.files import read_tensors
from subtune_jax.weights.known import names
from subtune_jax.weights.pretrained import Pretrained, load_pretrained, random_weights

__all__ = [
  "Pretrained",
  "WeightsError",
  "load_pretrained",
  "names",
  "random_weights",
  "read_tensors",
]
