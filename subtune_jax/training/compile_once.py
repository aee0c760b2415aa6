"""A step compiles once: whatever makes it compile again is named, with the shapes."""

from collections.abc import Callable
import functools
import threading
from typing import Any

from absl import logging
import jax

PyTree = Any
_EVENT = "/jax/core/compile/backend_compile_duration"
_here = threading.local()


@functools.cache
def _listen() -> None:
  """Counts what a thread compiles, from the first call on."""

  def heard(event: str, duration_secs: float, **about: Any) -> None:
    if event == _EVENT and hasattr(_here, "programs"):
      _here.programs.append((about.get("fun_name", "a program"), duration_secs))

  jax.monitoring.register_event_duration_secs_listener(heard)


def compiled_by(function: Callable, *arguments: Any) -> tuple[Any, list[tuple[str, float]]]:
  """(result, (name, seconds) of each program that the call compiled in this thread)."""
  _listen()
  before = getattr(_here, "programs", None)
  _here.programs = found = list[tuple[str, float]]()
  try:
    return function(*arguments), found
  finally:
    del _here.programs
    if before is not None:
      before += found
      _here.programs = before


class Once:
  """A step of a stage; call it as `step.train_step` without its spec.

  Args:
    step: compiled, or put together from programs that compile at the first call.
    stage: its name, for messages.
  """

  def __init__(self, step: Callable, stage: str):
    self._step, self._stage = step, stage
    self._first: PyTree = None  # types of the arrays that the step was first called with

  def __call__(self, *arguments: Any) -> Any:
    """The step's result.

    Raises:
      ValueError: another shape than that of the first call.
    """
    state, _, _, data, indices, _ = arguments
    read = {"data": data, "indices": indices}
    now = _types(read)  # cheap: it is asked in every step
    if self._first is None:
      self._first = now
      return self._step(*arguments)
    if now != self._first:
      old, new = shapes(self._first), shapes(now)
      other = [
        f"{name} {old.get(name, 'absent')}, then {new.get(name, 'absent')}"
        for name in sorted({*old, *new})
        if new.get(name) != old.get(name)
      ]
      raise ValueError(
        f"a step of stage {self._stage!r} compiles once, and it was called with "
        f"{'; '.join(other)}; give every batch one shape"
      )
    made, programs = compiled_by(self._step, *arguments)
    for name, seconds in programs:
      logging.warning(
        "a step of stage %r compiled %s again (%.1f s), with %s: its programs should compile in "
        "the first step alone", self._stage, name, seconds,
        ", ".join(f"{k} {v}" for k, v in shapes({"state": _types(state), **self._first}).items()),
      )  # fmt: skip
    return made


def _types(tree: PyTree) -> PyTree:
  return jax.tree.map(jax.typeof, tree)


def shapes(types: PyTree) -> dict[str, str]:
  """Path -> type and shape of each array, such as "uint8[8,32,32,3]"."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): own.str_short()
    for path, own in jax.tree_util.tree_leaves_with_path(types)
  }
