"""An executor whose calls end in a random order, one at a time."""

from concurrent import futures
import random
import threading

from subtune_jax.workers import here


class RandomOrder(futures.Executor):
  """Runs a call picked at random as soon as `num_workers` wait, or the caller waits for one."""

  num_workers = 5

  def __init__(self, seed):
    self._draw, self._calls, self._more = random.Random(seed), [], threading.Condition()
    self.ended = []  # places of the calls in the order of submission
    self._submitted = 0
    threading.Thread(target=self._run, daemon=True).start()

  def submit(self, function, /, *args, **kwargs):
    future = futures.Future()
    with self._more:
      self._calls.append((self._submitted, future, function, args, kwargs))
      self._submitted += 1
      self._more.notify()
    return future

  def _run(self):
    while True:
      with self._more:
        self._more.wait_for(lambda: self._calls)
        self._more.wait_for(lambda: len(self._calls) == self.num_workers, timeout=0.02)
        call = self._calls.pop(self._draw.randrange(len(self._calls)))
      number, future, function, args, kwargs = call
      self.ended.append(number)
      try:
        result = function(*args, **kwargs)
      except BaseException as e:
        future.set_exception(e)
      else:
        future.set_result(result)


class Elsewhere(RandomOrder):
  """One that takes what it is given through `portable`, as a cluster does."""

  def share(self, value):
    return here.Shared(value.portable())
