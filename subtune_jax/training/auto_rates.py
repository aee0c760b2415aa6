"""Auto-RGN and Auto-SNR: how much each tensor is to move in an epoch, measured at its start.

Both are of "Surgical fine-tuning improves adaptation to distribution shifts" (Lee et al. 2023,
arXiv 2210.11466). A tensor theta with gradient g gets a score, and from all scores a multiplier of
its learning rate; the multipliers are state of the optimiser (`optimizer.set_multipliers`), so that
no epoch compiles anything.

  rgn           |g| / |theta|, g the mean gradient over the batches read; min-max over the tensors.
  rgn_released  |g| / |theta| of each batch, averaged; divided by the maximum over the tensors.
  snr           mean over entries of (mean^2 / variance) of the gradient across examples; min-max
                over the tensors; 1 from the threshold on, else 0.
  snr_released  mean over entries of g^2 / (v + 1e-8) of each batch, averaged; v is the variance of
                the batch's gradient over the output channels (dimension 0 in torch, the last one
                here; unbiased); 1 from the threshold on, else 0. Of n channels the mean of g^2 / v
                is (n - 1) / n and more: of 20 or more channels, a tensor is below 0.95 only
                where its gradient is so small that 1e-8 counts.

What the paper leaves open: g is the gradient of the cross-entropy alone, without the stage's
penalty and without mixup, on the views of the epoch. A tensor that is all zero (a fresh bias) has
no relative norm: it takes no part in the normalisation and gets 1. So do all where all scores are
equal. The head's tensors are scored and normalised with the others. BatchNorm runs as in training;
for "snr" it runs on its running statistics, since an example has no gradient of its own where
batch statistics tie it to the others. No running statistic is changed by the measurement.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import masks
from subtune_jax.training import accumulation, batches, trainable_split, under_way
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import optimizer as optimizer_lib
from subtune_jax.training import step as step_lib

PyTree = Any
_NO_SCORE = -1.0  # of a tensor without a relative norm; scores are never negative
_RELEASED_EPSILON = 1e-8
# Of the gradients of single examples that exist at a time. On CPU it is one example after the
# other: a fifth of the time that many at once take.
_EXAMPLE_GRADIENT_BYTES = 256 << 20


class Running(NamedTuple):
  """Mean of values that come in groups, and the sum of squared deviations from it.

  Attributes:
    count: values so far.
    mean: of each entry.
    deviations: likewise; None where nobody asks for it.
  """

  count: jax.Array  # type: ignore[assignment]  # a field, in place of tuple's method
  mean: PyTree
  deviations: PyTree | None


def start(like: PyTree, *, deviations: bool) -> Running:
  """No values yet, of trees like `like`."""
  zeros = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape, jnp.float32))
  return Running(jnp.zeros([], jnp.float32), zeros(like), zeros(like) if deviations else None)


def of_one(value: PyTree) -> Running:
  """A group of one value, without deviations."""
  return Running(
    jnp.ones([], jnp.float32), jax.tree.map(lambda v: v.astype(jnp.float32), value), None
  )


def of_many(values: PyTree) -> Running:
  """A group of values [n, ...]."""
  values = jax.tree.map(lambda v: v.astype(jnp.float32), values)
  n = jax.tree.leaves(values)[0].shape[0]
  mean = jax.tree.map(lambda v: jnp.mean(v, axis=0), values)
  deviations = jax.tree.map(lambda v, m: jnp.sum((v - m[None]) ** 2, axis=0), values, mean)
  return Running(jnp.asarray(n, jnp.float32), mean, deviations)


def merge(a: Running, b: Running) -> Running:
  """Both groups as one (Chan et al. 1983: from means and deviations, nothing is cancelled)."""
  count = a.count + b.count
  mean = jax.tree.map(lambda x, y: x + (y - x) * (b.count / count), a.mean, b.mean)
  if a.deviations is None:
    return Running(count, mean, None)
  share = a.count * b.count / count
  deviations = jax.tree.map(
    lambda x, y, d, e: d + e + (y - x) ** 2 * share, a.mean, b.mean, a.deviations, b.deviations
  )
  return Running(count, mean, deviations)


def across(running: Running, axis: str) -> Running:
  """Groups of equal size, one on each device of a mapped axis, as one on all of them."""
  mean = jax.lax.pmean(running.mean, axis)
  deviations = jax.tree.map(
    lambda d, own, m: d + (own - m) ** 2 * running.count, running.deviations, running.mean, mean
  )
  return Running(jax.lax.psum(running.count, axis), mean, jax.lax.psum(deviations, axis))


def relative_norm(gradient: jax.Array, param: jax.Array) -> jax.Array:
  """|gradient| / |param|; `_NO_SCORE` where the parameter is all zero."""
  norm = jnp.linalg.norm(param.astype(jnp.float32).ravel())
  ratio = jnp.linalg.norm(gradient.astype(jnp.float32).ravel()) / jnp.where(norm > 0, norm, 1.0)
  return jnp.where(norm > 0, ratio, _NO_SCORE)


def signal_to_noise(mean: jax.Array, variance: jax.Array) -> jax.Array:
  """Mean over entries of mean^2 / variance; an entry without variance has no signal."""
  noisy = variance > 0
  return jnp.mean(jnp.where(noisy, mean**2 / jnp.where(noisy, variance, 1.0), 0.0))


def released_signal_to_noise(gradient: jax.Array) -> jax.Array:
  """Mean over entries of g^2 / (v + 1e-8), v the unbiased variance over the output channels."""
  gradient = gradient.astype(jnp.float32)
  variance = jnp.var(gradient, axis=-1, keepdims=True, ddof=1)
  return jnp.mean(gradient**2 / (variance + _RELEASED_EPSILON))


def normalise(kind: str, scores: jax.Array, threshold: Any) -> jax.Array:
  """Multipliers from the scores [tensors] of all trained tensors."""
  if kind == "snr_released":  # NaN, of a single channel, is not below anything: trained
    return jnp.where(scores < threshold, 0.0, 1.0)
  scored = ~(scores < 0)
  high = jnp.max(jnp.where(scored, scores, -jnp.inf))
  low = 0.0 if kind == "rgn_released" else jnp.min(jnp.where(scored, scores, jnp.inf))
  apart = scored & (high > low)
  unit = jnp.where(apart, (scores - low) / jnp.where(high > low, high - low, 1.0), 1.0)
  return jnp.where(unit < threshold, 0.0, 1.0) if kind == "snr" else unit


@dataclasses.dataclass(frozen=True)
class Measure:
  """What is measured, as a key of its compiled programs.

  Attributes:
    key: of the step.
    rates: the stage's `TensorRates`.
    mesh: the devices.
    spec: the step without penalty, and for "snr" with all BatchNorm on running statistics.
  """

  key: tuple
  rates: Any
  mesh: jax.sharding.Mesh
  spec: step_lib.StepSpec = dataclasses.field(compare=False)

  def initial(self, params: PyTree) -> Running:
    """Nothing measured yet."""
    like = params
    if self.rates.kind.endswith("_released"):
      like = jax.tree.map(lambda _: np.zeros([], np.float32), params)
    return start(like, deviations=self.rates.kind == "snr")

  def add_batch(
    self, running: Running, moving: PyTree, fixed: PyTree, data: Mapping[str, jax.Array], view: Any
  ) -> Running:
    """Measures one batch: "x", "labels" and "ids" as `batches.one` gives them."""
    kind, spec, params = self.rates.kind, self.spec, moving["params"]
    x = step_lib.prepare(
      data["x"], data["ids"], view, spec.preprocessing, spec.augmentation, spec.from_images
    )
    batch = {"x": x, "labels": data["labels"]}
    if kind == "snr":
      return merge(running, self._of_examples(moving, fixed, batch))
    value = self._gradient(moving, fixed, batch, spec.stage.gradient.accumulate)
    if kind == "rgn_released":
      value = jax.tree.map(relative_norm, value, params)
    elif kind == "snr_released":
      value = jax.tree.map(released_signal_to_noise, value)
    return merge(running, of_one(value))

  def _gradient(self, moving: PyTree, fixed: PyTree, batch: PyTree, parts: int = 1) -> PyTree:
    """Of the trained leaves, on a batch of any size; from so many parts of it."""

    def loss(params, stats, batch, key):
      both = {"params": params, "batch_stats": stats}
      return step_lib.loss_of(both, fixed, None, batch, self.spec, key)

    _, gradient = accumulation.value_and_gradient(
      loss, moving["params"], moving["batch_stats"], batch, None, parts
    )
    return gradient

  def _of_examples(self, moving: PyTree, fixed: PyTree, batch: PyTree) -> Running:
    """The gradients of a batch's examples; every device takes its own, in chunks that fit."""
    size = len(batch["labels"]) // self.mesh.size
    one = sum(x.size * 4 for x in jax.tree.leaves(moving["params"]))
    chunk = _chunk(size, _most_examples(self.mesh, one))

    def on_device(moving, fixed, batch):
      chunks = jax.tree.map(lambda x: x.reshape(size // chunk, chunk, 1, *x.shape[1:]), batch)
      values = jax.vmap(functools.partial(self._gradient, moving, fixed))
      running = start(moving["params"], deviations=True)
      running, _ = jax.lax.scan(
        lambda sofar, examples: (merge(sofar, of_many(values(examples))), None), running, chunks
      )
      return across(running, mesh_lib.DATA_AXIS)

    # By hand: of a kernel's gradient under vmap, XLA's partitioner loses the other devices' part.
    everywhere, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(mesh_lib.DATA_AXIS)
    mapped = jax.shard_map(
      on_device, mesh=self.mesh, in_specs=(everywhere, everywhere, split), out_specs=everywhere,
      check_vma=False,
    )  # fmt: skip
    return mapped(moving, fixed, batch)

  def finish(self, state: step_lib.TrainState, running: Running) -> step_lib.TrainState:
    """The state with the multipliers that the measured batches give."""
    kind, params = self.rates.kind, state.moving["params"]
    if kind == "rgn":
      scores = jax.tree.map(relative_norm, running.mean, params)
    elif kind == "snr":
      scores = jax.tree.map(
        lambda m, d: signal_to_noise(m, d / running.count), running.mean, running.deviations
      )
    else:
      scores = running.mean
    values = normalise(kind, jnp.stack(jax.tree.leaves(scores)), self.rates.threshold)
    by_path = dict(zip(masks.paths(scores), values, strict=True))
    fresh = kind.endswith("_released")
    return state.replace(
      opt_state=optimizer_lib.set_multipliers(state.opt_state, by_path, fresh=fresh)
    )


def _most_examples(mesh: jax.sharding.Mesh, example_bytes: int) -> int:
  """How many gradients of single examples may exist at a time."""
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  return 1 if on_cpu else _EXAMPLE_GRADIENT_BYTES // example_bytes


def _chunk(size: int, most: int) -> int:
  """The largest divisor of `size` up to `most`; at least 1."""
  return max((d for d in range(1, size + 1) if size % d == 0 and d <= most), default=1)


@functools.lru_cache(maxsize=64)
def _programs(measure: Measure) -> tuple[Callable, Callable, Callable]:
  """Compiled `initial`, `add_batch` and `finish`; what they replace is donated."""
  everywhere = mesh_lib.replicated(measure.mesh)
  return (
    jax.jit(measure.initial, out_shardings=everywhere),
    jax.jit(measure.add_batch, donate_argnums=0, out_shardings=everywhere),
    jax.jit(measure.finish, donate_argnums=0, out_shardings=everywhere),
  )


def make_measure(spec: step_lib.StepSpec, mesh: jax.sharding.Mesh) -> Measure:
  """What a step with `rates` measures."""
  rates, plan = spec.stage.gradient.rates, spec.plan
  assert rates is not None
  if rates.kind == "snr":
    plan = dataclasses.replace(plan, train_blocks=frozenset())
  measured = dataclasses.replace(
    spec, plan=plan, stage=dataclasses.replace(spec.stage, penalty=None)
  )
  return Measure(measured.key(), rates, mesh, measured)


def setter(
  training: under_way.Training, spec: step_lib.StepSpec, fixed: PyTree, source: batches.Source
) -> Callable[[step_lib.TrainState, np.ndarray, int], tuple[step_lib.TrainState, dict[str, Any]]]:
  """What to call at the start of every epoch of a stage.

  Args:
    training: the training under way (`under_way.Training`): its seed and mesh.
    spec: of the stage's step.
    fixed: the frozen half of the variables.
    source: the training set.

  Returns:
    (state, order [steps, batch], epoch) -> (state, {"rates": multiplier by block}), for the row of
    the epoch. Without `rates`: the state as it was, and {}.
  """
  rates = spec.stage.gradient.rates
  if rates is None:
    return lambda state, order, epoch: (state, {})
  mesh = training.engine.mesh
  initial, add_batch, finish = _programs(make_measure(spec, mesh))
  units = (*spec.model.block_names, trainable_split.HEAD)

  def set_rates(state, order, epoch):
    view = {"seed": np.int32(training.seed), "epoch": np.int32(epoch)}
    view = mesh_lib.place(view, mesh_lib.replicated(mesh))
    running = initial(state.moving["params"])
    with batches.stream(source, order[: rates.num_batches], mesh) as ahead:
      for batch in ahead:
        running = add_batch(running, state.moving, fixed, batch, view)
    state = finish(state, running)
    return state, {"rates": by_block(state.opt_state, units)}

  return set_rates


def by_block(opt_state: PyTree, units: tuple[str, ...]) -> dict[str, float]:
  """Unit -> mean multiplier of its trained tensors, to four decimals, input to output."""
  found: dict[str | None, list[float]] = {}
  for path, value in jax.device_get(optimizer_lib.multipliers(opt_state)).items():
    found.setdefault(trainable_split.unit_of(path, units), []).append(float(value))
  return {unit: round(float(np.mean(found[unit])), 4) for unit in units if unit in found}
