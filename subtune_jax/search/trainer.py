"""What a search is about, and one training of it on one device."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, Literal

import jax
import numpy as np

from subtune_jax import methods
from subtune_jax.data import dataset, splits
from subtune_jax.models import compile_cache, heads
from subtune_jax.report import explosion
from subtune_jax.search import ranks, scores
from subtune_jax.search import units as units_lib
from subtune_jax.training import loop, stage_runner
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import prefix as prefix_lib
from subtune_jax.training import trace as trace_lib
from subtune_jax.workers import here

PyTree = Any
Row = dict[str, Any]
Fold = tuple[np.ndarray, np.ndarray]  # rows to train on, rows held out
MakeMethod = Callable[[tuple[str, ...]], methods.Method]
INNER_FOLDS = 5  # of a fold's training part, of which the first chooses the learning rate


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a set is trained.

  Attributes:
    method: blocks -> the stages that train them beside the head (`methods.sub_tuning`).
    probe: the method that scores the head alone, with one strength.
    head: what a training starts from: a "random" head; the "probe"'s, fitted on the fold's training
      part; or the "pretrained" one, which needs weights with a head of the same classes.
    by_rate: learning rate -> as `method`, of which each training of a set takes the one that is
      best on a part of the fold's training images (`Problem.inner`); empty: `method` is taken.
    adapters: how a set becomes LoRA on the network, for sets of ranks; the method then trains that.
  """

  method: MakeMethod
  probe: methods.Method
  head: Literal["random", "probe", "pretrained"] = "random"
  by_rate: Mapping[float, MakeMethod] = dataclasses.field(default_factory=dict)
  adapters: ranks.Adapters | None = None


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
  folds: tuple[Fold, ...]
  seeds: tuple[int, ...]

  def inner(self, fold: int) -> Fold:
    """Two parts of a fold's training images, for what is chosen without its held-out ones."""
    return self._inner[fold]

  @functools.cached_property
  def _inner(self) -> list[Fold]:
    found = []
    for rest, _ in self.folds:
      labels, groups = (np.asarray(x)[rest] for x in (self.train.labels, self.train.groups))
      number = min(INNER_FOLDS, len(np.unique(groups)))
      kept, held = splits.fold_indices(labels, groups, number, 0)[0]
      found.append((rest[kept], rest[held]))
    return found

  @property
  def overlap(self) -> float:
    """Held-out images for each training image; 0 for one split (`significance.paired_gain`)."""
    if len(self.folds) == 1:
      return 0.0
    return float(np.mean([len(held) / len(rest) for rest, held in self.folds]))


@dataclasses.dataclass(frozen=True)
class Job:
  """One training: of a set, on a fold, with a seed."""

  units: scores.Units
  fold: int
  seed: int


@dataclasses.dataclass(frozen=True)
class Setting:
  """What all trainings of a search share.

  Attributes:
    problem: what is scored.
    recipe: how a set is trained.
    engine: model, batch size.
    devices: one for each place; None: the first of the process that trains.
    prefix_bytes: memory for shared activations on each device; 0 turns sharing off.
    prefix_disk_bytes: scratch files for those that do not fit.
    trace: of a few steps of the first training of the first place; see `loop.fit`.
  """

  problem: Problem
  recipe: Recipe
  engine: loop.Engine
  devices: Sequence[jax.Device] | None
  prefix_bytes: int
  prefix_disk_bytes: int
  trace: trace_lib.Trace | None = None

  def portable(self) -> "Setting":
    """The same for another machine: arrays of numpy, no device and no trace."""
    problem = dataclasses.replace(
      self.problem, variables=jax.device_get(self.problem.variables),
      train=self.problem.train.in_memory(),
    )  # fmt: skip
    engine = self.engine.portable()
    return dataclasses.replace(self, problem=problem, engine=engine, devices=None, trace=None)

  def methods(self, units: scores.Units) -> list[methods.Method]:
    """What a training of a set chooses among, most often one; of () the probe."""
    if not units:
      return [self.recipe.probe]
    blocks = self.problem.network.blocks(units)
    return [make(blocks) for make in self.recipe.by_rate.values() or [self.recipe.method]]

  def prepared(
    self, engine: loop.Engine, variables: PyTree, units: scores.Units
  ) -> tuple[loop.Engine, PyTree]:
    """The network that is trained and its variables: with adapters, where a set is of ranks."""
    if self.recipe.adapters is None or not units:
      return engine, variables
    model, variables = self.recipe.adapters.put(engine.model, variables, units)
    return dataclasses.replace(engine, model=model), variables


