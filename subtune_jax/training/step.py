"""One training step, and the scan over steps: the gradient of what moves, and of nothing else."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import time
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax

from subtune_jax import masks, methods
from subtune_jax.data import augment, jitter, preprocess
from subtune_jax.training import accumulation, frozen_storage, remat, trainable_split
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import optimizer as optimizer_lib

PyTree = Any
# Of a field that came later: at its default it is no part of a training's identity in a ledger.
_LATER = {"omit_default": True}
WEIGHTS = "example_weights"  # a column of the training set, of `class_weights.of_examples`


class TrainState(flax.struct.PyTreeNode):
  """What changes from step to step.

  Attributes:
    step: int32, steps taken in this stage.
    moving: {"params", "batch_stats"}: trained leaves and running statistics; None elsewhere.
    opt_state: optimiser state of the trained leaves.
    average: running average of the trained leaves, or None.
  """

  step: jax.Array
  moving: PyTree
  opt_state: PyTree
  average: PyTree | None = None


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Random views of the training images.

  A view is a function of (seed, image, epoch modulo `num_views`) and of nothing else. An image is
  rotated and turned first, then shifted or cropped and mirrored, then coloured.

  Attributes:
    kind: "shift" (by up to `pad` pixels) or "resized_crop" (Inception's random box).
    pad: of "shift".
    flip: whether to mirror left and right with probability one half.
    num_views: after this many epochs the views repeat.
    color: strengths of brightness, contrast, saturation and hue (`jitter.color_jitter`).
    mixup: alpha of mixup, which mixes the views of a batch; 0 is off.
    rotate: by up to so many degrees either way, from 0 to 180.
    flip_vertical: whether to mirror top and bottom with probability one half.
    quarter_turns: whether to turn by 0, 90, 180 or 270 degrees; square images only.
  """

  kind: Literal["shift", "resized_crop"] = "shift"
  pad: int = 4
  flip: bool = False
  num_views: int = 1 << 20
  color: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
  mixup: float = 0.0
  rotate: float = dataclasses.field(default=0.0, metadata=_LATER)
  flip_vertical: bool = dataclasses.field(default=False, metadata=_LATER)
  quarter_turns: bool = dataclasses.field(default=False, metadata=_LATER)

  def __post_init__(self):
    if not 0 <= self.rotate <= 180:
      raise ValueError(f"rotate is {self.rotate}; give degrees from 0 (off) to 180")
    if self.kind not in ("shift", "resized_crop"):
      raise ValueError(f"augmentation kind is {self.kind!r}; allowed: 'shift', 'resized_crop'")
    if len(self.color) != 4:
      raise ValueError(
        f"color is {self.color}; give strengths of brightness, contrast, saturation and hue"
      )
    if not self.mixup >= 0:
      raise ValueError(f"mixup is {self.mixup}; it must be 0 (off) or more")

  def views(self, images: jax.Array, seed: Any, indices: jax.Array, epoch: Any) -> jax.Array:
    """The views of `images` [n, h, w, 3] uint8, which stand at `indices` [n] of the data set."""
    keys = augment.view_keys(seed, indices, epoch, self.num_views)
    if self.rotate:
      images = augment.rotate(images, _folded(keys, 2), self.rotate)
    if self.quarter_turns:
      images = augment.quarter_turns(images, _folded(keys, 3))
    if self.kind == "shift":
      images = augment.shift_and_flip(images, keys, self.pad, flip=self.flip)
    else:
      images = augment.random_resized_crop(images, keys, flip=self.flip)
    if self.flip_vertical:
      images = augment.flip_vertical(images, _folded(keys, 4))
    if not any(self.color):
      return images
    strengths = dict(zip(("brightness", "contrast", "saturation", "hue"), self.color, strict=True))
    return jitter.color_jitter(images, _folded(keys, 1), **strengths)


def _folded(keys: jax.Array, number: int) -> jax.Array:
  """Other keys [n], for another part of the views."""
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


