"""From a config to the stages of its methods: sections, grids, options that all stages share."""

from collections.abc import Sequence
import re
from typing import Any

import ml_collections
import numpy as np

from subtune_jax import methods
from subtune_jax.data import choices
from subtune_jax.report import words
from subtune_jax.runner import executors
from subtune_jax.statistics import criteria

LARGEST_IMAGE = 4096  # pixels in height and width
# "cat=2.0,": the name may hold commas and equals signs.
_CLASS_WEIGHT = re.compile(r"(?P<name>.+?)=(?P<weight>[^,=]+)(?:,|$)", re.DOTALL)


def offered() -> tuple[str, ...]:
  """Names of the methods that need nothing but a backbone, images and labels, in table order."""
  return tuple(name for name, own in methods.DECLARED.items() if not own.needs)


def section(declaration: methods.Declaration) -> ml_collections.ConfigDict:
  """The fields of a method, at their declared defaults."""
  config = ml_collections.ConfigDict()
  if declaration.gradient is not None:
    config.epochs = declaration.gradient["epochs"]  # of each stage
    # Peak rates tried, chosen on validation.
    config.learning_rates = declaration.gradient["learning_rates"]
    config.head_factor = 1.0  # the head's rate as a multiple of the backbone's
    config.norm_mode = declaration.gradient["norm_mode"]  # BatchNorm of tuned blocks: see Stage
    config.reinit = ()  # blocks that start from fresh weights and statistics: see Stage
  for name, option in declaration.options.items():
    config[name] = option.default  # what it means: `methods.DECLARED[...].options`
  return config


def check_method(name: str) -> None:
  """Raises ValueError unless a comparison has the method."""
  if name not in offered():
    raise ValueError(f"unknown method {name!r}; allowed: {', '.join(offered())}")


def changes_network(config: ml_collections.ConfigDict, name: str) -> bool:
  """Whether a method changes the network before it is trained, by the config."""
  declared = methods.DECLARED.get(name)
  return declared is not None and declared.changes_network(config.get(name))


def learning_rates(config: ml_collections.ConfigDict, name: str) -> tuple[float, ...]:
  """The grid of a method; (0.0,) for the probe, which searches its own."""
  check_method(name)
  if methods.DECLARED[name].gradient is None:
    return (0.0,)
  return rising(f"{name}.learning_rates", config[name].learning_rates)


def rising(field: str, values: Sequence[float]) -> tuple[float, ...]:
  """The values of a field, or a ValueError unless there is one and they are numbers that rise."""
  try:
    found = tuple(float(value) for value in values)
  except (TypeError, ValueError):
    found = ()
  if not found or list(found) != sorted(set(found)) or not np.isfinite(found).all():
    raise ValueError(f"{field} is {tuple(values)}; give at least one number, rising")
  return found


def check_seeds(field: str, values: Sequence[int]) -> None:
  """Raises ValueError unless there is a seed, none comes twice and none is negative."""
  seeds = tuple(values)
  if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
    raise ValueError(f"{field} is {seeds}; give at least one, all different, none negative")


