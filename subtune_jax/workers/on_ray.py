"""Calls on the machines of a Ray cluster: local, or the one at $RAY_ADDRESS.

Each worker is an actor with its resources for itself, which runs one call at a time and keeps what
it has compiled. The driver gives calls out and is told of their ends; a call whose worker or
machine is lost goes to another worker. Ray says what it is: https://docs.ray.io
"""

import collections
from collections.abc import Callable, Mapping
from concurrent import futures
import importlib.util
import itertools
import os
import queue
import threading
import time
from typing import Any, NamedTuple
import warnings

MISSING = "workers is 'ray', and ray is not installed: pip install 'subtune-jax[ray]'"
ATTEMPTS = 4  # of a call whose workers are lost
START_SECONDS = 600.0  # longest wait for a first worker, and for another one when all are lost
_WAIT_SECONDS = 0.1
# What decides numbers or speed and is read from the environment; sent to the workers.
_PREFIXES = ("XLA_", "JAX_", "SUBTUNE_JAX_", "TF_CPP_")
_NAMES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class LostWorkerError(RuntimeError):
  """A call whose workers were lost again and again."""


class _Call(NamedTuple):
  """A call that was submitted."""

  future: futures.Future
  function: Callable[..., Any]
  args: tuple[Any, ...]
  kwargs: Mapping[str, Any]
  lost: tuple[str, ...] = ()  # why, of each worker that it was lost with


class _Sent:
  """A value that every machine holds once; workers on it read the same memory.

  Attributes:
    ref: Ray's reference.
    number: tells it from others of the same driver.
  """

  def __init__(self, ref: Any, number: str):
    self.ref, self.number = ref, number

  def made(self, build: Callable[[Any], Any]) -> Any:
    """`build(value)`, as this worker made it at its first call; what it made of others goes."""
    import ray

    key = self.number, build
    if key not in _MADE:
      for old in _MADE.values():
        getattr(old, "close", lambda: None)()
      _MADE.clear()
      _MADE[key] = build(ray.get(self.ref))
    return _MADE[key]


_MADE: dict[Any, Any] = {}


def available() -> bool:
  """Whether ray is installed."""
  return importlib.util.find_spec("ray") is not None


