"""A training step put together from programs of single blocks, for searches over sets of blocks.

A whole step is another program for every set of blocks, and compiling it takes longer than some of
the trainings. Here each kind of block is compiled once in each of its roles (frozen, tuned, first)
and shared by all equal blocks, so that a new set needs nothing new. The mathematics is that of
`step.train_step`; numbers differ by float rounding, since XLA fuses within a block only.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from subtune_jax import masks, methods
from subtune_jax.data import preprocess
from subtune_jax.models import backbone
from subtune_jax.training import optimizer as optimizer_lib
from subtune_jax.training import step as step_lib
from subtune_jax.training import trainable_split

PyTree = Any
FROZEN, TUNED, FIRST = "frozen", "tuned", "first"  # roles; FIRST: tuned, and nothing before it is


def part(tree: PyTree, unit: str) -> PyTree:
  """The subtree of one unit; {} where it has none."""
  for name in unit.split("/"):
    tree = tree.get(name, {})
  return tree


def put_part(tree: PyTree, unit: str, value: PyTree) -> PyTree:
  """The tree with the subtree of one unit replaced."""
  first, _, rest = unit.partition("/")
  return {**tree, first: put_part(tree[first], rest, value) if rest else value}


@dataclasses.dataclass(frozen=True)
class _Unit:
  """One unit as a function; equal ones share their programs.

  Attributes:
    key: what makes two units equal.
    apply: (params, batch_stats, x, batch_mode) -> (y, batch_stats).
  """

  key: tuple
  apply: Callable[[PyTree, PyTree, jax.Array, bool], tuple[jax.Array, PyTree]] = dataclasses.field(
    compare=False
  )


@functools.lru_cache(maxsize=4096)
def _unit(model: Any, name: str) -> _Unit:
  if not isinstance(model, backbone.Backbone):
    return _Unit((model, name), functools.partial(_apply_in_model, model, name))
  if name == trainable_split.HEAD:
    head = nn.Dense(model.num_classes, dtype=jnp.float32)
    apply = functools.partial(_apply_module, head, head, jnp.float32)
    return _Unit(("head", model.num_classes), apply)
  frozen, tuned = (backbone.block_module(model, name, mode) for mode in (False, True))
  apply = functools.partial(_apply_module, frozen, tuned, model.dtype)
  return _Unit((repr(frozen), str(jnp.dtype(model.dtype))), apply)


def _apply_module(frozen, tuned, dtype, params, stats, x, batch_mode):
  variables = {"params": params, "batch_stats": stats}
  x = x.astype(dtype)
  if not batch_mode:
    return frozen.apply(variables, x), stats
  y, updated = tuned.apply(variables, x, mutable=["batch_stats"])
  return y, updated.get("batch_stats", stats)


def _apply_in_model(model, name, params, stats, x, batch_mode):
  """A unit of a model that does not hand out its blocks."""
  units = (*model.block_names, trainable_split.HEAD, None)
  options = {"start": name, "stop": units[units.index(name) + 1]}
  variables = {
    "params": _nest(name, params), "batch_stats": _nest(name, stats) if stats else {}
  }  # fmt: skip
  if not batch_mode:
    return model.apply(variables, x, **options), stats
  y, updated = model.apply(variables, x, train_blocks={name}, mutable=["batch_stats"], **options)
  return y, part(updated.get("batch_stats", {}), name) or stats


def _nest(name: str, tree: PyTree) -> PyTree:
  for key in reversed(name.split("/")):
    tree = {key: tree}
  return tree


@functools.lru_cache(maxsize=4096)
def _inference(unit: _Unit) -> Callable:
  return jax.jit(lambda params, stats, x: unit.apply(params, stats, x, False)[0])


def forward(model: Any, variables: PyTree, unit: str, x: jax.Array) -> jax.Array:
  """One unit on one batch, BatchNorm on running statistics.

  Args:
    model: a backbone.
    variables: its variables.
    unit: a block, or "head".
    x: what the unit reads; for the first block, normalised images.
  """
  stats = part(variables.get("batch_stats", {}), unit)
  return _inference(_unit(model, unit))(part(variables["params"], unit), stats, x)


@functools.lru_cache(maxsize=4096)
def _differentiable(unit: _Unit, role: str, batch_mode: bool) -> tuple[Callable, Callable]:
  """(forward, backward): forward gives (y, batch_stats, what backward needs)."""
  if role == FROZEN:

    def run(params, stats, x):
      y, back = jax.vjp(lambda x: unit.apply(params, stats, x, False)[0], x)
      return y, stats, back
  elif role == FIRST:

    def run(params, stats, x):
      made = jax.vjp(lambda p: unit.apply(p, stats, x, batch_mode), params, has_aux=True)
      return _reordered(made)
  else:

    def run(params, stats, x):
      function = functools.partial(_of_params_and_input, unit, stats, batch_mode)
      return _reordered(jax.vjp(function, params, x, has_aux=True))

  return jax.jit(run), jax.jit(lambda back, gradient: back(gradient))


def _of_params_and_input(unit, stats, batch_mode, params, x):
  return unit.apply(params, stats, x, batch_mode)


def _reordered(made):
  y, back, stats = made
  return y, stats, back


@jax.jit
def _loss(
  logits: jax.Array, labels: jax.Array, weights: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(loss, its gradient, number of right answers)."""

  def mean(z):
    return jnp.mean(step_lib.weighted(z, labels, weights))

  loss, gradient = jax.value_and_grad(mean)(logits)
  return loss, gradient, jnp.sum(jnp.argmax(logits, axis=-1) == labels)


