"""One run in several processes: who writes, what all of them agree on, how it is asked to stop.

All processes run the same program on the devices of all. What decides how a run goes on (a row of
the ledger, a time that has passed, a signal) is the first process's word or that of any; only the
first writes. In a run of one process everything here is free.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
AUTO = "auto"
HEARTBEAT_SECONDS = 100  # without a sign of life of a process until the others end
_count, _index = 1, 0
_asked = False  # a signal to stop has come
_postponing = 0


class Stopped(KeyboardInterrupt):
  """The run ends here because it was asked to, with what is needed to go on written."""


def start(
  coordinator: str, count: int | None = None, index: int | None = None, *,
  heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> None:  # fmt: skip
  """Joins the other processes; before the first computation.

  Args:
    coordinator: "auto" lets JAX find the others by what SLURM, a TPU pod, Kubernetes or Open MPI
      say; else HOST:PORT of the first process, and `count` and `index` as well.
    count: number of processes.
    index: of this one, from 0.
    heartbeat_seconds: how long a process may be silent until the others give it up and end.

  Raises:
    ValueError: arguments that do not belong together, nothing found by "auto", or the others do
      not come.
  """
  global _count, _index
  given = {"num_processes": count, "process_id": index}
  if coordinator == AUTO:
    if count is not None or index is not None:
      raise ValueError(
        f"coordinator is 'auto' and {given}: give none of these, or coordinator=HOST:PORT"
      )
  elif count is None or index is None or not 0 <= index < count or ":" not in coordinator:
    raise ValueError(
      f"coordinator is {coordinator!r}, {given}; give HOST:PORT of the first process, the number "
      "of processes, and the place of this one from 0, or coordinator=auto alone"
    )
  import jax

  jax.config.update("jax_enable_preemption_service", False)  # signals are looked at here
  auto = coordinator == AUTO
  try:
    jax.distributed.initialize(
      None if auto else coordinator, count, index,
      cluster_detection_method=None if auto else "deactivate",
      heartbeat_timeout_seconds=heartbeat_seconds, shutdown_timeout_seconds=heartbeat_seconds,
    )  # fmt: skip
  except (ValueError, RuntimeError) as e:
    hint = "; name it: --coordinator=HOST:PORT --num_processes=N --process_id=I" if auto else ""
    raise ValueError(f"the processes of this run do not find each other: {_line(e)}{hint}") from e
  _count, _index = jax.process_count(), jax.process_index()


def count() -> int:
  """Number of processes of this run."""
  return _count


def is_first() -> bool:
  """Whether this is the process that writes."""
  return _index == 0


def agreed(value: T) -> T:
  """The first process's value, on all of them; of several processes it has to be JSON."""
  if _count == 1:
    return value
  data = np.frombuffer(json.dumps(value if is_first() else None).encode(), np.uint8)
  size = int(agreed_arrays(np.int32(len(data))))
  padded = np.zeros(1 << (size - 1).bit_length(), np.uint8)  # few sizes, few programs
  if is_first():
    padded[:size] = data
  return json.loads(agreed_arrays(padded)[:size].tobytes())


def agreed_arrays(tree: T) -> T:
  """The first process's numpy arrays; all have the same shapes."""
  if _count == 1:
    return tree
  from jax.experimental import multihost_utils

  return multihost_utils.broadcast_one_to_all(tree)


def any_of(*flags: bool) -> tuple[bool, ...]:
  """Of each flag, whether a process has it set."""
  if _count == 1:
    return flags
  from jax.experimental import multihost_utils

  found = np.asarray(multihost_utils.process_allgather(np.asarray(flags)))
  return tuple(bool(column.any()) for column in found.T)


def on_first(function: Callable[[], T]) -> T:
  """What `function` gives on the first process; the others wait for it.

  Raises:
    ValueError: on all processes, where the function raised ValueError or OSError; in a run of one
      process, that error itself.
  """
  if _count == 1:
    return function()
  value: Any = None
  error: str | None = None
  if is_first():
    try:
      value = function()
    except (ValueError, OSError) as e:
      error = str(e)
  value, error = agreed([value, error])
  if error is not None:
    raise ValueError(error)
  return value


def ask_to_stop() -> bool:
  """Notes the wish; whether it is looked at later: within `postponing`."""
  global _asked
  _asked = True
  return _postponing > 0


def asked_to_stop() -> bool:
  """Whether this process was asked to."""
  return _asked


@contextlib.contextmanager
def postponing() -> Iterator[None]:
  """Where a wish to stop is looked at after every epoch, and here at the end. Raises `Stopped`."""
  global _postponing
  _postponing += 1
  try:
    yield
  finally:
    _postponing -= 1
  if any_of(_asked)[0]:
    raise Stopped


def lost(error: Exception) -> str:
  """What to say of an error that comes of another process's end; "" for any other."""
  if _count == 1 or not isinstance(error, RuntimeError):
    return ""
  return (
    "another process of this run has ended or cannot be reached; start all of them again, and the "
    f"run goes on: {_line(error)[:300]}"
  )


def _line(error: Exception) -> str:
  return " ".join(str(error).split())