class RayExecutor(futures.Executor):
  """Runs calls on a Ray cluster; started by the first call.

  Args:
    cpus: cores of each worker.
    gpus: GPUs of each worker, also a share of one; below 0: one where the cluster has any.
    number: of workers; 0: as many as the machines hold at the start.

  Raises:
    ValueError: ray is not installed, no cluster is at $RAY_ADDRESS, or no machine of it holds a
      worker.
  """

  def __init__(self, *, cpus: float = 1.0, gpus: float = -1.0, number: int = 0):
    if not available():
      raise ValueError(MISSING)
    self.cpus, self.gpus, self._number = cpus, gpus, number
    self._lock = threading.RLock()
    self._waiting: collections.deque[_Call] = collections.deque()
    self._free: list[Any] = []  # workers
    self._starting: dict[Any, Any] = {}  # reference -> worker
    self._busy: dict[Any, tuple[Any, _Call]] = {}
    self._idle_since = time.monotonic()  # no worker was there
    self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    self._threads: list[threading.Thread] = []
    self._closed = False
    self._numbers = (f"{os.getpid()}-{id(self)}-{n}" for n in itertools.count())

  @property
  def num_workers(self) -> int:
    """How many calls run at a time where no machine is lost."""
    self._start()
    return self._number

  @property
  def ahead(self) -> int:
    """Calls that may wait, so that a worker that ends one has the next at once."""
    return 1 + self.num_workers // 8

  def share(self, value: Any) -> _Sent:
    """Puts a value on the cluster, once on each machine that reads it.

    Args:
      value: has `portable()`, which gives what can be sent.
    """
    self._start()
    import ray

    return _Sent(ray.put(value.portable()), next(self._numbers))

  def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future:
    """See `concurrent.futures.Executor.submit`; function and arguments are pickled."""
    with self._lock:
      self._start()
      if self._closed:
        raise RuntimeError("cannot schedule new futures after shutdown")
      future: futures.Future = futures.Future()
      self._waiting.append(_Call(future, function, args, kwargs))
      self._give_out()
    return future

  def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
    """See `concurrent.futures.Executor.shutdown`. Without `wait` calls under way are given up."""
    with self._lock:
      if cancel_futures:
        while self._waiting:
          self._waiting.popleft().future.cancel()
      self._closed = True
    if not self._threads:
      return
    while wait and (self._busy or self._waiting):
      time.sleep(_WAIT_SECONDS)
    self._results.put(None)
    if wait:
      self._threads[1].join()
    import ray

    with self._lock:
      if not ray.is_initialized():  # its workers went with it
        return
      workers = [*self._free, *self._starting.values(), *(w for w, _ in self._busy.values())]
      for worker in workers:
        ray.kill(worker)
      self._free, self._starting, self._busy = [], {}, {}

  def text(self) -> str:
    """The workers in words."""
    count = self.num_workers
    noun = "worker" if count == 1 else "workers"
    return f"{count} {noun} on Ray, each of {self.cpus:g} CPU and {self.gpus:g} GPU"

  def _start(self) -> None:
    with self._lock:
      if self._threads:
        return
      os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # no cluster but the one asked for
      import ray

      if not ray.is_initialized():
        _connect(ray)
      nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
      if self.gpus < 0:
        self.gpus = float(any(node.get("GPU", 0) >= 1 for node in nodes))
      held = sum(_holds(node, self.cpus, self.gpus) for node in nodes)
      if not held:
        sizes = ", ".join(f"{n.get('CPU', 0):g} CPU and {n.get('GPU', 0):g} GPU" for n in nodes)
        raise ValueError(
          f"no machine of the Ray cluster holds a worker of {self.cpus:g} CPU and {self.gpus:g} "
          f"GPU; they have {sizes}: lower ray.cpus or ray.gpus"
        )
      self._number = self._number or held
      self._class = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0)(_worker())
      for _ in range(self._number):
        self._new_worker()
      self._idle_since = time.monotonic()
      for work in (self._watch, self._deliver):
        self._threads.append(threading.Thread(target=work, daemon=True, name="ray_calls"))
        self._threads[-1].start()

  def _new_worker(self) -> None:
    """One that runs as soon as a machine has room for it."""
    worker = self._class.remote(environment(self.gpus))
    self._starting[worker.ready.remote()] = worker

  def _give_out(self) -> None:
    """Waiting calls to free workers, the first submitted first."""
    while self._waiting and self._free:
      call = self._waiting.popleft()
      if not call.lost and not call.future.set_running_or_notify_cancel():
        continue
      worker = self._free.pop()
      try:
        ref = worker.run.remote(call.function, call.args, call.kwargs)
      except Exception as e:  # what cannot be pickled
        self._free.append(worker)
        call.future.set_exception(e)
        continue
      self._busy[ref] = worker, call

  def _watch(self) -> None:
    """The thread that is told of ends."""
    import ray

    while ray.is_initialized() and not (self._closed and not self._busy and not self._waiting):
      with self._lock:
        refs = [*self._busy, *self._starting]
        self._check_workers()
      if not refs:
        time.sleep(_WAIT_SECONDS)
        continue
      try:
        ended, rest = ray.wait(refs, num_returns=1, timeout=_WAIT_SECONDS)
        if rest:
          ended += ray.wait(rest, num_returns=len(rest), timeout=0)[0]  # the others by then
      except Exception:
        if ray.is_initialized():
          raise
        return  # the process ends
      for ref in ended:
        self._end(ray, ref)

  def _check_workers(self) -> None:
    """Fails what waits where there has been no worker for long."""
    if self._free or self._busy:
      self._idle_since = time.monotonic()
    if not self._waiting or time.monotonic() - self._idle_since < START_SECONDS:
      return
    error = LostWorkerError(
      f"no worker of the Ray cluster has come up for {START_SECONDS:g} s; see `ray status` for "
      f"room for {self.cpus:g} CPU and {self.gpus:g} GPU, and start the run again: it goes on"
    )
    while self._waiting:
      self._waiting.popleft().future.set_exception(error)

  def _end(self, ray: Any, ref: Any) -> None:
    """A worker is ready, a call has its result or its error, or a worker is lost."""
    result, error, lost = None, None, ""
    try:
      result = ray.get(ref)
    except ray.exceptions.RayTaskError as e:
      error = e.cause if isinstance(e.cause, BaseException) else e
    except ray.exceptions.RayError as e:
      lost = " ".join(str(e).split())[:300]
    call = None
    with self._lock:
      if ref in self._starting:
        worker = self._starting.pop(ref)
      elif ref in self._busy:
        worker, call = self._busy.pop(ref)
      else:  # after shutdown
        return
      if lost or (error is not None and call is None):
        ray.kill(worker)
        self._new_worker()
        if call is not None and len(call.lost) + 1 < ATTEMPTS:
          self._waiting.appendleft(call._replace(lost=(*call.lost, lost)))
          call = None
      else:
        self._free.append(worker)
      self._give_out()
    if call is None:
      return
    if lost:
      error = LostWorkerError(f"a call was lost with {ATTEMPTS} workers one after another: {lost}")
    self._results.put((call.future, result, error))

  def _deliver(self) -> None:
    """The thread that hands results on: while they are written, workers have the next call."""
    while (ended := self._results.get()) is not None:
      future, result, error = ended
      if error is not None:
        future.set_exception(error)
      else:
        future.set_result(result)


