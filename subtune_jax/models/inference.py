"""The form of the layers that other programs run: no own gradients, weights folded beforehand.

The layers of `convolution`, `batch_norm` and `resnet` have backward passes of their own, and run
another form on CPU (`jax.lax.platform_dependent`). Inside `form` they trace to operations that the
target has; values are equal but for rounding.
"""

from collections.abc import Callable, Iterator
import contextlib
import contextvars
from typing import Any

import jax
from jax import lax

from subtune_jax.data import choices

# What the program is for: StableHLO that chooses by the platform that it finds itself on; XLA on
# CPU; XLA on an accelerator; ONNX.
TARGETS = ("platforms", "cpu", "accelerator", "onnx")

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


@contextlib.contextmanager
def form(target: str) -> Iterator[None]:
  """Layers that are traced inside are in their inference form, which has no gradient of ours.

  What was compiled outside is used as it is: trace a function of its own inside (`jax.jit` of a new
  closure, `jax.export`).

  Args:
    target: one of `TARGETS`.
  """
  choices.check("target", target, TARGETS)
  token = _target.set(target)
  try:
    yield
  finally:
    _target.reset(token)


def target() -> str | None:
  """That of the `form` that is open; None in training."""
  return _target.get()


def is_active() -> bool:
  """Whether a `form` is open."""
  return _target.get() is not None


def by_platform(*arrays: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
  """`jax.lax.platform_dependent`; the function itself where the target is one platform."""
  if _target.get() in (None, "platforms"):
    return lax.platform_dependent(*arrays, cpu=cpu, default=default)
  return (cpu if _target.get() == "cpu" else default)(*arrays)


@contextlib.contextmanager
def constants() -> Iterator[None]:
  """Inside `form`, what depends on constants alone is computed at once."""
  with jax.ensure_compile_time_eval() if is_active() else contextlib.nullcontext():
    yield
