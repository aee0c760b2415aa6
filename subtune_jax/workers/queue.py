"""Which calls are under way: as many as there are workers, in a given order."""

import collections
from collections.abc import Callable
from concurrent import futures
import time
from typing import Any

POLL_SECONDS = 0.2  # between looks at what another process is at


def width(executor: futures.Executor) -> int:
  """How many calls to have under way: those that an executor runs at a time and, where results take
  time to come back, some that wait for the next free worker (`ahead`); 1 where it does not say."""
  return getattr(executor, "num_workers", 1) + getattr(executor, "ahead", 0)


def done(result: Any = None) -> futures.Future:
  """A future that has its result."""
  future: futures.Future = futures.Future()
  future.set_result(result)
  return future


def then(
  future: futures.Future, keep: Callable[[Any], Any], always: Callable[[], None] = lambda: None
) -> futures.Future:
  """The future of `keep(result)`, which runs on the thread that ends `future`.

  So a result is kept even where nobody waits for it any more, as after Ctrl-C.

  Args:
    future: of a call.
    keep: takes its result.
    always: runs last, after a failure too.
  """
  kept: futures.Future = futures.Future()

  def end(ended: futures.Future) -> None:
    try:
      result = keep(ended.result())
    except BaseException as e:
      always()
      kept.set_exception(e)
    else:
      always()
      kept.set_result(result)

  future.add_done_callback(end)
  return kept


def drain(
  pending: collections.deque,
  start: Callable[[Any], futures.Future | None],
  width: int,
  ended: Callable[[Any, Any], None] = lambda job, result: None,
) -> None:
  """Starts jobs in their order whenever fewer than `width` are under way, until none is left.

  Args:
    pending: the jobs; emptied.
    start: job -> the future of its result, or None where another process is at it: the job goes to
      the end and is asked for again.
    width: most jobs under way.
    ended: (job, result), on this thread; may add to `pending`.

  Raises:
    BaseException: the first failure, after those under way have ended; none is started after it.
  """
  running: dict[futures.Future, Any] = {}
  try:
    while pending or running:
      refused = 0
      while refused < len(pending) and len(running) < width:
        job = pending.popleft()
        future = start(job)
        if future is None:
          pending.append(job)
          refused += 1
        else:
          running[future] = job
      if not running:
        if refused:
          time.sleep(POLL_SECONDS)
        continue
      wait = POLL_SECONDS if refused else None
      first = futures.FIRST_COMPLETED
      for future in futures.wait(running, timeout=wait, return_when=first).done:
        job = running.pop(future)
        ended(job, future.result())
  except BaseException:
    futures.wait(running)
    raise