def _connect(ray: Any) -> None:
  """The cluster at $RAY_ADDRESS, or a new one on this machine.

  Raises:
    ValueError: none is at that address.
  """
  address = os.environ.get("RAY_ADDRESS")
  options = {} if address else {"include_dashboard": False}
  try:
    with warnings.catch_warnings():  # what is forked here becomes a program of its own at once
      warnings.filterwarnings("ignore", message="os.fork", category=RuntimeWarning)
      ray.init(log_to_driver=False, logging_level="ERROR", **options)
  except ConnectionError as e:
    raise ValueError(
      f"no Ray cluster answers at RAY_ADDRESS={address}; start one with `ray start --head`, or "
      "unset the variable for workers on this machine"
    ) from e


def _holds(node: Mapping[str, float], cpus: float, gpus: float) -> int:
  """How many workers a machine has room for."""
  held = [int(node.get("CPU", 0) / cpus + 1e-9)] if cpus > 0 else []
  if 0 < gpus < 1:  # a share lies on one of them
    held.append(int(node.get("GPU", 0)) * int(1 / gpus + 1e-9))
  elif gpus > 0:
    held.append(int(node.get("GPU", 0) / gpus))
  return min(held)


def environment(gpus: float) -> dict[str, str]:
  """Variables that workers get from this process; a share of a GPU is one of its memory too."""
  own = {k: v for k, v in os.environ.items() if k.startswith(_PREFIXES) or k in _NAMES}
  if gpus > 0:
    own.pop("JAX_PLATFORMS", None)  # the driver's machine may have no GPU
  if 0 < gpus < 1:
    own.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 * gpus:.2f}")
  return own


def _worker() -> type:
  """The class of the workers, pickled as it is: its process imports jax after its variables."""

  class Worker:
    def __init__(self, variables: dict[str, str]):
      os.environ.update(variables)

    def ready(self) -> bool:
      return True

    def run(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
      return function(*args, **kwargs)

  return Worker
