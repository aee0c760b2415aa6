"""A stand-in for the module `ray`: machines whose workers take time and fail, and compute little.

What it stands in for is Ray's side of `workers.on_ray` alone; who gets which call, what is tried
again and who takes a lost worker's place is decided by the library's own code, in real time.
"""

from collections.abc import Callable
import dataclasses
import functools
import heapq
import itertools
import random
import threading
import time
import types
from typing import Any


@dataclasses.dataclass(frozen=True)
class Plan:
  """What the cluster is like.

  Attributes:
    machines: their number.
    workers: that each holds.
    seconds: of a call of cost 1.
    spread: of a call's logarithm around that of its cost.
    start_seconds: until a worker is ready.
    crash: probability that a call's worker dies under way.
    machine_every: mean seconds between losses of a whole machine; 0: none.
    machine_back: seconds until a lost machine is there again.
    seed: of all draws.
  """

  machines: int = 32
  workers: int = 8
  seconds: float = 8.0
  spread: float = 0.1
  start_seconds: float = 2.0
  crash: float = 0.01
  machine_every: float = 30.0
  machine_back: float = 5.0
  seed: int = 0


class RayError(Exception):
  """As `ray.exceptions.RayError`."""


class RayTaskError(RayError):
  """As `ray.exceptions.RayTaskError`: what the call raised."""

  def __init__(self, cause: BaseException):
    super().__init__(str(cause))
    self.cause = cause


@dataclasses.dataclass(eq=False)
class _Ref:
  """The future of a call, or of a worker's start."""

  worker: "_Worker"
  call: Any = None
  due: float = float("inf")
  began: float = 0.0
  lost: bool = False


@dataclasses.dataclass(eq=False)
class _Worker:
  """An actor; of no machine while it waits for room."""

  machine: int | None = None
  dead: bool = False
  refs: list[_Ref] = dataclasses.field(default_factory=list)


class Cluster:
  """The cluster; `module()` is what takes the place of `ray`.

  Args:
    plan: what it is like.
    cost: arguments of a call -> what it takes beside others.

  Attributes:
    busy: seconds of calls that gave a result.
    wasted: seconds of calls that were lost.
    lost: calls that were lost.
    machines_lost: how often a machine was lost.
  """

  def __init__(self, plan: Plan, cost: Callable[[Any], float] = lambda args: 1.0):
    self.plan, self._cost, self._draw = plan, cost, random.Random(plan.seed)
    self._room = dict.fromkeys(range(plan.machines), plan.workers)
    self._waiting: list[_Worker] = []
    self._events: list[tuple[float, int, Any]] = []
    self._ids, self._lock = itertools.count(), threading.RLock()
    self.busy = self.wasted = 0.0
    self.lost = self.machines_lost = 0
    self._alive: set[_Worker] = set()
    if plan.machine_every:
      self._at(self._draw.expovariate(1 / plan.machine_every), self._lose_machine)

  def module(self) -> types.SimpleNamespace:
    """The functions of `ray` that `workers.on_ray` calls."""
    return types.SimpleNamespace(
      is_initialized=lambda: True, nodes=self._nodes, put=lambda value: value, get=self._get,
      wait=self._wait, kill=self._kill, remote=lambda **_: lambda _: self._actor_class(),
      exceptions=types.SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError),
    )  # fmt: skip

  def _nodes(self) -> list[dict[str, Any]]:
    size = {"CPU": float(self.plan.workers)}
    return [{"Alive": True, "Resources": size} for _ in range(self.plan.machines)]

  def _actor_class(self) -> types.SimpleNamespace:
    return types.SimpleNamespace(remote=lambda variables: self._new_worker())

  def _new_worker(self) -> types.SimpleNamespace:
    worker = _Worker()
    with self._lock:
      self._alive.add(worker)
      self._waiting.append(worker)
      self._place()
    return types.SimpleNamespace(
      own=worker,
      ready=types.SimpleNamespace(remote=lambda: self._ready(worker)),
      run=types.SimpleNamespace(remote=lambda *call: self._run(worker, call)),
    )

  def _place(self) -> None:
    """Puts waiting workers where there is room."""
    for machine, room in self._room.items():
      while room > 0 and self._waiting:
        worker = self._waiting.pop(0)
        worker.machine, room = machine, room - 1
        for ref in worker.refs:
          ref.due = time.monotonic() + self.plan.start_seconds
      self._room[machine] = room

  def _ready(self, worker: _Worker) -> _Ref:
    with self._lock:
      ref = _Ref(worker)
      if worker.machine is not None:
        ref.due = time.monotonic() + self.plan.start_seconds
      worker.refs.append(ref)
      return ref

  def _run(self, worker: _Worker, call: Any) -> _Ref:
    with self._lock:
      now = time.monotonic()
      noise = self._draw.lognormvariate(0.0, self.plan.spread)
      length = self.plan.seconds * self._cost(call[1]) * noise
      ref = _Ref(worker, call, now + length, now)
      worker.refs = [ref]
      if worker.dead:
        ref.due, ref.lost = now, True
      elif self._draw.random() < self.plan.crash:
        self._at(self._draw.random() * length, functools.partial(self._die, worker))
      return ref

  def _at(self, delay: float, event: Callable[[float], None]) -> None:
    """Calls the event with its time, if late."""
    heapq.heappush(self._events, (time.monotonic() + delay, next(self._ids), event))

  def _die(self, worker: _Worker, at: float, *, room: bool = True) -> None:
    """A worker's process ends; its calls that had not ended at that time are lost."""
    if worker.dead:
      return
    worker.dead = True
    self._alive.discard(worker)
    for ref in worker.refs:
      if ref.due > at:
        ref.due, ref.lost = at, True
    if room and worker.machine is not None:
      self._room[worker.machine] += 1
      self._place()

  def _lose_machine(self, at: float) -> None:
    there = sorted({w.machine for w in self._alive if w.machine is not None})
    if there:
      machine = self._draw.choice(there)
      self.machines_lost += 1
      self._room[machine] = 0
      for worker in [w for w in self._alive if w.machine == machine]:
        self._die(worker, at, room=False)
      self._at(self.plan.machine_back, lambda _: self._back(machine))
    self._at(self._draw.expovariate(1 / self.plan.machine_every), self._lose_machine)

  def _back(self, machine: int) -> None:
    self._room[machine] = self.plan.workers
    self._place()

  def _wait(self, refs: list[_Ref], num_returns: int, timeout: float) -> tuple[list[_Ref], list]:
    until = time.monotonic() + timeout
    while True:
      with self._lock:
        now = time.monotonic()
        while self._events and self._events[0][0] <= now:
          at, _, event = heapq.heappop(self._events)
          event(at)
        order = sorted(refs, key=lambda ref: ref.due)
        following = min(order[0].due, self._events[0][0] if self._events else until)
      ready = [ref for ref in order[:num_returns] if ref.due <= now]
      if ready:
        return ready, [ref for ref in refs if ref not in ready]
      if now >= until:
        return [], refs
      time.sleep(max(min(following, until) - now, 0.0))

  def _get(self, ref: _Ref) -> Any:
    if ref.lost:
      if ref.call is not None:
        self.lost += 1
        self.wasted += ref.due - ref.began
      raise RayError("the worker died")
    if ref.call is None:
      return True
    self.busy += ref.due - ref.began
    function, args, kwargs = ref.call
    try:
      return function(*args, **kwargs)
    except Exception as e:
      raise RayTaskError(e) from e

  def _kill(self, handle: Any) -> None:
    with self._lock:
      self._die(handle.own, time.monotonic())
