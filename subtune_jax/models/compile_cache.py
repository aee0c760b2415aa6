"""Compiled programs on disk, so that a second start of the same work compiles nothing."""

import os
import pathlib

import jax

VARIABLE = "SUBTUNE_JAX_COMPILE_CACHE"
LEAST_SECONDS = 0.3  # programs that compile faster are not kept


def folder() -> pathlib.Path | None:
  """Where programs are kept: $SUBTUNE_JAX_COMPILE_CACHE, by default below ~/.cache; None for ""."""
  default = pathlib.Path.home() / ".cache/subtune_jax/programs"
  given = os.environ.get(VARIABLE)
  return default if given is None else pathlib.Path(given).expanduser() if given else None


def enable() -> None:
  """Turns jax's persistent compilation cache on, unless it is on already or turned off."""
  path = folder()
  # jax gives its options names as it starts.
  if path is None or jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
    return
  path.mkdir(parents=True, exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
