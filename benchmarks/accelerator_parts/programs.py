"""What the parts compile: networks with random weights, and steps with abstract arguments."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import masks, methods, models
from subtune_jax.data import preprocess
from subtune_jax.models import efficientnet
from subtune_jax.training import evaluate, trainable_split
from subtune_jax.training import step as step_lib

PyTree = Any
PREPROCESSING = preprocess.Preprocessing(mean=(127.0,), std=(128.0,))
RATE = 1e-3
SGD = {"epochs": 1, "optimizer": "sgd", "momentum": 0.9, "schedule": "constant"}
_VIT = {"width": 16, "depth": 3, "heads": 2, "patch_size": 16}
TINY = {
  "vit_b16": _VIT, "vit_s16": {**_VIT, "width": 8},
  "resnet50": {"stage_sizes": (1, 2), "width": 8},
  "convnext_tiny": {"depths": (1, 2), "widths": (8, 16)},
  "efficientnet_lite0": {"blocks": efficientnet.lite_blocks(1.0, 1.0)[:3], "features": 32},
}  # fmt: skip
DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}


@dataclasses.dataclass(frozen=True)
class Scale:
  """How large everything is.

  Attributes:
    tiny: small networks, a step or two of each; the figures say nothing.
    classes: of the head.
    size: of the images, in pixels.
    batches: that are tried, the largest first; the next where memory runs out.
    steps: of an epoch that is scanned.
    rounds: of each measurement; the median counts.
    least_seconds: a round takes at least so long.
    images: of the search's data set.
  """

  tiny: bool = False
  classes: int = 1000
  size: int = 224
  batches: tuple[int, ...] = (256, 128, 64)
  steps: int = 8
  rounds: int = 5
  least_seconds: float = 0.3
  images: int = 1000

  def model(self, name: str, dtype: str = "bfloat16", **options: Any) -> Any:
    """A registered network, or a small one of the same family."""
    fields = {"num_classes": self.classes, "image_size": self.size}
    fields |= {**(TINY[name] if self.tiny else {}), **options}
    return models.create(name, dtype=DTYPES[dtype], **fields)


FULL = Scale()
SMALL = Scale(
  tiny=True, classes=5, size=32, batches=(4,), steps=2, rounds=1, least_seconds=0.0, images=20
)


@dataclasses.dataclass(frozen=True)
class Program:
  """A function that is compiled for the accelerator.

  Attributes:
    name: what it is.
    function: what is compiled.
    arguments: abstract.
    values: makes arguments of these shapes.
    images: that one call reads.
    donate: positions of the arguments that are given up.
    carries: its first result is its first argument in the next call.
    fed: position of an argument that comes from the host in every call, or None.
    opt_bytes: of the optimiser's state.
  """

  name: str
  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  values: Callable[[], tuple[Any, ...]]
  images: int
  donate: tuple[int, ...] = ()
  carries: bool = False
  fed: int | None = None
  opt_bytes: int = 0

  def lowered(self, platform: str | None = None) -> Any:
    """Lowered for a platform, which this machine need not have; None is this machine's own."""
    traced = jax.jit(self.function, donate_argnums=self.donate).trace(*self.arguments)
    return traced.lower(lowering_platforms=(platform,)) if platform else traced.lower()


def abstract(tree: PyTree) -> PyTree:
  """Shapes and dtypes of the arrays."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


def nbytes(tree: PyTree) -> int:
  """Bytes of abstract or real arrays."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@functools.lru_cache(maxsize=32)
def variables_shape(model: Any) -> PyTree:
  """{"params", "batch_stats"} of a network, abstract."""
  image = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
  return {"batch_stats": {}, **jax.eval_shape(model.init, jax.random.key(0), image)}


def random_variables(model: Any, seed: int = 0) -> PyTree:
  """Variables with random kernels, made on the host: the same on every machine.

  Kernels keep the variance of what they read; layer scales are 0.1, at which every block counts.
  """
  shapes = variables_shape(model)
  names = (path.rpartition("/")[2] for path in masks.paths(shapes))
  rows = tuple(zip(names, (x.shape for x in jax.tree.leaves(shapes)), strict=True))
  return jax.tree.unflatten(jax.tree.structure(shapes), _random_leaves(rows, seed))


