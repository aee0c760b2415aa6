"""Wall time with the compiler's share apart."""

import threading
import time
from typing import Any

import jax

_EVENTS = (
  "/jax/core/compile/jaxpr_trace_duration",
  "/jax/core/compile/jaxpr_to_mlir_module_duration",
  "/jax/core/compile/backend_compile_duration",
)
_local = threading.local()


def _listen(event: str, duration_secs: float, **_: Any) -> None:
  if event in _EVENTS:
    _local.compiling = compile_seconds() + duration_secs


jax.monitoring.register_event_duration_secs_listener(_listen)


def compile_seconds() -> float:
  """Seconds that this thread has spent tracing and compiling since it began."""
  return getattr(_local, "compiling", 0.0)


class Watch:
  """Seconds since it was made or last read, and those of compiling among them."""

  def __init__(self):
    self._begin, self._compiled = time.perf_counter(), compile_seconds()

  def lap(self) -> tuple[float, float]:
    """(seconds without compiling, seconds compiling) since the last time."""
    now, compiled = time.perf_counter(), compile_seconds()
    both = now - self._begin, min(compiled - self._compiled, now - self._begin)
    self._begin, self._compiled = now, compiled
    return both[0] - both[1], both[1]

  def add_to(self, training: Any) -> None:
    """Adds the lap to `seconds` and `compile_seconds` of a training under way."""
    seconds, compiling = self.lap()
    training.seconds += seconds
    training.compile_seconds += compiling