class Trainer:
  """Trains sets of units on one device.

  Args:
    setting: what is trained.
    device: where.
    trace: of the first training there.
  """

  def __init__(self, setting: Setting, device: jax.Device, trace: trace_lib.Trace | None = None):
    self.setting, self.problem, self._trace = setting, setting.problem, trace
    self.engine = engine = dataclasses.replace(setting.engine, mesh=mesh_lib.make_mesh([device]))
    self.prefix = prefix_lib.Prefix(
      engine.model, self.problem.variables, self.problem.train.images,
      batch_size=engine.batch_size, preprocessing=engine.preprocessing, mesh=engine.mesh,
      memory_bytes=setting.prefix_bytes, disk_bytes=setting.prefix_disk_bytes,
    )  # fmt: skip
    self._heads: dict[tuple[int, bool], PyTree] = {}  # by fold, and whether of its inner part

  def train(self, job: Job) -> tuple[Row, dict[str, np.ndarray]]:
    """(what the ledger says of the training, its held-out logits and their rows)."""
    _, held = self.problem.folds[job.fold]
    last: list[np.ndarray] = []
    row: Row = {"units": list(job.units), "fold": job.fold, "seed": job.seed}
    row |= {"seconds": 0.0, "compile_seconds": 0.0}
    ways = self.setting.methods(job.units)
    try:
      place = 0 if len(ways) == 1 else self._choose(job, ways, row)
      result = self.fit(job, ways[place], on_epoch=lambda _, logits: last.append(logits))
    except stage_runner.NonFiniteLossError as e:
      row |= {"accuracy": None, "diverged": str(e)}
      return row, {"logits": np.zeros((0, 0), np.float32), "rows": held}
    _spend(row, result)
    row |= {
      "accuracy": result.history[-1]["validation_accuracy"],
      "loss": result.history[-1]["validation_loss"],
      "moved": result.moved,
    }
    exploded = explosion.explosion(result.history, result.moved, self.engine.model.num_classes)
    if exploded:
      row["exploded"] = exploded
    return row, {"logits": np.asarray(last[-1], np.float32), "rows": held}

  def _choose(self, job: Job, ways: Sequence[methods.Method], row: Row) -> int:
    """Place of the way that is best on the inner part of the fold; says so in `row`.

    Ties go to the smaller loss, then to the first. Raises NonFiniteLossError where all diverge.
    """
    found, error = {}, None
    for place, way in enumerate(ways):
      try:
        result = self.fit(job, way, inner=True)
      except stage_runner.NonFiniteLossError as e:
        error = e
        continue
      _spend(row, result)
      last = result.history[-1]
      found[place] = -last["validation_accuracy"], last["validation_loss"]
    if not found:
      assert error is not None
      raise error
    best = min(found, key=lambda place: found[place])
    rates = list(self.setting.recipe.by_rate)
    row["learning_rate"] = rates[best]
    row["inner_accuracy"] = [-found[i][0] if i in found else None for i in range(len(ways))]
    return best

  def fit(
    self, job: Job, method: methods.Method, inner: bool = False, on_epoch: Any = None
  ) -> loop.FitResult:
    """Trains on the job's fold, or on the inner part of its training images."""
    rest, held = self._fold(job.fold, inner)
    engine, start = self.setting.prepared(self.engine, self._start(job, inner), job.units)
    return loop.fit(
      engine, start, method, rest, held, seed=job.seed,
      on_epoch=on_epoch, validate="end", trace=self._trace,
    )  # fmt: skip

  def close(self) -> None:
    """Frees the shared activations."""
    self.prefix.close()

  def _fold(self, fold: int, inner: bool) -> tuple[prefix_lib.Rows, prefix_lib.Rows]:
    rest, held = self.problem.inner(fold) if inner else self.problem.folds[fold]
    labels = np.asarray(self.problem.train.labels)
    return prefix_lib.Rows(self.prefix, labels, rest), prefix_lib.Rows(self.prefix, labels, held)

  def _start(self, job: Job, inner: bool) -> PyTree:
    """The pretrained network with the head that the training starts from."""
    variables, weights = self.problem.variables, self.problem.weights
    head, model = self.setting.recipe.head, self.engine.model
    if head == "random" or not job.units:
      return heads.init_head(model, variables, job.seed, weights)
    if head == "pretrained":
      return variables
    key = job.fold, inner
    if key not in self._heads:
      rest, _ = self._fold(*key)
      fresh = heads.init_head(model, variables, 0, weights)
      probed = loop.fit(self.engine, fresh, self.setting.recipe.probe, rest, None)
      self._heads[key] = probed.variables["params"]["head"]
    return {**variables, "params": {**variables["params"], "head": self._heads[key]}}


def _spend(row: Row, result: loop.FitResult) -> None:
  for field in ("seconds", "compile_seconds"):
    row[field] = round(row[field] + getattr(result, field), 4)


def of_place(setting: Setting) -> Trainer:
  """The trainer of this place; for `Shared.made`."""
  devices = setting.devices
  if devices is None:  # a process that no program has prepared
    compile_cache.enable()
    devices = jax.devices()[:1]
  place = here.place()
  return Trainer(setting, devices[place % len(devices)], None if place else setting.trace)


def train(shared: here.Shared, job: Job) -> tuple[Row, dict[str, np.ndarray]]:
  """One training at this place; what an executor calls."""
  return shared.made(of_place).train(job)