@jax.jit
def _root_of_sum(squares: list[jax.Array]) -> jax.Array:
  return jnp.sqrt(sum(squares))


@functools.lru_cache(maxsize=256)
def _batch(
  preprocessing: preprocess.Preprocessing, augmentation: step_lib.Augmentation | None,
  from_images: bool,
) -> Callable:  # fmt: skip
  """(data, indices, view) -> (x, labels, weights of the examples or None)."""

  def take(data, indices, view):
    taken = [data["x"], data["labels"], data.get(step_lib.WEIGHTS)]
    ids = data.get("ids", indices)
    if indices is not None:
      taken = [None if array is None else array[indices] for array in taken]
    x, labels, weights = taken
    x = step_lib.prepare(x, ids, view, preprocessing, augmentation, from_images)
    return x, labels, weights

  return jax.jit(take)


class _Frozen:
  """A labels tree that can be a key."""

  def __init__(self, tree: PyTree):
    leaves, self.treedef = jax.tree.flatten(tree)
    self.leaves = tuple(leaves)

  def tree(self) -> PyTree:
    return jax.tree.unflatten(self.treedef, self.leaves)

  def __hash__(self):
    return hash((self.leaves, self.treedef))

  def __eq__(self, other):
    return (self.leaves, self.treedef) == (other.leaves, other.treedef)


@dataclasses.dataclass(frozen=True)
class _SolverKey:
  """A solver as a key: rates are state and do not count."""

  fields: tuple
  solver: methods.Gradient = dataclasses.field(compare=False)


def _solver_key(solver: methods.Gradient) -> _SolverKey:
  fields = {f.name: getattr(solver, f.name) for f in dataclasses.fields(solver)}
  fields |= {"learning_rates": tuple(solver.learning_rates), "epochs": None}
  return _SolverKey(tuple(sorted(fields.items())), solver)


def _transformation(solver: methods.Gradient, labels: PyTree, total_steps: int):
  """The optimiser of one unit's leaves, as `optimizer.make_optimizer` builds that of all."""
  present = set(jax.tree.leaves(labels))
  rates = {k: v for k, v in solver.learning_rates.items() if k in present}
  own = dataclasses.replace(solver, learning_rates=rates)
  return optimizer_lib.make_optimizer(own, labels, total_steps)


@functools.lru_cache(maxsize=1024)
def _update(solver_key: _SolverKey, labels: _Frozen, total_steps: int) -> Callable:
  """(params, opt_state, gradient) -> (params, opt_state, sum of the gradient's squares)."""
  transformation = _transformation(solver_key.solver, labels.tree(), total_steps)

  def update(params, opt_state, gradient):
    updates, opt_state = transformation.update(gradient, opt_state, params)
    squares = sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(gradient))
    return optax.apply_updates(params, updates), opt_state, squares

  return jax.jit(update, donate_argnums=(0, 1))


