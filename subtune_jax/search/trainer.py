"""What a search is about, and one training of it on one device."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, Literal

import jax
import numpy as np

from subtune_jax import methods
from subtune_jax.data import dataset
from subtune_jax.models import compile_cache, heads
from subtune_jax.report import explosion
from subtune_jax.search import ranks, scores
from subtune_jax.search import units as units_lib
from subtune_jax.training import loop, stage_runner
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import prefix as prefix_lib
from subtune_jax.workers import here

PyTree = Any
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a set is trained.

  Attributes:
    method: blocks -> the stages that train them beside the head (`methods.sub_tuning`).
    probe: the method that scores the head alone, with one strength.
    head: what a training starts from: a "random" head; the "probe"'s, fitted on the fold's training
      part; or the "pretrained" one, which needs weights with a head of the same classes.
    adapters: how a set becomes LoRA on the network, for sets of ranks; the method then trains that.
  """

  method: Callable[[tuple[str, ...]], methods.Method]
  probe: methods.Method
  head: Literal["random", "probe", "pretrained"] = "random"
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
  folds: tuple[tuple[np.ndarray, np.ndarray], ...]
  seeds: tuple[int, ...]

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
  """

  problem: Problem
  recipe: Recipe
  engine: loop.Engine
  devices: Sequence[jax.Device] | None
  prefix_bytes: int
  prefix_disk_bytes: int

  def portable(self) -> "Setting":
    """The same for another machine: arrays of numpy, and no device."""
    problem = dataclasses.replace(
      self.problem, variables=jax.device_get(self.problem.variables),
      train=self.problem.train.in_memory(),
    )  # fmt: skip
    engine = dataclasses.replace(self.engine, mesh=None)
    return dataclasses.replace(self, problem=problem, engine=engine, devices=None)

  def method(self, units: scores.Units) -> methods.Method:
    """The stages that train a set; of () the probe."""
    recipe = self.recipe
    return recipe.method(self.problem.network.blocks(units)) if units else recipe.probe

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
  """

  def __init__(self, setting: Setting, device: jax.Device):
    self.setting, self.problem = setting, setting.problem
    self.engine = engine = dataclasses.replace(setting.engine, mesh=mesh_lib.make_mesh([device]))
    self.prefix = prefix_lib.Prefix(
      engine.model, self.problem.variables, self.problem.train.images,
      batch_size=engine.batch_size, preprocessing=engine.preprocessing, mesh=engine.mesh,
      memory_bytes=setting.prefix_bytes, disk_bytes=setting.prefix_disk_bytes,
    )  # fmt: skip
    self._heads: dict[int, PyTree] = {}  # by fold

  def train(self, job: Job) -> tuple[Row, dict[str, np.ndarray]]:
    """(what the ledger says of the training, its held-out logits and their rows)."""
    rest, held = (self._rows(rows) for rows in self.problem.folds[job.fold])
    row: Row = {"units": list(job.units), "fold": job.fold, "seed": job.seed}
    last: list[np.ndarray] = []
    engine, start = self.setting.prepared(self.engine, self._start(job), job.units)
    try:
      result = loop.fit(
        engine, start, self.setting.method(job.units), rest, held, seed=job.seed,
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
    exploded = explosion.explosion(result.history, result.moved, self.engine.model.num_classes)
    if exploded:
      row["exploded"] = exploded
    return row, {"logits": np.asarray(last[-1], np.float32), "rows": held.rows}

  def close(self) -> None:
    """Frees the shared activations."""
    self.prefix.close()

  def _rows(self, indices: np.ndarray) -> prefix_lib.Rows:
    return prefix_lib.Rows(self.prefix, np.asarray(self.problem.train.labels), indices)

  def _start(self, job: Job) -> PyTree:
    """The pretrained network with the head that the training starts from."""
    variables, weights = self.problem.variables, self.problem.weights
    head, model = self.setting.recipe.head, self.engine.model
    if head == "random" or not job.units:
      return heads.init_head(model, variables, job.seed, weights)
    if head == "pretrained":
      return variables
    if job.fold not in self._heads:
      rest, _ = self.problem.folds[job.fold]
      fresh = heads.init_head(model, variables, 0, weights)
      probed = loop.fit(self.engine, fresh, self.setting.recipe.probe, self._rows(rest), None)
      self._heads[job.fold] = probed.variables["params"]["head"]
    return {**variables, "params": {**variables["params"], "head": self._heads[job.fold]}}


def of_place(setting: Setting) -> Trainer:
  """The trainer of this place; for `Shared.made`."""
  devices = setting.devices
  if devices is None:  # a process that no program has prepared
    compile_cache.enable()
    devices = jax.devices()[:1]
  return Trainer(setting, devices[here.place() % len(devices)])


def train(shared: here.Shared, job: Job) -> tuple[Row, dict[str, np.ndarray]]:
  """One training at this place; what an executor calls."""
  return shared.made(of_place).train(job)
