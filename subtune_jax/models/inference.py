"""The form of the layers that other programs run: no own gradients, no choice by platform.

The layers of `convolution`, `batch_norm` and `resnet` have backward passes of their own and run
another form on CPU (`jax.lax.platform_dependent`). Neither has a name in ONNX, and a StableHLO
program is to run wherever it is taken. Inside `form` they trace to what XLA has of its own; values
are equal but for rounding.
"""

from collections.abc import Callable, Iterator
import contextlib
import contextvars
from typing import Any

import jax
from jax import lax

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def form(platform: str = "any") -> Iterator[None]:
  """Layers that are traced inside are in their inference form, which has no gradient of ours.

  What was compiled outside is used as it is: trace a function of its own inside (`jax.jit` of a new
  closure, `jax.export`).

  Args:
    platform: "cpu" for what is fastest there, "any" for XLA's own operations.
  """
  token = _platform.set(platform)
  try:
    yield
  finally:
    _platform.reset(token)


def is_active() -> bool:
  """Whether a `form` is open."""
  return _platform.get() is not None


def by_platform(*arrays: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
  """`jax.lax.platform_dependent`; inside `form`, the function for its platform."""
  platform = _platform.get()
  if platform is None:
    return lax.platform_dependent(*arrays, cpu=cpu, default=default)
  return (cpu if platform == "cpu" else default)(*arrays)


@contextlib.contextmanager
def constants() -> Iterator[None]:
  """Computes what depends on constants alone at once; nothing outside of `form`."""
  with jax.ensure_compile_time_eval() if is_active() else contextlib.nullcontext():
    yield
