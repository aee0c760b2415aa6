"""The program of a plan: every node once, in one of three forms.

    separate  each node by itself: a task's numbers are those of its own network, bit for bit on CPU
    stacked   nodes of equal weights on one batch: the weights are read once
    batched   also, nodes of unequal weights as one product over stacked weights (`jax.vmap`)

The last two move numbers by float rounding, since another batch size or another kernel adds up in
another order. Heads are always separate.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subtune_jax.data import preprocess
from subtune_jax.multitask import plan as plan_lib

PyTree = Any
FORMS = ("separate", "stacked", "batched")


class Answers(NamedTuple):
  """What one task says of n images.

  Attributes:
    logits: [n, num_classes] float32.
    features: [n, features], what the head reads.
  """

  logits: jax.Array
  features: jax.Array


class Step(NamedTuple):
  """Nodes of one unit that are computed at once.

  Attributes:
    unit: of all of them.
    nodes: positions in `Plan.nodes`: sets of equal weights, each of the same number of nodes. More
      than one set is one product over stacked weights.
  """

  unit: str
  nodes: tuple[tuple[int, ...], ...]


def steps(plan: plan_lib.Plan, forms: Mapping[str, str]) -> tuple[Step, ...]:
  """The order of computation.

  Args:
    plan: what is computed.
    forms: unit -> one of `FORMS`; a unit that is not named is "separate".
  """
  found = []
  for unit in plan.units:
    form = "separate" if unit == plan_lib.HEAD else forms.get(unit, "separate")
    classes = plan.classes(unit)
    if form == "separate":
      found += [Step(unit, ((i,),)) for i in plan.levels()[unit]]
    elif form == "stacked":
      found += [Step(unit, (own,)) for own in classes]
    else:
      sizes = dict.fromkeys(map(len, classes))
      found += [Step(unit, tuple(own for own in classes if len(own) == n)) for n in sizes]
  return tuple(found)


def stacked(trees: Sequence[PyTree]) -> PyTree:
  """The variables of a step: one tree as it is, several with a first axis over them."""
  return trees[0] if len(trees) == 1 else jax.tree.map(lambda *x: jnp.stack(x), *trees)


def run_unit(model: Any, unit: str, variables: PyTree, x: jax.Array) -> jax.Array:
  """One unit on its own variables, BatchNorm on running statistics.

  Args:
    model: the network; a head has as many classes as its kernel.
    unit: a block, or "head".
    variables: {"params", "batch_stats"} of the unit.
    x: what it reads.
  """
  units = (*model.block_names, plan_lib.HEAD, None)
  stop = units[units.index(unit) + 1]
  if unit == plan_lib.HEAD:
    model = model.clone(num_classes=variables["params"]["bias"].shape[-1], parent=None)
  nested = {name: _nested(unit, own) for name, own in variables.items() if own}
  return model.apply(nested, x, start=unit, stop=stop)


@functools.lru_cache(maxsize=64)
def program(
  model: Any, plan: plan_lib.Plan, order: tuple[Step, ...], seen: preprocess.Preprocessing
) -> Any:
  """`function`, compiled; with `Plan.anonymous`, networks of one shape share it."""
  return jax.jit(function(model, plan, order, seen))


def function(
  model: Any, plan: plan_lib.Plan, order: Sequence[Step], seen: preprocess.Preprocessing
) -> Callable[[Sequence[PyTree], jax.Array], tuple[Answers, ...]]:
  """The function from weights and images to the answers of every task.

  Args:
    model: a backbone of `subtune_jax.models`; its number of classes is not used.
    plan: what is computed.
    order: of `steps`.
    seen: how images are normalised.

  Returns:
    A function of (variables of each step, images [n, h, w, 3] in 0..255) that returns `Answers` of
    each task, in the order of `plan.tasks`.
  """

  def run(own: Sequence[PyTree], images: jax.Array) -> tuple[Answers, ...]:
    first = preprocess.normalize(images, seen)
    outputs: dict[int | None, jax.Array] = {None: first}
    for step, variables in zip(order, own, strict=True):
      run_step(model, plan, step, variables, outputs)
    leaves = [plan.leaf(task) for task in plan.tasks]
    return tuple(Answers(outputs[i], read(plan.nodes[i], outputs)) for i in leaves)

  return run


def run_step(
  model: Any, plan: plan_lib.Plan, step: Step, variables: PyTree, outputs: dict[Any, jax.Array]
) -> None:
  """Computes a step's nodes.

  Args:
    model: see `program`.
    plan: of the step.
    step: what is computed.
    variables: of the step's unit, `stacked` over its sets of weights.
    outputs: position in the plan -> output, None -> normalised images; those of the step are added.
  """
  parents = [tuple(plan.nodes[i].parent for i in nodes) for nodes in step.nodes]
  inputs = [_joined([read(plan.nodes[i], outputs) for i in nodes]) for nodes in step.nodes]

  def run(own: PyTree, x: jax.Array) -> jax.Array:
    return run_unit(model, step.unit, own, x)

  if len(inputs) == 1:
    results = [run(variables, inputs[0])]
  elif len(set(parents)) == 1:  # at a fork: one input, the products side by side
    results = list(jax.vmap(run, in_axes=(0, None))(variables, inputs[0]))
  else:
    results = list(jax.vmap(run)(variables, jnp.stack(inputs)))
  for nodes, result in zip(step.nodes, results, strict=True):
    parts = jnp.split(result, len(nodes)) if len(nodes) > 1 else [result]
    outputs.update(zip(nodes, parts, strict=True))


def read(node: plan_lib.Node, outputs: Mapping[Any, jax.Array]) -> jax.Array:
  """What a node reads: an output, or the features of two networks side by side."""
  parts = [outputs[i] for i in node.reads]
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def _joined(batches: Sequence[jax.Array]) -> jax.Array:
  return batches[0] if len(batches) == 1 else jnp.concatenate(batches)


def _nested(unit: str, tree: PyTree) -> PyTree:
  for key in reversed(unit.split("/")):
    tree = {key: tree}
  return tree
