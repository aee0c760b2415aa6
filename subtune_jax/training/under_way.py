"""The training under way: its engine, data and variables so far, what was touched, the records."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from subtune_jax import masks, methods, processes
from subtune_jax.data import choices
from subtune_jax.models import backbone
from subtune_jax.statistics import criteria
from subtune_jax.training import (
  divergence,
  evaluate,
  fresh_blocks,
  frozen_storage,
  resume,
  trainable_split,
)
from subtune_jax.training import engine as engine_lib
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import prefix as prefix_lib
from subtune_jax.training import step as step_lib
from subtune_jax.training import trace as trace_lib

PyTree = Any
# on_epoch(row, logits): a row of the history, and the validation logits [n, classes] behind it or,
# without a validation set, None.
OnEpoch = Callable[[Mapping[str, Any], np.ndarray | None], None]
# on_variables(row, variables): the same row, and the whole variables after the epoch.
OnVariables = Callable[[Mapping[str, Any], PyTree], None]


class Training:
  """State of one `loop.fit`, which the runners of stages read and write.

  Attributes:
    engine: the model and its devices.
    select_by: the metric that choices go by (`statistics.criteria`).
    trace: of a few steps, or None.
    method: its stages.
    train: the training set: `images`, `labels`.
    validation: likewise, or None.
    seed: of the order of the examples and of their views.
    validate: "epoch" or "end".
    variables: {"params", "batch_stats"} so far.
    touched: trees of bool: leaves that some stage could change.
    history: a row per epoch.
    stages: a row per stage.
    seconds: wall time without compiling.
    compile_seconds: of the steps.
    batch_size: examples per step.
  """

  def __init__(
    self,
    engine: engine_lib.Engine,
    variables: PyTree,
    method: methods.Method,
    train: Any,
    validation: Any | None,
    *,
    seed: int,
    on_epoch: OnEpoch | None,
    saver: resume.Saver | None,
    validate: Literal["epoch", "end"],
    on_variables: OnVariables | None,
    select_by: str = criteria.ACCURACY,
    trace: trace_lib.Trace | None = None,
  ):
    self.select_by, self.trace = select_by, trace
    self.engine, self.method, self.seed, self.validate = engine, method, seed, validate
    self.train, self.validation = train, validation
    self.on_epoch, self.on_variables, self.saver = on_epoch, on_variables, saver
    self.variables = {"batch_stats": {}, **variables}
    self.original = self.variables
    blocks = {block for stage in method for block in stage.reinit}
    self.variables, self.touched = fresh_blocks.draw(engine.model, self.variables, blocks, seed)
    self.history, self.stages = list[dict[str, Any]](), list[dict[str, Any]]()
    self.seconds = self.compile_seconds = 0.0
    self.batch_size = min(engine.batch_size, len(train.labels))
    for block in engine.remat:
      choices.check("block in remat", block, engine.model.block_names)
    if engine.frozen_dtype == frozen_storage.BFLOAT16:
      plans = [trainable_split.make_plan(engine.model, self.variables, stage) for stage in method]
      labels = [plan.labels for plan in plans]
      frozen_storage.check(self.variables["params"], labels, self.touched["params"])
    for stage in method:
      parts = getattr(stage.solver, "accumulate", 1)
      mesh_lib.check_batch_size(self.batch_size, engine.mesh, parts)

  def check_stage(self, stage: methods.Stage) -> None:
    """Also of what a checkpoint holds, whose epochs are not run again."""
    last = self.history[-1]
    divergence.check("the variables", self.variables, stage, last["epoch"] - 1)
    divergence.check("the numbers of the history", self.history, stage, last["epoch"] - 1)

  def shares(self, examples: Any, unit: str) -> bool:
    """Whether the examples' shared activations hold for `unit`: nothing before it has changed."""
    if not isinstance(examples, prefix_lib.Rows):
      return False
    units = (*self.engine.model.block_names, trainable_split.HEAD)
    before = units[: units.index(unit)]
    if backbone.fork_of(self.engine.model) in before:  # activations of two networks
      return False
    trees = [(self.touched[k], masks.paths(self.touched[k])) for k in ("params", "batch_stats")]
    return not any(
      touched and trainable_split.unit_of(path, units) in before
      for tree, paths in trees
      for path, touched in zip(paths, jax.tree.leaves(tree), strict=True)
    )

  def touch(self, plan: trainable_split.Plan) -> None:
    """Notes what a stage may change."""
    new = {"params": plan.labels, "batch_stats": plan.stat_labels}
    self.touched = jax.tree.map(lambda old, label: old or label != masks.FROZEN, self.touched, new)

  def record(
    self, row: dict[str, Any], logits: np.ndarray | None, variables: Callable[[], PyTree]
  ) -> None:
    """Adds a row to the history; `logits` are those of the validation set, if there is one."""
    row["validation_loss"] = row["validation_accuracy"] = None
    if logits is not None:
      stage = self.method[row["stage"]]
      divergence.check("the validation logits", logits, stage, row["epoch"] - 1)
      assert self.validation is not None  # the logits are of it
      truth = np.asarray(self.validation.labels)
      row["validation_loss"] = evaluate.cross_entropy(logits, truth)
      row["validation_accuracy"] = evaluate.accuracy(logits, truth)
      own = criteria.CRITERIA[self.select_by]
      if own.field not in row:
        row[own.field] = evaluate.metric(own.name, logits, truth)
    self.history.append(row)
    if self.on_epoch:
      self.on_epoch(row, logits)
    if self.on_variables:
      self.on_variables(row, variables())

  def save(self, index: int, epoch: int, state: step_lib.TrainState) -> None:
    """Writes a checkpoint when one is due. Raises `processes.Stopped` where a process was asked."""
    if not self.saver:
      return
    due, stop = processes.any_of(self.saver.due(), processes.asked_to_stop())
    if due or stop:
      start = jax.tree.map(lambda x, t: x if t else None, self.variables, self.touched)
      note = {"stage": index, "epoch": epoch, "history": self.history, "stages": self.stages,
              "seconds": self.seconds, "compile_seconds": self.compile_seconds}  # fmt: skip
      self.saver.save(len(self.history), {"start": start, "state": state}, note)
    if stop:
      raise processes.Stopped

  def restore(self, found: resume.Found) -> int:
    """Puts back what the checkpoint holds of the finished stages; returns the stage it is in."""
    note = found.note
    self.history, self.stages = note["history"], note["stages"]
    self.seconds, self.compile_seconds = note["seconds"], note["compile_seconds"]
    for stage in self.method[: note["stage"]]:
      self.touch(trainable_split.make_plan(self.engine.model, self.variables, stage))
    template = jax.tree.map(lambda x, t: x if t else None, self.variables, self.touched)
    start = found.fill("start", template)
    self.variables = jax.tree.map(
      lambda x, new: x if new is None else new, self.variables, start, is_leaf=lambda x: x is None
    )
    return note["stage"]
