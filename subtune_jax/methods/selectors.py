"""Selectors of leaves that methods share; see `masks.label`."""

import dataclasses
from typing import Any

from subtune_jax import adapters as adapters_lib


def backbone(path: str, leaf: Any) -> bool:
  """Selects every leaf outside the head."""
  del leaf
  return path.split("/")[0] != "head"


def batch_norm(path: str, leaf: Any) -> bool:
  """Selects BatchNorm's scales and biases."""
  return backbone(path, leaf) and "bn" in path.split("/")


def without_batch_norm(path: str, leaf: Any) -> bool:
  """Selects every leaf outside the head but BatchNorm's scales and biases."""
  return backbone(path, leaf) and not batch_norm(path, leaf)


def biases(path: str, leaf: Any) -> bool:
  """Selects every leaf outside the head that is called "bias", those of normalisations too."""
  return backbone(path, leaf) and path.split("/")[-1] == "bias"


@dataclasses.dataclass(frozen=True)
class Outside:
  """Selects every leaf outside the head and outside the named blocks."""

  blocks: tuple[str, ...]

  def __call__(self, path: str, leaf: Any) -> bool:
    return backbone(path, leaf) and not any(f"{path}/".startswith(f"{b}/") for b in self.blocks)


def adapters(path: str, leaf: Any) -> bool:
  """Selects the leaves of adapters that train (`subtune_jax.adapters`)."""
  del leaf
  parts = path.split("/")
  return adapters_lib.SCOPE in parts and parts[-1] not in adapters_lib.CONSTANTS
