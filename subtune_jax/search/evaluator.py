"""Scores sets of units by cross-validation: from the store, or by training what is missing."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import hashlib
import threading
import time
from typing import Any, Literal

import numpy as np

from subtune_jax import methods
from subtune_jax.data import dataset
from subtune_jax.models import heads
from subtune_jax.report import explosion
from subtune_jax.search import scores
from subtune_jax.search import store as store_lib
from subtune_jax.search import units as units_lib
from subtune_jax.training import evaluate, export, loop, stage_runner
from subtune_jax.training import ledger as ledger_lib
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import prefix as prefix_lib

PyTree = Any
Row = dict[str, Any]
_POLL_SECONDS = 0.2  # between looks at what another process is training
# on_done(row, whether it was trained now): after each training that a search asked for.
OnDone = Callable[[Row, bool], None]
OnPlan = Callable[[int], None]  # how many trainings follow now


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a set is trained.

  Attributes:
    method: blocks -> the stages that train them beside the head (`methods.sub_tuning`).
    probe: the method that scores the head alone, with one strength.
    head: what a training starts from: a "random" head; the "probe"'s, fitted on the fold's training
      part; or the "pretrained" one, which needs weights with a head of the same classes.
  """

  method: Callable[[tuple[str, ...]], methods.Method]
  probe: methods.Method
  head: Literal["random", "probe", "pretrained"] = "random"


@dataclasses.dataclass(frozen=True)
class Problem:
  """What a search is about; with the recipe and a seed it decides every result.

  Attributes:
    network: the candidates.
    variables: the pretrained network.
    weights: what the draw of random heads depends on beside the seed: the SHA-256 of the weights'
      file (`heads.init_head`). The network itself is known by its variables.
    train: all labelled images that the search may see. It has no test images.
    folds: (rows to train on, rows held out) of each fold.
    seeds: heads and orders; a score is the mean over them.
  """

  network: units_lib.Network
  variables: PyTree
  weights: str
  train: dataset.Dataset
  folds: tuple[tuple[np.ndarray, np.ndarray], ...]
  seeds: tuple[int, ...]

  @property
  def overlap(self) -> float:
    """Held-out images for each training image; 0 for one split (`significance.paired_gain`)."""
    if len(self.folds) == 1:
      return 0.0
    return float(np.mean([len(held) / len(rest) for rest, held in self.folds]))


@dataclasses.dataclass(frozen=True)
class _Job:
  """One training: of a set, on a fold, with a seed."""

  units: scores.Units
  fold: int
  seed: int


