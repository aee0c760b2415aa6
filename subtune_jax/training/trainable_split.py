"""What a stage means for one network: what trains, where the backward pass ends."""

import dataclasses
from typing import Any

import jax

from subtune_jax import masks, methods
from subtune_jax.data import choices
from subtune_jax.models import backbone

PyTree = Any
HEAD = "head"


@dataclasses.dataclass(frozen=True)
class Plan:
  """A stage applied to a network.

  Attributes:
    labels: tree like `params`, a label per leaf.
    stat_labels: tree like `batch_stats`; "tuned" where running statistics are updated.
    blocks: units with a trained leaf, input to output, the head last.
    start: the first of them; nothing before it is ever differentiated.
    train_blocks: blocks whose BatchNorm runs on batch statistics.
  """

  labels: PyTree
  stat_labels: PyTree
  blocks: tuple[str, ...]
  start: str
  train_blocks: frozenset[str]


def unit_of(path: str, units: tuple[str, ...]) -> str | None:
  """The unit whose name is a prefix, by whole components, of a leaf's path."""
  parts = path.split("/")
  for unit in units:
    own = unit.split("/")
    if parts[: len(own)] == own:
      return unit
  return None


def make_plan(model: Any, variables: PyTree, stage: methods.Stage) -> Plan:
  """Applies `stage` to `model`'s variables.

  Raises:
    ValueError: a rule matches nothing, a trained leaf lies in no block and not in the head, or a
      block of `reinit` does not exist.
  """
  for block in stage.reinit:
    choices.check(f"block in reinit of stage {stage.name!r}", block, model.block_names)
  params = variables["params"]
  labels = masks.label(params, stage.rules)
  units = (*model.block_names, HEAD)
  trained = set()
  for path, label in zip(masks.paths(params), jax.tree.leaves(labels), strict=True):
    if label != masks.FROZEN:
      unit = unit_of(path, units)
      if unit is None:
        raise ValueError(f"stage {stage.name!r} trains {path!r}, which lies in none of {units}")
      trained.add(unit)
  _check_beside(model, stage, trained - {HEAD})
  blocks = tuple(unit for unit in units if unit in trained)
  train_blocks = frozenset(blocks) - {HEAD} if stage.norm_mode == "batch" else frozenset()
  stats = variables.get("batch_stats", {})
  own = [unit_of(path, units) in train_blocks for path in masks.paths(stats)]
  stat_labels = jax.tree.unflatten(
    jax.tree.structure(stats), [masks.TUNED if tuned else masks.FROZEN for tuned in own]
  )
  return Plan(labels, stat_labels, blocks, blocks[0], train_blocks)


def _check_beside(model: Any, stage: methods.Stage, trained: set[str]) -> None:
  """Raises ValueError for a trained block of which the frozen network has no copy."""
  if backbone.fork_of(model) is not None and not trained <= set(model.tuned):
    raise ValueError(
      f"stage {stage.name!r} trains {sorted(trained - set(model.tuned))}, and the network stands "
      f"beside its frozen self in {', '.join(model.tuned)} alone; give beside.wrap all blocks that "
      "are trained"
    )


def split_variables(variables: PyTree, plan: Plan) -> tuple[PyTree, PyTree]:
  """(moving, fixed) halves of the variables; each leaf is None in the other half."""
  trained, frozen = masks.partition(variables["params"], plan.labels)
  stats, frozen_stats = masks.partition(variables.get("batch_stats", {}), plan.stat_labels)
  moving = {"params": trained, "batch_stats": stats}
  return moving, {"params": frozen, "batch_stats": frozen_stats}


def join_variables(moving: PyTree, fixed: PyTree) -> PyTree:
  """The inverse of `split_variables`."""
  return {name: masks.combine(moving[name], fixed[name]) for name in ("params", "batch_stats")}