def check_run(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for fields of every run with trainings of its own that make no sense."""
  executors.check(config)
  check_image_size(config)
  criteria.of(config)
  check_seeds("seeds", config.seeds)
  if config.grid_seeds not in ("first", "all"):
    raise ValueError(f"grid_seeds is {config.grid_seeds!r}; allowed: 'first', 'all'")
  if config.resume not in ("latest", "last_good"):
    raise ValueError(f"resume is {config.resume!r}; allowed: 'latest', 'last_good'")
  check_trace(config)
  if config.backbone.dtype not in ("float32", "bfloat16"):
    raise ValueError(f"backbone.dtype is {config.backbone.dtype!r}; allowed: float32, bfloat16")


def check_trace(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for a number of steps to trace that makes no sense, or that run elsewhere."""
  if config.trace_steps < 0:
    raise ValueError(f"trace_steps is {config.trace_steps}; give 0 (off) or more steps")
  workers = config.get("workers", executors.HERE)
  if config.trace_steps and workers != executors.HERE:
    raise ValueError(
      f"trace_steps is {config.trace_steps} and workers {workers!r}: the trainings run on "
      f"other machines; trace one with workers={executors.HERE!r}"
    )


def check_sampling(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for balanced batches in a run that has none."""
  choices.check("sampling", config.sampling, methods.SAMPLING)
  if config.sampling == "balanced" and not any(
    methods.DECLARED[n].gradient for n in config.methods
  ):
    raise ValueError(
      f"sampling is 'balanced', and none of the methods, {', '.join(config.methods)}, has batches; "
      "set loss.class_weights='balanced' for probes"
    )


def check_image_size(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for images that no run can hold, with the memory of a batch of them."""
  size, batch = config.data.image_size, config.batch_size
  if not 1 <= size <= LARGEST_IMAGE:
    taken = words.num_bytes(4 * 3 * size**2 * batch)
    raise ValueError(
      f"data.image_size is {size}; allowed: 1 to {LARGEST_IMAGE} pixels. A batch of {batch} such "
      f"images takes {taken} before any computation"
    )


def stage_options(
  config: ml_collections.ConfigDict, own: ml_collections.ConfigDict, learning_rate: float
) -> dict[str, Any]:
  """Fields of a stage from the section of a method and the optimiser that all share."""
  optimizer = config.optimizer
  return {
    "head_learning_rate": learning_rate * own.head_factor,
    "epochs": own.epochs,
    "norm_mode": own.norm_mode,
    "reinit": tuple(own.get("reinit", ())),
    "optimizer": optimizer.name,
    "momentum": optimizer.momentum,
    "nesterov": optimizer.nesterov,
    "weight_decay": optimizer.weight_decay,
    "clip_norm": optimizer.clip_norm,
    "schedule": optimizer.schedule,
    "warmup": optimizer.warmup,
    "accumulate": optimizer.accumulate,
  }


def class_weights(text: str, class_names: Sequence[str]) -> str | tuple[float, ...]:
  """The class weights of a stage from `loss.class_weights`.

  Args:
    text: "none", "balanced" or "cat=2.0,dog=0.5".
    class_names: of the head.

  Raises:
    ValueError: another text, a class that is not there or named twice, a weight not above 0.
  """
  if text in ("none", "balanced"):
    return text
  found: dict[str, float] = {}
  end = 0
  for pair in _CLASS_WEIGHT.finditer(text):
    if pair.start() != end:
      break
    end, name = pair.end(), pair["name"].strip()
    choices.check("class in loss.class_weights", name, class_names)
    if name in found:
      raise ValueError(f"loss.class_weights names {name!r} twice: {text!r}")
    try:
      found[name] = float(pair["weight"])
    except ValueError:
      break
    if not 0 < found[name] < float("inf"):
      raise ValueError(f"loss.class_weights has {pair.group(0)!r}; a weight is above 0 and finite")
  else:
    if found and end == len(text):
      return tuple(found.get(name, 1.0) for name in class_names)
  raise ValueError(
    f"loss.class_weights is {text!r}; give 'none', 'balanced', or weights such as 'cat=2.0,dog=0.5'"
  )


def balanced(
  config: ml_collections.ConfigDict, method: methods.Method, class_names: Sequence[str]
) -> methods.Method:
  """The method with the config's class weights and sampling, if it has such fields."""
  if "loss" not in config:
    return method
  weights = class_weights(config.loss.class_weights, class_names)
  return methods.balanced(method, weights, config.sampling)


def make_method(
  config: ml_collections.ConfigDict,
  name: str,
  learning_rate: float,
  block_names: Sequence[str],
) -> methods.Method:
  """The stages of a named method at one learning rate, for a network with these blocks."""
  own, declared = config[name], methods.DECLARED[name]
  build = declared.build(own, methods.Context(tuple(block_names)))
  if declared.gradient is None:
    return build(learning_rate)
  stage = build(learning_rate, **stage_options(config, own, learning_rate))
  if not own.get("probe_first", declared.probe_first):
    return stage
  probe = methods.DECLARED["lp"].build(config.lp, methods.Context(tuple(block_names)))
  return probe(learning_rate, rescale=config.lp.rescale) + stage