class Evaluator:
  """Trains and scores sets of units; the results are in the store whatever happens next.

  Args:
    problem: what is scored.
    recipe: how a set is trained.
    engine: model, batch size; its mesh's devices each take trainings of their own.
    store: where finished trainings are.
    prefix_bytes: memory for shared activations on each device; 0 turns sharing off.
    prefix_disk_bytes: scratch files for those that do not fit.
    on_done: called after each training that was asked for.
    on_plan: called with the number of trainings that follow.
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
  ):
    self.problem, self.recipe, self.store = problem, recipe, store
    self.on_done, self.on_plan = on_done, on_plan
    devices = list(engine.mesh.devices.flat)
    self.engines = [
      dataclasses.replace(engine, mesh=mesh_lib.make_mesh([device])) for device in devices
    ]
    self.prefixes = [
      prefix_lib.Prefix(
        engine.model, problem.variables, problem.train.images, batch_size=engine.batch_size,
        preprocessing=engine.preprocessing, mesh=one.mesh, memory_bytes=prefix_bytes,
        disk_bytes=prefix_disk_bytes,
      )
      for one in self.engines
    ]  # fmt: skip
    self.used: dict[str, Row] = {}  # every training that was asked for, by key
    self.trained = 0  # of them, those trained here and now
    self._lock = threading.Lock()
    self._heads: dict[tuple[int, int], PyTree] = {}
    self._cells: dict[tuple[scores.Units, int], np.ndarray] = {}
    self._fingerprint = problem.train.fingerprint()
    self._variables = export.backbone_digest(
      problem.variables, head=recipe.head == "pretrained"
    )  # fmt: skip

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
    """The finished trainings of a set that were asked for."""
    return [row for row in self.used.values() if tuple(row["units"]) == units]

  def close(self) -> None:
    """Frees the shared activations."""
    for prefix in self.prefixes:
      prefix.close()

  def key(self, units: scores.Units, fold: int, seed: int) -> str:
    """Identity of a training: everything that its result depends on, and no option of speed.

    Arrays are known by their content: the data by `Dataset.fingerprint`, the network by
    `export.backbone_digest` (without the head where it is replaced), the folds by their rows.
    """
    rest, held = self.problem.folds[fold]
    engine, method = self.engines[0], self.method(units)
    head = f"random {heads.DRAW}" if self.recipe.head == "random" else self.recipe.head
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
        "stages": [ledger_lib.plain(stage) for stage in method],
        "head": [head, *map(ledger_lib.plain, self.recipe.probe)],
        "seed": seed,
      }
    )

  def stored(self, units: scores.Units, fold: int, seed: int) -> bool:
    """Whether a training is finished already."""
    return self.store.get(self.key(units, fold, seed)) is not None

  def method(self, units: scores.Units) -> methods.Method:
    """The stages that train a set; of () the probe."""
    return self.recipe.method(self.problem.network.blocks(units)) if units else self.recipe.probe

  def _jobs(self, units: scores.Units, fold: int) -> Iterator[_Job]:
    for seed in self.problem.seeds if units else self.problem.seeds[:1]:  # a probe has no chance
      yield _Job(units, fold, seed)

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

  def _run(self, jobs: Sequence[_Job]) -> None:
    """Trains what the store lacks, one thread per device."""
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
    pending, failures = list(todo), []

    def work(device: int) -> None:
      try:
        while not failures and (job := self._next(pending)):
          self._train_or_wait(job, device, pending)
      except BaseException as e:
        failures.append(e)

    others = [threading.Thread(target=work, args=(i,)) for i in range(1, len(self.engines))]
    for thread in others:
      thread.start()
    work(0)
    for thread in others:
      thread.join()
    if failures:
      raise failures[0]

  def _next(self, pending: list[_Job]) -> _Job | None:
    with self._lock:
      return pending.pop(0) if pending else None

  def _train_or_wait(self, job: _Job, device: int, pending: list[_Job]) -> None:
    """Trains the job, unless another process does; then it is looked at again later."""
    key = self.key(job.units, job.fold, job.seed)
    with self.store.claim(key) as mine:
      row = self.store.get(key)
      if mine:
        row, arrays = self._train(job, key, device)
        self.store.add(row, arrays)
    if row:
      self._finish(row, new=mine)
      return
    with self._lock:
      alone = not pending
      pending.append(job)
    if alone:
      time.sleep(_POLL_SECONDS)

  def _finish(self, row: Row, *, new: bool) -> None:
    with self._lock:
      seen = row["key"] in self.used
      self.used[row["key"]] = row
      self.trained += new
      if self.on_done and not seen:
        self.on_done(row, new)

  def _rows(self, indices: np.ndarray, device: int) -> prefix_lib.Rows:
    labels = np.asarray(self.problem.train.labels)
    return prefix_lib.Rows(self.prefixes[device], labels, indices)

  def _train(self, job: _Job, key: str, device: int) -> tuple[Row, dict[str, np.ndarray]]:
    rest, held = (self._rows(rows, device) for rows in self.problem.folds[job.fold])
    engine = self.engines[device]
    row = {"key": key, "units": list(job.units), "fold": job.fold, "seed": job.seed}
    last: list[np.ndarray] = []
    try:
      result = loop.fit(
        engine, self._start(job, device), self.method(job.units), rest, held, seed=job.seed,
        on_epoch=lambda _, logits: last.append(logits), validate="end",
      )  # fmt: skip
    except stage_runner.NonFiniteLossError as e:
      row |= {"accuracy": None, "seconds": 0.0, "compile_seconds": 0.0, "diverged": str(e)}
      return row, {"logits": np.zeros((0, 0), np.float32), "rows": held.rows}
    row |= {
      "accuracy": result.history[-1]["validation_accuracy"],
      "loss": result.history[-1]["validation_loss"],
      "seconds": round(result.seconds, 4),
      "compile_seconds": round(result.compile_seconds, 4),
    }
    exploded = explosion.explosion(result.history, result.moved, engine.model.num_classes)
    if exploded:
      row["exploded"] = exploded
    return row, {"logits": np.asarray(last[-1], np.float32), "rows": held.rows}

  def _start(self, job: _Job, device: int) -> PyTree:
    """The pretrained network with the head that the training starts from."""
    variables = self.problem.variables
    model = self.engines[device].model
    if self.recipe.head == "random" or not job.units:
      return heads.init_head(model, variables, job.seed, self.problem.weights)
    if self.recipe.head == "pretrained":
      return variables
    place = device, job.fold
    if place not in self._heads:
      rest, _ = self.problem.folds[job.fold]
      fresh = heads.init_head(model, variables, 0, self.problem.weights)
      probed = loop.fit(
        self.engines[device], fresh, self.recipe.probe, self._rows(rest, device), None
      )  # fmt: skip
      self._heads[place] = probed.variables["params"]["head"]
    return {**variables, "params": {**variables["params"], "head": self._heads[place]}}


def _digest(indices: np.ndarray) -> str:
  return hashlib.sha256(np.ascontiguousarray(indices, "<i8").tobytes()).hexdigest()[:16]
