"""Calls in this process: one at a time, or a thread for each of its places."""

from collections.abc import Callable
from concurrent import futures
import itertools
import threading
from typing import Any

_THREAD = threading.local()


def place() -> int:
  """The number of the place whose thread this is; 0 outside of them."""
  return getattr(_THREAD, "place", 0)


class Here(futures.Executor):
  """Runs calls in this process, in the order in which they are submitted.

  A single place is the thread that submits, so that Ctrl-C reaches the call at once.

  Args:
    places: how many calls run at a time.
  """

  def __init__(self, places: int = 1):
    self.num_workers = places
    self._threads: futures.ThreadPoolExecutor | None = None
    if places > 1:
      numbers = itertools.count()
      self._threads = futures.ThreadPoolExecutor(
        places, initializer=lambda: setattr(_THREAD, "place", next(numbers))
      )

  def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future:
    """See `concurrent.futures.Executor.submit`; with one place the result is there on return."""
    if self._threads is not None:
      return self._threads.submit(function, *args, **kwargs)
    future: futures.Future = futures.Future()
    future.set_running_or_notify_cancel()
    try:
      future.set_result(function(*args, **kwargs))
    except Exception as e:  # Ctrl-C and the end of the process are not results
      future.set_exception(e)
    return future

  def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
    """See `concurrent.futures.Executor.shutdown`."""
    if self._threads is not None:
      self._threads.shutdown(wait, cancel_futures=cancel_futures)


class Shared:
  """What all calls read, and what each place makes of it once.

  Args:
    value: anything.
  """

  def __init__(self, value: Any):
    self._value = value
    self._made: dict[tuple[Callable[[Any], Any], int], Any] = {}

  def made(self, build: Callable[[Any], Any]) -> Any:
    """`build(value)`, as this place made it at its first call."""
    key = build, place()
    if key not in self._made:
      self._made[key] = build(self._value)
    return self._made[key]

  def all_made(self) -> list[Any]:
    """What the places of this process have made so far, by place."""
    return [self._made[key] for key in sorted(self._made, key=lambda key: key[1])]
