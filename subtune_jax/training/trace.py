"""A trace of a few training steps with `jax.profiler`: what the devices and the host do when."""

from collections.abc import Callable
import os
import pathlib
from typing import Any

import jax

from subtune_jax import processes
from subtune_jax.report import words


class Trace:
  """Traces a few steps of the first stage with gradient steps, once.

  Args:
    folder: where it goes.
    steps: how many, after the first one of the stage where it has more than one. Where an epoch is
      one program (`Engine.scan`), so many epochs.
    say: told where the trace is and how to open it.

  Raises:
    ValueError: `steps` is below 1.
  """

  def __init__(self, folder: str | os.PathLike, steps: int, say: Callable[[str], None]):
    if steps < 1:
      raise ValueError(f"a trace of {steps} steps; give at least 1")
    self._folder, self._steps, self._say = pathlib.Path(folder), steps, say
    self._what = self._stage = ""  # a step or an epoch, and of which stage
    self._running = 0  # steps traced so far, 0 before and after

  def of(self, step: Callable, stage: str, calls: int, what: str) -> Callable:
    """The step, traced where it is the first that asks.

    Args:
      step: its result is a tree of arrays.
      stage: its name.
      calls: how often it will be called.
      what: a call is: "step" or "epoch".
    """
    if self._stage or not calls:
      return step
    self._what, self._stage, seen = what, stage, 0
    first = min(1, calls - 1)
    last = min(first + self._steps, calls)

    def traced(*arguments: Any) -> Any:
      nonlocal seen
      if seen == first:
        jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
      self._running += first <= seen < last
      made = step(*arguments)
      seen += 1
      if seen == last:
        jax.block_until_ready(made)
        self.close()
      return made

    return traced

  def close(self) -> None:
    """Ends a trace that is under way."""
    if not self._running:
      return
    number, self._running = self._running, 0
    jax.profiler.stop_trace()
    self._say(
      f"trace of {words.count(number, self._what)} of stage {self._stage!r}: {self._folder}; "
      "open its perfetto_trace.json.gz at https://ui.perfetto.dev, or `pip install xprof` and "
      f"`xprof --logdir {self._folder}`"
    )


def asked(config: Any, workdir: pathlib.Path, say: Callable[[str], None]) -> Trace | None:
  """A trace into WORKDIR/trace of the first training, where `config.trace_steps` asks for one."""
  if not config.trace_steps or not processes.is_first():
    return None
  return Trace(workdir / "trace", config.trace_steps, say)
