"""Scores sets of units by cross-validation: from the store, or by training what is missing."""

import collections
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import contextlib
import dataclasses
import functools
import hashlib
import threading
from typing import Any

import numpy as np

from subtune_jax import methods
from subtune_jax.models import heads
from subtune_jax.search import scores
from subtune_jax.search import store as store_lib
from subtune_jax.search import trainer as trainer_lib
from subtune_jax.search.trainer import Job, Problem, Recipe
from subtune_jax.training import evaluate, export, loop
from subtune_jax.training import ledger as ledger_lib
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import prefix as prefix_lib
from subtune_jax.training import trace as trace_lib
from subtune_jax.workers import here, queue

__all__ = ["Evaluator", "Job", "OnDone", "OnPlan", "Problem", "Recipe"]

PyTree = Any
Row = dict[str, Any]
# on_done(row, whether it was trained now): after each training that a search asked for.
OnDone = Callable[[Row, bool], None]
OnPlan = Callable[[int], None]  # how many trainings follow now


class Evaluator:
  """Trains and scores sets of units; the results are in the store whatever happens next.

  Scores do not depend on the executor, nor on the order in which trainings end.

  Args:
    problem: what is scored.
    recipe: how a set is trained.
    engine: model, batch size; its mesh's devices each take trainings of their own.
    store: where finished trainings are.
    prefix_bytes: memory for shared activations on each device; 0 turns sharing off.
    prefix_disk_bytes: scratch files for those that do not fit.
    on_done: called after each training that was asked for.
    on_plan: called with the number of trainings that follow.
    executor: runs the trainings; by default a thread of this process for each device.
    trace: of the first training, where trainings run in this process.
  """

  def __init__(
    self,
    problem: Problem,
    recipe: Recipe,
    engine: loop.Engine,
    store: store_lib.Store,
    *,
    prefix_bytes: int = 2 << 30,
    prefix_disk_bytes: int = 0,
    on_done: OnDone | None = None,
    on_plan: OnPlan | None = None,
    executor: futures.Executor | None = None,
    trace: trace_lib.Trace | None = None,
  ):
    self.problem, self.recipe, self.store = problem, recipe, store
    self.on_done, self.on_plan = on_done, on_plan
    devices = list(engine.mesh.devices.flat)
    self.engine = dataclasses.replace(engine, mesh=mesh_lib.make_mesh(devices[:1]))
    self.executor = executor or here.Here(len(devices))
    self._setting = trainer_lib.Setting(
      problem, recipe, engine, devices, prefix_bytes, prefix_disk_bytes, trace
    )
    self._own = here.Shared(self._setting)
    self.used: dict[str, Row] = {}  # every training that was asked for, by key
    self.trained = 0  # of them, those trained here and now
    self._lock = threading.Lock()
    self._keys: dict[tuple[scores.Units, int, int], str] = {}
    self._cells: dict[tuple[scores.Units, int], np.ndarray] = {}
    self._fingerprint = problem.train.fingerprint()
    self._variables = export.backbone_digest(
      problem.variables, head=recipe.head == "pretrained"
    )  # fmt: skip

  @functools.cached_property
  def _shared(self) -> Any:
    """What the trainings read; sent where they run when the first one starts."""
    share = getattr(self.executor, "share", None)  # of an executor that runs elsewhere
    return share(self._setting) if share else self._own

  @property
  def prefix(self) -> prefix_lib.Prefix:
    """The shared activations of this process's first place."""
    return self._own.made(trainer_lib.of_place).prefix

  @property
  def prefixes(self) -> list[prefix_lib.Prefix]:
    """Those of the places of this process that have trained."""
    return [made.prefix for made in self._own.all_made()]

  @property
  def num_workers(self) -> int:
    """How many trainings run at a time."""
    return queue.width(self.executor)

  def evaluate(self, sets: Sequence[scores.Units]) -> dict[scores.Units, scores.Score]:
    """The score of each set on every fold; `scores.Evaluate`."""
    folds = range(len(self.problem.folds))
    self._run([job for units in sets for fold in folds for job in self._jobs(units, fold)])
    return {
      units: scores.Score(units, tuple(self._cell(units, fold) for fold in folds)) for units in sets
    }

  def cells(self, sets: Sequence[scores.Units], fold: int) -> list[np.ndarray]:
    """[images] the share of seeds that got each held-out image of the fold right, for each set.

    NaN where a training diverged.
    """
    self._run([job for units in sets for job in self._jobs(units, fold)])
    return [self._cell(units, fold) for units in sets]

  @property
  def seconds(self) -> float:
    """Of all trainings asked for, compiling included, whenever they were done."""
    return sum(row["seconds"] + row["compile_seconds"] for row in self.used.values())

  def rows(self, units: scores.Units) -> list[Row]:
    """The finished trainings of a set that were asked for, by fold and seed."""
    own = [row for row in self.used.values() if tuple(row["units"]) == units]
    return sorted(own, key=lambda row: (row["fold"], row["seed"]))

  def close(self) -> None:
    """Frees the shared activations."""
    for made in self._own.all_made():
      made.close()

  def key(self, units: scores.Units, fold: int, seed: int) -> str:
    """Identity of a training: everything that its result depends on, and no option of speed.

    Arrays are known by their content: the data by `Dataset.fingerprint`, the network by
    `export.backbone_digest` (without the head where it is replaced), the folds by their rows.
    """
    if (units, fold, seed) not in self._keys:
      self._keys[units, fold, seed] = self._make_key(units, fold, seed)
    return self._keys[units, fold, seed]

  def _make_key(self, units: scores.Units, fold: int, seed: int) -> str:
    rest, held = self.problem.folds[fold]
    engine, ways = self.engine, self._setting.methods(units)
    head = f"random {heads.DRAW}" if self.recipe.head == "random" else self.recipe.head
    more = {}  # absent where it is the default, so that keys of older stores hold
    if len(ways) > 1:
      more["others"] = [[ledger_lib.plain(stage) for stage in way] for way in ways[1:]]
    if self.recipe.adapters and units:
      more["adapters"] = ledger_lib.plain(self.recipe.adapters.of(units))
    return ledger_lib.key_of(
      {
        "data": self._fingerprint,
        "rest": _digest(rest),
        "held_out": _digest(held),
        "weights": self.problem.weights,
        "variables": self._variables,
        "model": repr(engine.model),
        "preprocessing": ledger_lib.plain(engine.preprocessing),
        "augmentation": ledger_lib.plain(engine.augmentation),
        "batch_size": engine.batch_size,
        "stages": [ledger_lib.plain(stage) for stage in ways[0]],
        "head": [head, *map(ledger_lib.plain, self.recipe.probe)],
        "seed": seed,
      }
      | more
    )

  def stored(self, units: scores.Units, fold: int, seed: int) -> bool:
    """Whether a training is finished already."""
    return self.store.get(self.key(units, fold, seed)) is not None

  def method(self, units: scores.Units) -> methods.Method:
    """The stages that train a set, at the first learning rate; of () the probe."""
    return self._setting.methods(units)[0]

  def parts(self, units: scores.Units, fold: int) -> list[trainer_lib.Fold]:
    """(rows to train on, rows held out) of all that one training of a set consists of."""
    ways = self._setting.methods(units)
    inner = [self.problem.inner(fold)] * len(ways) if len(ways) > 1 else []
    return [*inner, self.problem.folds[fold]]

  def prepared(self, units: scores.Units) -> tuple[loop.Engine, PyTree]:
    """The network that a set trains, and its variables before a head is drawn."""
    return self._setting.prepared(self.engine, self.problem.variables, units)

  def _jobs(self, units: scores.Units, fold: int) -> Iterator[Job]:
    for seed in self.problem.seeds if units else self.problem.seeds[:1]:  # a probe has no chance
      yield Job(units, fold, seed)

  def _cell(self, units: scores.Units, fold: int) -> np.ndarray:
    """The cell of a finished set; its logits are read once."""
    if (units, fold) not in self._cells:
      self._cells[units, fold] = self._read_cell(units, fold)
    return self._cells[units, fold]

  def _read_cell(self, units: scores.Units, fold: int) -> np.ndarray:
    labels = np.asarray(self.problem.train.labels)
    right = []
    for job in self._jobs(units, fold):
      row = self.used[self.key(job.units, job.fold, job.seed)]
      _, held = self.problem.folds[fold]
      arrays = None if row["accuracy"] is None else self.store.logits(row["key"])
      if arrays is None or not np.isfinite(arrays["logits"]).all():  # it diverged
        right.append(np.full(len(held), np.nan))
        continue
      if not np.array_equal(arrays["rows"], held):
        raise ValueError(f"the logits of {row['key']} are of other images; remove its ledger line")
      right.append(evaluate.predictions(arrays["logits"]) == labels[held])
    return np.mean(right, axis=0)

  def _run(self, jobs: Sequence[Job]) -> None:
    """Trains what the store lacks."""
    todo = []
    for job in jobs:
      row = self.store.get(self.key(job.units, job.fold, job.seed))
      if row:
        self._finish(row, new=False)
      else:
        todo.append(job)
    names = self.problem.network.names
    todo.sort(key=lambda job: names.index(job.units[0]) if job.units else len(names))
    if not todo:
      return
    if self.on_plan:
      self.on_plan(len(todo))
    queue.drain(collections.deque(todo), self._start, self.num_workers)

  def _start(self, job: Job) -> futures.Future | None:
    """A training that goes into the store when it ends; None while another process does it."""
    key = self.key(job.units, job.fold, job.seed)
    with contextlib.ExitStack() as claim:
      mine = claim.enter_context(self.store.claim(key))
      row = self.store.get(key)
      if not mine:
        if row is None:
          return None
        self._finish(row, new=False)
        return queue.done()
      training = self.executor.submit(trainer_lib.train, self._shared, job)
      held = claim.pop_all()

    def keep(result: tuple[Row, dict[str, np.ndarray]]) -> None:
      row, arrays = {"key": key, **result[0]}, result[1]
      self.store.add(row, arrays)
      self._finish(row, new=True)

    return queue.then(training, keep, held.close)

  def _finish(self, row: Row, *, new: bool) -> None:
    with self._lock:
      seen = row["key"] in self.used
      self.used[row["key"]] = row
      self.trained += new
      if self.on_done and not seen:
        self.on_done(row, new)


def _digest(indices: np.ndarray) -> str:
  return hashlib.sha256(np.ascontiguousarray(indices, "<i8").tobytes()).hexdigest()[:16]
