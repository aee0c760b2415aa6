"""Which calls are under way: as many as there are workers, in a given order."""

import collections
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import contextlib
import queue as queue_lib
import threading
import time
from typing import Any

POLL_SECONDS = 0.2  # between looks at what another process is at
_TURN = threading.Lock()  # held by that one of several drivers which does not wait for a call
_DRIVER = threading.local()


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
          with _others():
            time.sleep(POLL_SECONDS)
        continue
      wait = POLL_SECONDS if refused else None
      first = futures.FIRST_COMPLETED
      with _others():
        ended_now = futures.wait(running, timeout=wait, return_when=first).done
      for future in ended_now:
        job = running.pop(future)
        ended(job, future.result())
  except BaseException:
    futures.wait(running)
    raise


@contextlib.contextmanager
def _others() -> Iterator[None]:
  """Lets the other drivers of `side_by_side` go on while this one waits."""
  if not getattr(_DRIVER, "one_of_many", False):
    yield
    return
  _TURN.release()
  try:
    yield
  finally:
    _TURN.acquire()


def side_by_side(drivers: Sequence[Callable[[], Any]], most: int) -> Iterator[tuple[int, Any]]:
  """Runs functions that `drain`, so that the calls of all may be under way at once.

  They take turns: one runs at a time, but for the waits within `drain`. So they need not be safe
  in threads.

  Args:
    drivers: the functions; begun in their order.
    most: how many may be begun and not ended.

  Yields:
    (number, what the function returned), as they end.

  Raises:
    BaseException: the first failure, when those under way have ended; none is begun after it.
  """
  ends: queue_lib.SimpleQueue[tuple[int, Any, BaseException | None]] = queue_lib.SimpleQueue()

  def run(number: int) -> None:
    _DRIVER.one_of_many = True
    with _TURN:
      try:
        ends.put((number, drivers[number](), None))
      except BaseException as e:
        ends.put((number, None, e))

  failures: list[BaseException] = []
  waiting = iter(range(len(drivers)))

  def begin() -> int:
    """How many it began: one, or none where none is left."""
    number = next(waiting, None)
    if number is None:
      return 0
    threading.Thread(target=run, args=(number,), daemon=True).start()
    return 1

  under_way = 0
  for _ in range(most):
    under_way += begin()
  while under_way:
    number, result, failure = ends.get()
    under_way -= 1
    if failure is not None:
      failures.append(failure)
    else:
      with _TURN:
        yield number, result
    if not failures:
      under_way += begin()
  if failures:
    raise failures[0]
