"""Jobs in their order, as many as there are workers, and what happens when one fails."""

import collections
from concurrent import futures
import threading
import time

import pytest

from subtune_jax.workers import here, queue
from tests.workers import random_order


def test_one_place_is_the_thread_that_submits():
  threads = []
  executor = here.Here()
  queue.drain(
    collections.deque(range(4)),
    lambda job: executor.submit(lambda: threads.append((job, threading.get_ident()))), 1,
  )  # fmt: skip
  assert threads == [(job, threading.get_ident()) for job in range(4)]


def test_an_interrupt_reaches_the_call_and_ends_the_rest():
  started = []

  def call(job):
    started.append(job)
    raise KeyboardInterrupt

  executor = here.Here()
  with pytest.raises(KeyboardInterrupt):
    queue.drain(collections.deque([1, 2]), lambda job: executor.submit(call, job), 1)
  assert started == [1]


def test_places_have_their_own_and_no_more_run_than_there_are():
  executor, lock = here.Here(3), threading.Lock()
  shared, now, most, places = here.Shared("value"), 0, 0, set()

  def call():
    nonlocal now, most
    with lock:
      now += 1
      most = max(most, now)
    places.add(shared.made(lambda_made))
    time.sleep(0.01)
    with lock:
      now -= 1

  def lambda_made(value):
    return value, here.place()

  queue.drain(collections.deque(range(30)), lambda _: executor.submit(call), queue.width(executor))
  assert most == 3
  assert places == {("value", place) for place in range(3)}
  assert shared.all_made() == [("value", place) for place in range(3)]
  executor.shutdown()


def test_after_a_failure_none_is_started_and_what_runs_is_kept():
  executor, kept, started = here.Here(2), [], []
  go = threading.Event()

  def call(job):
    started.append(job)
    if job == 0:
      raise ValueError("the first")
    go.wait(5)
    return job

  def start(job):
    return queue.then(executor.submit(call, job), kept.append)

  timer = threading.Timer(0.1, go.set)
  timer.start()
  with pytest.raises(ValueError, match="the first"):
    queue.drain(collections.deque(range(5)), start, 2)
  assert sorted(started) == [0, 1]
  assert kept == [1]
  executor.shutdown()


def test_a_refused_job_is_asked_for_again(monkeypatch):
  monkeypatch.setattr(queue, "POLL_SECONDS", 0.001)
  asked = collections.Counter()

  def start(job):
    asked[job] += 1
    return queue.done(job) if job != "theirs" or asked[job] > 3 else None

  ended = []
  queue.drain(collections.deque(["theirs", "a", "b"]), start, 1, lambda job, _: ended.append(job))
  assert ended == ["a", "b", "theirs"]
  assert asked == {"theirs": 4, "a": 1, "b": 1}


def test_jobs_that_ends_bring_go_first_where_they_are_put_first():
  executor = random_order.RandomOrder(0)
  pending, ended = collections.deque(["a", "b", "c"]), []

  def end(job, result):
    ended.append((job, result))
    if job == "a":
      pending.appendleft("after a")

  queue.drain(pending, lambda job: executor.submit(str.upper, job), 1, end)
  assert [job for job, _ in ended] == ["a", "after a", "b", "c"]
  assert ended[1] == ("after a", "AFTER A")


def test_an_executor_that_says_nothing_runs_one_at_a_time():
  with futures.ThreadPoolExecutor(4) as executor:
    assert queue.width(executor) == 1


def test_drivers_side_by_side_take_turns():
  """Their calls overlap; what they do between the waits does not."""
  executor, inside, most, at_once = here.Here(4), [], [], []

  def call():
    at_once.append(1)
    time.sleep(0.02)
    at_once.pop()
    return len(at_once)

  def driver(number):
    found = []

    def ended(job, result):
      inside.append(number)
      time.sleep(0.001)
      most.append(len(inside))
      inside.pop()
      found.append(job)

    queue.drain(
      collections.deque(range(5)), lambda _: executor.submit(call), queue.width(executor), ended
    )
    if number == 3:
      raise ValueError("the fourth")
    return sorted(found)

  ends = queue.side_by_side([lambda n=n: driver(n) for n in range(3)], 2)
  assert sorted(ends) == [(n, list(range(5))) for n in range(3)]
  assert max(most) == 1
  ends = queue.side_by_side([lambda n=n: driver(n) for n in (4, 3, 5)], 1)
  assert next(ends) == (0, list(range(5)))
  with pytest.raises(ValueError, match="the fourth"):  # and the sixth is not begun
    next(ends)
  executor.shutdown()