@dataclasses.dataclass(frozen=True, eq=False)
class StepSpec:
  """Everything static about a step; steps of equal `key()` share one compiled program."""

  model: Any
  plan: trainable_split.Plan
  stage: methods.Stage
  total_steps: int
  preprocessing: preprocess.Preprocessing
  augmentation: Augmentation | None = None
  start: str | None = None  # first unit that the step runs; None: from the images
  remat: tuple[str, ...] = ()  # blocks that the backward pass computes anew

  @property
  def from_images(self) -> bool:
    """Whether the step reads images rather than activations."""
    return self.start in (None, self.model.block_names[0])

  @property
  def is_random(self) -> bool:
    """Whether a step draws: see `Backbone.is_random`."""
    return getattr(self.model, "is_random", False)

  def key(self) -> tuple:
    """Hashable identity; learning rates are state and so not part of it."""
    solver = self.stage.gradient
    fields = dataclasses.asdict(solver) | {
      "learning_rates": tuple(solver.learning_rates),
      "epochs": None,
      "rates": solver.rates is not None,  # the multipliers are state too
      "steps_per_epoch": None,
      "leave_out": None,  # decides the order of the examples, not the step
      "sampling": None,  # likewise
      "class_weights": None,  # a column of the data
    }
    if solver.schedule == "constant" and not solver.warmup:
      fields["total_steps"] = None
    else:
      fields["total_steps"] = self.total_steps
    labels, treedef = jax.tree.flatten(self.plan.labels)
    return (
      self.model, tuple(labels), treedef, self.plan.train_blocks, tuple(sorted(fields.items())),
      self.stage.penalty, self.stage.average, self.preprocessing, self.augmentation, self.start,
      self.remat,
    )  # fmt: skip

  def create_state(self, moving: PyTree) -> TrainState:
    """See `create_train_state`."""
    return create_train_state(self, moving)

  def optimizer(self) -> optax.GradientTransformation:
    """The stage's optimiser over the moving params."""
    labels, _ = masks.partition(self.plan.labels, self.plan.labels)
    return optimizer_lib.make_optimizer(self.stage.gradient, labels, self.total_steps)


def create_train_state(spec: StepSpec, moving: PyTree) -> TrainState:
  """A fresh state; owns optimiser state for the trained leaves only."""
  average = moving["params"] if spec.stage.average is not None else None
  return TrainState(
    step=jnp.zeros([], jnp.int32),
    moving=moving,
    opt_state=spec.optimizer().init(moving["params"]),
    average=jax.tree.map(jnp.copy, average),
  )


def prepare(
  x: jax.Array,
  ids: jax.Array,
  view: Mapping[str, Any],
  preprocessing: preprocess.Preprocessing,
  augmentation: Augmentation | None,
  from_images: bool,
) -> jax.Array:
  """Images [n, h, w, 3] through augmentation and normalisation; cached activations as they are."""
  if not from_images:
    return x
  if augmentation is not None:
    x = augmentation.views(x, view["seed"], ids, view["epoch"])
  return preprocess.normalize(x, preprocessing)


def weighted(logits: jax.Array, labels: jax.Array, weights: jax.Array | None) -> jax.Array:
  """Cross-entropy of each example, [n], times its weight where there are any."""
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return losses if weights is None else weights * losses


def loss_of(
  moving: PyTree,
  fixed: PyTree,
  initial: PyTree | None,
  batch: Any,
  spec: StepSpec,
  key: jax.Array | None = None,
) -> tuple[jax.Array, tuple[PyTree, jax.Array]]:
  """Mean cross-entropy plus the stage's penalty; and (running statistics, correct predictions).

  Where the batch has weights of its examples, the cross-entropy of each is multiplied by its own.
  With a key the blocks from the first trained one on draw from it (`Backbone.is_random`).
  """
  variables = trainable_split.join_variables(moving, frozen_storage.widened(fixed))
  mutable = ["batch_stats"] if spec.plan.train_blocks else False
  # A penalty that reads features gets them in the batch: the head runs after them, on its own.
  split = (
    getattr(spec.stage.penalty, "reads_features", False) and spec.start != trainable_split.HEAD
  )
  x, start = batch["x"], spec.start
  first = spec.model.block_names[0] if start is None else start
  if key is not None and first != spec.plan.start:  # as if what comes before were cached
    x = spec.model.apply(variables, x, start=start, stop=spec.plan.start)
    start = spec.plan.start
  out = remat.apply(
    spec.model, spec.remat, variables, x, start=start,
    stop=trainable_split.HEAD if split else None, mutable=mutable,
    train_blocks=spec.plan.train_blocks, rngs=None if key is None else {"dropout": key},
  )  # fmt: skip
  logits, updated = out if mutable else (out, {})
  if split:
    batch = {**batch, "features": logits}
    logits = spec.model.apply(variables, logits, start=trainable_split.HEAD)
  losses = weighted(logits, batch["labels"], batch.get(WEIGHTS))
  if "partner_labels" in batch:
    others = weighted(logits, batch["partner_labels"], batch.get("partner_weights"))
    losses = batch["share"] * losses + (1 - batch["share"]) * others
  loss = jnp.mean(losses)
  if spec.stage.penalty is not None:
    loss += spec.stage.penalty(moving["params"], initial, logits, batch)
  stats = updated.get("batch_stats", {})
  if mutable:
    stats, _ = masks.partition({**fixed["batch_stats"], **stats}, spec.plan.stat_labels)
  else:
    stats = moving["batch_stats"]
  correct = jnp.sum(jnp.argmax(logits, axis=-1) == batch["labels"])
  return loss, (stats, correct)