@functools.lru_cache(maxsize=4)
def _random_leaves(rows: tuple[tuple[str, tuple[int, ...]], ...], seed: int) -> list[np.ndarray]:
  rng = np.random.default_rng(seed)
  return [_random_leaf(rng, name, shape) for name, shape in rows]


def _random_leaf(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
  if name in ("bias", "mean"):
    return np.zeros(shape, np.float32)
  if name in ("scale", "var"):
    return np.ones(shape, np.float32)
  if name in ("layer_scale", "scale1", "scale2"):
    return np.full(shape, 0.1, np.float32)
  fan_in = np.prod(shape[:-1]) if name == "kernel" else 2500
  return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(fan_in))


def random_rows(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
  """Images, or activations of unit variance."""
  rng = np.random.default_rng(seed)
  if dtype == np.uint8:
    return rng.integers(0, 256, shape, np.uint8)
  return rng.standard_normal(shape, np.float32).astype(dtype)


def _read_by(model: Any, start: str | None, n: int) -> jax.ShapeDtypeStruct:
  """What `start` reads of n images; None is the images."""
  side = model.image_size
  if start is None:
    return jax.ShapeDtypeStruct((n, side, side, 3), jnp.uint8)
  image = jax.ShapeDtypeStruct((n, side, side, 3), jnp.float32)
  return jax.eval_shape(functools.partial(model.apply, stop=start), variables_shape(model), image)


def spec_of(model: Any, method: methods.Method, *, cached: bool = False) -> step_lib.StepSpec:
  """The last stage of a method on a network; `cached`: from the activations of the prefix."""
  plan = trainable_split.make_plan(model, variables_shape(model), method[-1])
  start = plan.start if cached else None
  return step_lib.StepSpec(model, plan, method[-1], 100, PREPROCESSING, None, start)


def training(
  name: str,
  spec: step_lib.StepSpec,
  batch: int,
  *,
  steps: int = 0,
  donate: bool = True,
  step: Callable[..., Any] | None = None,
) -> Program:
  """A training step on a batch of a resident set of two batches.

  Args:
    name: of the program.
    spec: what is trained.
    batch: images per step.
    steps: scan over so many; 0 is one step.
    donate: whether the state is given up.
    step: another form of `step.train_step`; its state is made by its own `create_state`.
  """
  labels = np.arange(2 * batch, dtype=np.int32) % spec.model.num_classes
  indices = np.arange(batch, dtype=np.int32)
  rest = (np.tile(indices, (steps, 1)) if steps else indices,
          {"seed": np.int32(0), "epoch": np.int32(0)})  # fmt: skip
  x = _read_by(spec.model, spec.start, 2 * batch)
  moving, fixed = trainable_split.split_variables(variables_shape(spec.model), spec.plan)
  create = (step or spec).create_state
  state = jax.eval_shape(create, moving)
  data = {"x": x, "labels": abstract(labels)}
  arguments = (state, fixed, None, data, *abstract(rest))

  def values():
    moving, fixed = trainable_split.split_variables(random_variables(spec.model), spec.plan)
    data = {"x": random_rows(x.shape, x.dtype), "labels": labels}
    made = jax.jit(create)(jax.device_put(moving, may_alias=False))  # it is given up later
    return (made, *jax.device_put((fixed, None, data)), rest[0], jax.device_put(rest[1]))

  plain = functools.partial(step_lib.train_steps if steps else step_lib.train_step, spec)
  return Program(
    name, step or plain, arguments, values, batch * max(1, steps), donate=(0,) if donate else (),
    carries=True, fed=4, opt_bytes=nbytes(state.opt_state),
  )  # fmt: skip


def inference(name: str, model: Any, batch: int, *, stop: str | None = None) -> Program:
  """The forward pass from uint8 images to logits, or to what `stop` reads."""
  x = _read_by(model, None, batch)
  function = evaluate.forward_program(model, None, stop, PREPROCESSING)

  def values():
    return jax.device_put((random_variables(model), random_rows(x.shape, x.dtype)))

  return Program(name, function, (variables_shape(model), x), values, batch)


def full_fine_tuning() -> methods.Method:
  """All parameters, by SGD with momentum."""
  return methods.full_fine_tuning(RATE, **SGD)


def sub_tuning(blocks: Sequence[str]) -> methods.Method:
  """Some blocks and the head, by SGD with momentum."""
  return methods.sub_tuning(tuple(blocks), RATE, **SGD)
