"""Backbones with named blocks; `create` builds one by name."""

from subtune_jax.models import adapted  # makes the layers known to adapters
from subtune_jax.models.registry import create, names

__all__ = ["adapted", "create", "names"]
