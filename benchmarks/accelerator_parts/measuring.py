"""Rows of results, the time that is left, and seconds per call."""

from collections.abc import Callable, Iterable, Mapping
import concurrent.futures
import statistics
import time
from typing import Any

import jax

from benchmarks.accelerator_parts import programs as programs_lib

Row = dict[str, Any]
Run = Callable[[int], None]  # runs so many calls and waits for the last
_AT_ONCE = 4  # programs compiled at a time


class Log:
  """The rows of one part.

  Args:
    deadline: `time.monotonic()` after which nothing new begins.
    on_row: called after each row.
  """

  def __init__(self, deadline: float, on_row: Callable[[Row], None] = lambda row: None):
    self.deadline, self.on_row = deadline, on_row
    self.rows: list[Row] = []

  def add(self, **row: Any) -> None:
    """Adds a row."""
    self.rows.append(row)
    self.on_row(row)

  @property
  def late(self) -> bool:
    """Whether the part's time is over."""
    return time.monotonic() > self.deadline

  def attempt(self, what: Mapping[str, Any], work: Callable[[], Any]) -> Any:
    """The result of `work`; where it fails or the time is over, a row that says so, and None."""
    if self.late:
      self.add(**what, error="not begun: the time was over")
      return None
    try:
      return work()
    except Exception as e:  # whatever it is, the next measurement goes on
      self.add(**what, error=short(e))
      return None


def short(error: Exception) -> str:
  """The kind and the first words of an error, on one line."""
  words = " ".join(str(error).split())
  return f"{type(error).__name__}: {words[:300]}"


def out_of_memory(error: Exception) -> bool:
  """Whether jax or torch ran out of device memory."""
  return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error)


class Compiled:
  """A compiled program, and the seconds that took (of up to four programs at a time)."""

  def __init__(self, program: programs_lib.Program):
    begin = time.perf_counter()
    self.program = program
    self.function = program.lowered().compile()
    self.seconds = time.perf_counter() - begin

  @property
  def memory_bytes(self) -> int | None:
    """What arguments, results and temporary arrays take by the compiler's count."""
    found = self.function.memory_analysis()
    if found is None:
      return None
    kept = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + found.temp_size_in_bytes + kept

  def run(self) -> Run:
    """Calls on values of its own."""
    arguments, fed = list(self.program.values()), self.program.fed
    host = None if fed is None else arguments[fed]

    def calls(count: int) -> None:
      for _ in range(count):
        if fed is not None:
          arguments[fed] = jax.device_put(host)
        out = self.function(*arguments)
        if self.program.carries:
          arguments[0], out = out
      jax.block_until_ready(out)

    return calls


def compile_all(made: Iterable[programs_lib.Program]) -> list[Compiled | Exception]:
  """Compiles several programs at once; nothing is timed meanwhile."""

  def work(program):
    try:
      return Compiled(program)
    except Exception as e:
      return e

  with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
    return list(pool.map(work, made))


def interleaved(runs: Mapping[str, Run], scale: programs_lib.Scale) -> dict[str, list[float]]:
  """Seconds per call in each round; the runs take turns. One call of each goes before, untimed."""
  counts, seconds = {}, {name: [] for name in runs}
  for name, run in runs.items():
    run(1)
    begin = time.perf_counter()
    run(1)
    once = max(time.perf_counter() - begin, 1e-6)
    counts[name] = max(1, round(scale.least_seconds / once))
  for _ in range(scale.rounds):
    for name, run in runs.items():
      begin = time.perf_counter()
      run(counts[name])
      seconds[name].append((time.perf_counter() - begin) / counts[name])
  return seconds


def median(run: Run, scale: programs_lib.Scale) -> float:
  """Median seconds per call of one run."""
  return statistics.median(interleaved({"": run}, scale)[""])
