"""Dynamic batching: pictures of many requests run together, within a bound on delay and queue."""

from collections.abc import Callable
from concurrent import futures
import dataclasses
import queue
import threading
import time
from typing import NamedTuple

import numpy as np

from subtune_jax.multitask import network as network_lib


class Full(RuntimeError):
  """As many pictures wait as may."""


class Late(RuntimeError):
  """A picture waited longer than it may."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """What bounds a server's memory and delay.

  Attributes:
    batch: pictures at a time, at most; programs are compiled for 1, 2, 4, ... of them.
    delay: seconds that the first picture of a batch waits for others.
    queue: pictures that may wait.
    seconds: that a picture may wait for its turn.
  """

  batch: int = 8
  delay: float = 0.005
  queue: int = 256
  seconds: float = 30.0

  def __post_init__(self):
    for name in ("batch", "queue"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
    if not self.delay >= 0 or not self.seconds > 0:
      raise ValueError(
        f"delay is {self.delay}, seconds {self.seconds}; give at least 0, and more than 0"
      )

  @property
  def sizes(self) -> tuple[int, ...]:
    """The sizes of a batch that are compiled; others are filled up to the next."""
    doubled = [2**k for k in range(self.batch.bit_length()) if 2**k < self.batch]
    return (*doubled, self.batch)


DEFAULT = Limits()


class Logits(NamedTuple):
  """What a network said of one picture.

  Attributes:
    network: that answered.
    by_task: task -> [num_classes] float32.
  """

  network: network_lib.MultiTask
  by_task: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Waiting:
  image: np.ndarray
  until: float
  answer: "futures.Future[Logits]"


class Batcher:
  """Runs pictures through a network on a thread of its own.

  Everything that will run is compiled before this returns. `submit` takes pictures from any thread.

  Args:
    network: the tasks.
    limits: see there.
    on_batch: called with the number of pictures of each batch, on that thread.
  """

  def __init__(
    self,
    network: network_lib.MultiTask,
    limits: Limits = DEFAULT,
    on_batch: Callable[[int], None] | None = None,
  ):
    self.limits, self._on_batch = limits, on_batch
    self._network = self._ready(network)
    self._waiting: queue.Queue[_Waiting | None] = queue.Queue(limits.queue)
    self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
    self._thread.start()

  @property
  def network(self) -> network_lib.MultiTask:
    """What answers now."""
    return self._network

  @property
  def waiting(self) -> int:
    """Pictures in the queue."""
    return self._waiting.qsize()

  def submit(self, image: np.ndarray) -> "futures.Future[Logits]":
    """Puts a picture [image_size, image_size, 3] uint8 into the queue.

    The future raises `Late` where its turn does not come in time, or what the network raises.

    Raises:
      Full: the queue is.
    """
    until = time.monotonic() + self.limits.seconds
    own = _Waiting(image, until, futures.Future())
    try:
      self._waiting.put_nowait(own)
    except queue.Full:
      raise Full(f"{self.limits.queue} pictures wait") from None
    return own.answer

  def swap(self, network: network_lib.MultiTask) -> None:
    """Goes on with another network from the next batch; it is compiled before."""
    self._network = self._ready(network)

  def close(self) -> None:
    """Ends the thread; pictures that wait are answered before."""
    self._waiting.put(None)
    self._thread.join()

  def _ready(self, network: network_lib.MultiTask) -> network_lib.MultiTask:
    for size in self.limits.sizes:
      images = np.zeros((size, network.image_size, network.image_size, 3), np.uint8)
      for answers in network.apply(images).values():
        np.asarray(answers.logits)
    return network

  def _work(self) -> None:
    while (first := self._waiting.get()) is not None:
      batch, ended = self._gather(first)
      self._run(batch)
      if ended:
        return

  def _gather(self, first: _Waiting) -> tuple[list[_Waiting], bool]:
    """The pictures that run with the first; and whether the server ends after them."""
    batch, until = [first], time.monotonic() + self.limits.delay
    while len(batch) < self.limits.batch:
      try:
        own = self._waiting.get(timeout=max(until - time.monotonic(), 0))
      except queue.Empty:
        break
      if own is None:
        return batch, True
      batch.append(own)
    return batch, False

  def _run(self, batch: list[_Waiting]) -> None:
    """Answers a batch; a picture whose request is gone, or that is late, does not run."""
    batch = [own for own in batch if own.answer.set_running_or_notify_cancel()]
    now, network = time.monotonic(), self._network
    size = network.image_size
    for own in batch:
      if own.until < now:
        own.answer.set_exception(Late(f"no turn within {self.limits.seconds:g} seconds"))
    batch = [own for own in batch if own.until >= now]
    if not batch:
      return
    try:
      images = np.stack([own.image for own in batch])
      whole = next(n for n in self.limits.sizes if n >= len(batch))
      filled = np.zeros((whole, size, size, 3), np.uint8)
      filled[: len(batch)] = images
      found = {name: np.asarray(a.logits) for name, a in network.apply(filled).items()}
    except Exception as e:
      for own in batch:
        own.answer.set_exception(e)
      return
    for i, own in enumerate(batch):
      own.answer.set_result(Logits(network, {name: rows[i] for name, rows in found.items()}))
    if self._on_batch:
      self._on_batch(len(batch))