def train_step(
  spec: StepSpec,
  state: TrainState,
  fixed: PyTree,
  initial: PyTree | None,
  data: Mapping[str, jax.Array],
  indices: jax.Array | None,
  view: Mapping[str, Any],
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step on the examples at `indices`, or on a batch that was streamed.

  Args:
    spec: what is static.
    state: what moves.
    fixed: the frozen half of the variables.
    initial: trained leaves at the start of the stage, for a penalty; else None.
    data: resident training set: "x" [n, ...] (images or cached activations), "labels" [n], and any
      further columns for a penalty; or one batch of it with "ids" [batch], where its rows stand in
      the set.
    indices: [batch] int32 into `data`; None where `data` is the batch.
    view: "seed" and "epoch", which pick the augmented views.

  Returns:
    The next state, and {"loss", "correct", "gradient_norm"} of the batch before the update.
  """
  if indices is None:
    batch = dict(data)
  else:
    batch = {name: array[indices] for name, array in data.items()} | {"ids": indices}

  def prepared(batch):
    return prepare(
      batch["x"], batch["ids"], view, spec.preprocessing, spec.augmentation, spec.from_images
    )

  mixup = spec.augmentation.mixup if spec.augmentation else 0.0
  if mixup > 0:
    mixing = jax.random.fold_in(jax.random.key(view["seed"]), state.step)
    mixture = jitter.mixup(prepared(batch), mixing, mixup)
    batch["x"], partner, batch["share"] = mixture
    batch["partner_labels"] = batch["labels"][partner]
    if WEIGHTS in batch:
      batch["partner_weights"] = batch[WEIGHTS][partner]

  key = None
  if spec.is_random:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(view["seed"]), state.step), 1)

  def loss_fn(params, stats, batch, key):
    if not mixup > 0:
      batch = {**batch, "x": prepared(batch)}
    return loss_of({"params": params, "batch_stats": stats}, fixed, initial, batch, spec, key)

  params = state.moving["params"]
  (loss, (stats, correct)), gradient = accumulation.value_and_gradient(
    loss_fn, params, state.moving["batch_stats"], batch, key, spec.stage.gradient.accumulate
  )
  updates, opt_state = spec.optimizer().update(gradient, state.opt_state, params)
  params = optax.apply_updates(params, updates)
  average = state.average
  if spec.stage.average is not None:
    average = spec.stage.average(average, params, state.step)
  state = TrainState(
    step=state.step + 1,
    moving={"params": params, "batch_stats": stats},
    opt_state=opt_state,
    average=average,
  )
  norm = optax.global_norm(gradient)
  return state, {"loss": loss, "correct": correct, "gradient_norm": norm}


def train_steps(
  spec: StepSpec, state: TrainState, fixed: PyTree, initial: PyTree | None, data: Any,
  indices: jax.Array, view: Any,
) -> tuple[TrainState, dict[str, jax.Array]]:  # fmt: skip
  """`train_step` scanned over `indices` [steps, batch]; metrics are stacked."""

  def body(state, batch_indices):
    return train_step(spec, state, fixed, initial, data, batch_indices, view)

  return jax.lax.scan(body, state, indices)


@functools.lru_cache(maxsize=64)
def _compiled(key: tuple) -> dict[Any, Any]:
  """Compiled programs of one spec, by the shapes of their arguments."""
  del key
  return {}


def compile_step(
  spec: StepSpec, mesh: jax.sharding.Mesh, *arguments: Any, scan: bool = False
) -> tuple[Callable[..., tuple[TrainState, dict[str, jax.Array]]], float]:
  """Compiles the step (or the scan over steps) for the shapes of `arguments`; the state is donated.

  Returns:
    The compiled function of (state, fixed, initial, data, indices, view), and the seconds that
    compiling took: 0 when an equal program was compiled before in this process.
  """
  shapes = jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), arguments)
  signature = (scan, mesh, str(shapes))
  programs = _compiled(spec.key())
  if signature in programs:
    return programs[signature], 0.0
  start = time.perf_counter()
  function = functools.partial(train_steps if scan else train_step, spec)
  jitted = jax.jit(function, donate_argnums=0, out_shardings=mesh_lib.replicated(mesh))
  programs[signature] = jitted.lower(*arguments).compile()
  return programs[signature], time.perf_counter() - start