def why_not(spec: step_lib.StepSpec, num_devices: int) -> str | None:
  """Why a step cannot be put together from pieces; None if it can."""
  stage, augmentation, labels = spec.stage, spec.augmentation, spec.plan.labels
  solver = stage.gradient
  reasons = {
    "a penalty": stage.penalty is not None,
    "an average": stage.average is not None,
    "clip_norm, which couples all blocks": solver.clip_norm > 0,
    "learning rates per tensor": solver.rates is not None,
    "accumulate, which scans over the parts of a batch": solver.accumulate > 1,
    "remat": bool(spec.remat),
    "mixup": augmentation is not None and augmentation.mixup > 0,
    "blocks that draw (drop_path)": spec.is_random,
    "a network beside its frozen self": backbone.fork_of(spec.model) is not None,
    "a batch that is split over devices": num_devices > 1,
    "a block of which only some leaves are trained": any(
      masks.FROZEN in jax.tree.leaves(part(labels, name)) for name in spec.plan.blocks
    ),
  }
  found = [reason for reason, holds in reasons.items() if holds]
  return ", ".join(found) or None


class Step:
  """`train_step` of one spec in pieces; call it as the compiled step."""

  def __init__(self, spec: step_lib.StepSpec):
    self.spec = spec
    model, plan = spec.model, spec.plan
    units = (*model.block_names, trainable_split.HEAD)
    first = units.index(spec.start) if spec.start else 0
    self.before = units[first : units.index(plan.start)]  # run, and never differentiated
    self.after = units[units.index(plan.start) :]
    self.roles = {
      name: FIRST if name == plan.start else TUNED if name in plan.blocks else FROZEN
      for name in self.after
    }
    labels, _ = masks.partition(plan.labels, plan.labels)
    self.labels = {name: _Frozen(part(labels, name)) for name in plan.blocks}
    self.batch = _batch(spec.preprocessing, spec.augmentation, spec.from_images)

  def create_state(self, moving: PyTree) -> step_lib.TrainState:
    """As `step.create_train_state`; the optimiser's state is that of each tuned unit by name."""
    solver, total = self.spec.stage.gradient, self.spec.total_steps
    opt_state = {
      name: _transformation(solver, labels.tree(), total).init(part(moving["params"], name))
      for name, labels in self.labels.items()
    }
    return step_lib.TrainState(jnp.zeros([], jnp.int32), moving, opt_state)

  def __call__(
    self, state: step_lib.TrainState, fixed: PyTree, initial: None, data: Mapping[str, jax.Array],
    indices: jax.Array | None, view: Mapping[str, Any],
  ) -> tuple[step_lib.TrainState, dict[str, jax.Array]]:  # fmt: skip
    """See `step.train_step`."""
    del initial
    model, moving = self.spec.model, state.moving
    variables = trainable_split.join_variables(moving, fixed)
    x, labels, weights = self.batch(data, indices, view)
    for name in self.before:
      x = forward(model, variables, name, x)
    backs, stats = {}, moving["batch_stats"]
    for name in self.after:
      own = part(variables["params"], name), part(variables["batch_stats"], name)
      batch_mode = name in self.spec.plan.train_blocks
      run, back = _differentiable(_unit(model, name), self.roles[name], batch_mode)
      x, new, residuals = run(*own, x)
      backs[name] = back, residuals
      if batch_mode and own[1]:
        stats = put_part(stats, name, new)
    loss, gradient, correct = _loss(x, labels, weights)
    params, opt_state, squares = moving["params"], dict(state.opt_state), []
    for name in reversed(self.after):
      back, residuals = backs.pop(name)
      found = back(residuals, gradient)
      gradient = found[-1]  # of the unit's input, but for the first
      if self.roles[name] != FROZEN:
        made = self._update(name)(part(params, name), opt_state[name], found[0])
        own, opt_state[name], square = made
        params = put_part(params, name, own)
        squares.append(square)
    state = state.replace(
      step=state.step + 1, moving={"params": params, "batch_stats": stats}, opt_state=opt_state
    )
    metrics = {"loss": loss, "correct": correct, "gradient_norm": _root_of_sum(squares)}
    return state, metrics

  def _update(self, name: str) -> Callable:
    return _update(_solver_key(self.spec.stage.gradient), self.labels[name], self.spec.total_steps)
