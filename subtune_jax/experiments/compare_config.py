"""The fields of a comparison of methods, and what they mean for the other rooms.

`configs/*.py` start from `default()` and change what they need. A field that is not here is an
error.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import ml_collections

from subtune_jax import data, hooks, methods
from subtune_jax.data import choices, shifts

TITLES = {
  "lp": "Linear probing",
  "ft": "Full fine-tuning",
  "lp_ft": "LP-FT",
  "subtuning": "SubTuning",
  "gradual_unfreezing": "Gradual unfreezing",
  "auto_rgn": "Auto-RGN",
  "auto_snr": "Auto-SNR",
  "l2_sp": "L2-SP",
  "ema": "Fine-tuning, EMA",
  "layerwise_decay": "Layer-wise rates",
  "frozen_embedding": "Frozen embedding",
  "batch_norm_only": "BatchNorm only",
  "bias_only": "Biases only",
}

# Learning rates that a full run tries, by decades (Adam). LP-FT wants lower ones than full
# fine-tuning does (LP-FT, appendix on hyper-parameters).
GRIDS = {
  "ft": (1e-5, 1e-4, 1e-3, 1e-2),
  "lp_ft": (1e-6, 1e-5, 1e-4, 1e-3),
  "subtuning": (1e-5, 1e-4, 1e-3, 1e-2),
  "gradual_unfreezing": (1e-5, 1e-4, 1e-3, 1e-2),
  "auto_rgn": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),  # the released code's; multipliers are at most 1
  "auto_snr": (1e-5, 1e-4, 1e-3, 1e-2),
  "l2_sp": (1e-5, 1e-4, 1e-3, 1e-2),
  "ema": (1e-5, 1e-4, 1e-3, 1e-2),
  "layerwise_decay": (1e-5, 1e-4, 1e-3, 1e-2),
  "frozen_embedding": (1e-5, 1e-4, 1e-3, 1e-2),
  "batch_norm_only": (1e-4, 1e-3, 1e-2, 1e-1),
  "bias_only": (1e-4, 1e-3, 1e-2, 1e-1),
}


def default() -> ml_collections.ConfigDict:
  """A comparison of the four methods on Emoji Domains, one learning rate each."""
  config = ml_collections.ConfigDict()
  config.experiment = "compare"  # which module of subtune_jax.experiments runs
  config.name = "compare"  # names the default workdir, runs/<name>
  config.title = "Linear probing, full fine-tuning, LP-FT and SubTuning"  # heads the report
  config.methods = ("lp", "ft", "lp_ft", "subtuning")  # which, in the order of the table
  config.seeds = (0, 1, 2)  # heads, orders and views
  config.grid_seeds = "first"  # learning rates are tried on the "first" seed, or on "all"
  config.batch_size = 64  # examples per step, over all devices
  config.resume = "latest"  # "latest", or "last_good": skip a damaged newest checkpoint
  config.checkpoint_seconds = 30.0  # least time between two checkpoints of one training
  config.tensorboard = True  # write TensorBoard events through clu (needs TensorFlow)

  config.data = data = ml_collections.ConfigDict()
  data.train = "emoji_domains/noto"  # its train and validation splits; its test split is "ID"
  data.ood = ("emoji_domains/twemoji", "emoji_domains/openmoji", "emoji_domains/fluent")
  data.image_size = 64  # pixels, square
  data.interpolation = "bicubic"  # of the resize to that size; VTAB's is "bilinear_no_antialias"
  data.label_map = ()  # "theirs=ours": classes of data.ood called otherwise; "theirs=" drops one
  data.shift = ""  # benchmark of data.shifts whose label maps and class masks hold for data.ood
  data.num_train = 0  # first so many training images of a nested subset by class; 0 is all
  data.subset_seed = 0  # which of the possible subsets
  data.flip_labels = False  # call class c of data.train num_classes - 1 - c: an output-level shift
  data.retrain = False  # after the choices, train on train + validation (VTAB-1k's protocol)

  config.backbone = backbone = ml_collections.ConfigDict()
  backbone.name = "efficientnet_lite0"  # subtune_jax.models
  backbone.weights = "efficientnet_lite0/imagenet"  # a known name, a file, or "random"
  backbone.preprocessing = ""  # key of preprocess.PRESETS; "" is what the weights tell
  backbone.keep_head = False  # start from the head of the weights, which has to have these classes
  backbone.dtype = "float32"  # of the computation: "float32" or "bfloat16"

  config.augment = augment = ml_collections.ConfigDict()
  augment.kind = "none"  # "none", "shift" or "resized_crop"
  augment.pad = 4  # of "shift": largest shift in pixels
  augment.flip = False  # mirror left and right half of the time
  augment.color = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue
  augment.mixup = 0.0  # alpha of mixup; 0 is off
  augment.num_views = 1 << 20  # views repeat after so many epochs

  config.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.name = "adam"  # "adam" (AdamW where weight_decay > 0), "sgd"; methods.OPTIMIZERS
  optimizer.momentum = 0.9  # of "sgd"
  optimizer.nesterov = False  # of "sgd"
  optimizer.weight_decay = 0.0
  optimizer.clip_norm = 0.0  # of the gradient of what is trained; 0 is off
  optimizer.schedule = "cosine"  # "cosine" or "constant"
  optimizer.warmup = 0.0  # share of the steps

  config.lp = lp = ml_collections.ConfigDict()
  lp.l2 = methods.DEFAULT_L2  # strengths tried, chosen on validation
  lp.standardize = "scalar"  # "scalar", "feature" or "none"
  lp.max_steps = 0  # stop every probe after so many L-BFGS steps from a zero head; 0: converged
  lp.rescale = False  # fine-tune a probed head at the standard deviation of the random one

  config.ft = _gradient(epochs=8, learning_rates=(1e-3,), norm_mode="batch")
  config.lp_ft = _gradient(epochs=8, learning_rates=(1e-4,), norm_mode="running")
  config.subtuning = _gradient(epochs=8, learning_rates=(1e-3,), norm_mode="batch")
  config.subtuning.blocks = ("block13", "block14", "block15", "top")  # trained beside the head
  config.subtuning.probe_first = False  # start from the linear probe rather than a random head
  config.gradual_unfreezing = _gradient(epochs=4, learning_rates=(1e-3,), norm_mode="batch")
  config.gradual_unfreezing.groups = ("block14 block15 top", "block11 block12 block13")
  config.auto_rgn = _auto(epochs=8, learning_rates=(1e-2,))
  config.auto_snr = _auto(epochs=8, learning_rates=(1e-3,))
  config.auto_snr.threshold = 0.0  # below it a tensor is frozen; 0: 0.05, or 0.95 when released
  config.l2_sp = _gradient(epochs=8, learning_rates=(1e-3,), norm_mode="batch")
  config.l2_sp.weight = 0.01  # of |theta - theta_0|^2
  config.l2_sp.head_weight = 0.0  # of |w|^2 over the head
  config.ema = _gradient(epochs=8, learning_rates=(1e-3,), norm_mode="batch")
  config.ema.decay = 0.95  # of the running average of full fine-tuning's parameters
  config.layerwise_decay = _gradient(epochs=8, learning_rates=(1e-3,), norm_mode="batch")
  config.layerwise_decay.decay = 0.8  # a block's rate is decay^(distance from the head)
  config.frozen_embedding = _gradient(epochs=8, learning_rates=(1e-3,), norm_mode="batch")
  config.frozen_embedding.blocks = ("stem",)  # stays frozen; ("embedding",) of a ViT
  config.batch_norm_only = _gradient(epochs=8, learning_rates=(1e-2,), norm_mode="batch")
  config.bias_only = _gradient(epochs=8, learning_rates=(1e-2,), norm_mode="batch")
  return config


def _gradient(*, epochs: int, learning_rates: tuple[float, ...], norm_mode: str) -> Any:
  config = ml_collections.ConfigDict()
  config.epochs = epochs  # of each stage
  config.learning_rates = learning_rates  # peak rates tried, chosen on validation
  config.head_factor = 1.0  # the head's rate as a multiple of the backbone's
  config.norm_mode = norm_mode  # BatchNorm of tuned blocks: "batch" or "running" statistics
  return config


def _auto(*, epochs: int, learning_rates: tuple[float, ...]) -> Any:
  config = _gradient(epochs=epochs, learning_rates=learning_rates, norm_mode="batch")
  config.num_batches = 5  # read at the start of an epoch to set the tensors' rates; 0 is all
  config.released = False  # the formula of the paper's code, not that of the paper
  config.probe_first = False  # start from the linear probe: the paper's heads know the classes
  return config


def learning_rates(config: ml_collections.ConfigDict, name: str) -> tuple[float, ...]:
  """The grid of a method; (0.0,) for the probe, which searches its own."""
  if name not in TITLES:
    raise ValueError(f"unknown method {name!r}; allowed: {', '.join(TITLES)}")
  if name == "lp":
    return (0.0,)
  return rising(f"{name}.learning_rates", config[name].learning_rates)


def rising(field: str, values: Sequence[float]) -> tuple[float, ...]:
  """The values of a field, or a ValueError unless there is one and they rise."""
  found = tuple(float(value) for value in values)
  if not found or list(found) != sorted(set(found)):
    raise ValueError(f"{field} is {found}; give at least one, rising")
  return found


def check_seeds(field: str, values: Sequence[int]) -> None:
  """Raises ValueError unless there is a seed, none comes twice and none is negative."""
  seeds = tuple(values)
  if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
    raise ValueError(f"{field} is {seeds}; give at least one, all different, none negative")


def check_run(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for fields of every run with trainings of its own that make no sense."""
  check_seeds("seeds", config.seeds)
  if config.grid_seeds not in ("first", "all"):
    raise ValueError(f"grid_seeds is {config.grid_seeds!r}; allowed: 'first', 'all'")
  if config.resume not in ("latest", "last_good"):
    raise ValueError(f"resume is {config.resume!r}; allowed: 'latest', 'last_good'")
  if config.backbone.dtype not in ("float32", "bfloat16"):
    raise ValueError(f"backbone.dtype is {config.backbone.dtype!r}; allowed: float32, bfloat16")


def stage_options(
  config: ml_collections.ConfigDict, own: ml_collections.ConfigDict, learning_rate: float
) -> dict[str, Any]:
  """Fields of a stage from the section of a method and the optimiser that all share."""
  optimizer = config.optimizer
  return {
    "head_learning_rate": learning_rate * own.head_factor,
    "epochs": own.epochs,
    "norm_mode": own.norm_mode,
    "optimizer": optimizer.name,
    "momentum": optimizer.momentum,
    "nesterov": optimizer.nesterov,
    "weight_decay": optimizer.weight_decay,
    "clip_norm": optimizer.clip_norm,
    "schedule": optimizer.schedule,
    "warmup": optimizer.warmup,
  }


def make_method(
  config: ml_collections.ConfigDict,
  name: str,
  learning_rate: float,
  block_names: Sequence[str],
) -> methods.Method:
  """The stages of a named method at one learning rate, for a network with these blocks."""
  probe = functools.partial(
    methods.linear_probing,
    l2=tuple(config.lp.l2),
    standardize=config.lp.standardize,
    max_steps=config.lp.max_steps or None,
  )
  if name == "lp":
    return probe()
  own = config[name]
  probe_first = own.probe_first if "probe_first" in own else name == "lp_ft"
  first = probe(rescale=config.lp.rescale) if probe_first else ()
  if name.startswith("auto_"):
    return first + _auto_method(config, name, learning_rate)
  stage = stage_options(config, own, learning_rate)
  return first + _BUILDERS[name](own, block_names)(learning_rate, **stage)


# Section of the config and blocks of the network -> function of a learning rate and stage options.
_BUILDERS: dict[str, Callable[[Any, Sequence[str]], Callable[..., methods.Method]]] = {
  "ft": lambda own, blocks: methods.full_fine_tuning,
  "lp_ft": lambda own, blocks: methods.full_fine_tuning,
  "subtuning": lambda own, blocks: functools.partial(methods.sub_tuning, tuple(own.blocks)),
  "gradual_unfreezing": lambda own, blocks: functools.partial(
    methods.gradual_unfreezing, [group.split() for group in own.groups]
  ),
  "l2_sp": lambda own, blocks: functools.partial(
    methods.l2_sp, weight=own.weight, head_weight=own.head_weight
  ),
  "ema": lambda own, blocks: functools.partial(
    methods.full_fine_tuning, average=hooks.EMA(own.decay)
  ),
  "layerwise_decay": lambda own, blocks: functools.partial(
    methods.layerwise_decay, blocks=tuple(blocks), decay=own.decay
  ),
  "frozen_embedding": lambda own, blocks: functools.partial(
    methods.frozen_embedding, blocks=tuple(own.blocks)
  ),
  "batch_norm_only": lambda own, blocks: methods.batch_norm_only,
  "bias_only": lambda own, blocks: methods.bias_only,
}


def _auto_method(
  config: ml_collections.ConfigDict, name: str, learning_rate: float
) -> methods.Method:
  """The stage of Auto-RGN or Auto-SNR."""
  own = config[name]
  stage = stage_options(config, own, learning_rate)
  stage |= {"num_batches": own.num_batches or None, "released": own.released}
  if name == "auto_rgn":
    return methods.auto_rgn(learning_rate, **stage)
  return methods.auto_snr(learning_rate, threshold=own.threshold or None, **stage)


def parse_argument(argument: str, allowed: tuple[str, ...]) -> dict[str, str]:
  """The "key=value,key=value" behind the colon of --config=file.py:...

  Raises:
    ValueError: a key that is not allowed or is given twice, or a part without "=".
  """
  given: dict[str, str] = {}
  for part in filter(None, argument.split(",")):
    key, equals, value = part.partition("=")
    if not equals or not value:
      raise ValueError(f"config argument {part!r} is not of the form key=value")
    if key not in allowed or key in given:
      problem = "is given twice" if key in given else "is unknown"
      raise ValueError(
        f"config argument {key!r} {problem}; allowed, once each: {', '.join(allowed)}"
      )
    given[key] = value
  return given


def integer(name: str, text: str) -> int:
  """A positive integer from the command line."""
  if not text.isdecimal() or int(text) < 1:
    raise ValueError(f"{name} is {text!r}; give a positive integer")
  return int(text)


def use_method(config: ml_collections.ConfigDict, name: str) -> None:
  """Runs one method, with its full grid of learning rates."""
  if name not in TITLES:
    raise ValueError(f"unknown method {name!r}; allowed: {', '.join(TITLES)}")
  config.methods = (name,)
  config.title = TITLES[name]
  if name != "lp":
    config[name].learning_rates = GRIDS[name]


def use_dataset(config: ml_collections.ConfigDict, name: str) -> None:
  """Trains on `name`; the other Emoji Domains are out of distribution for one of them."""
  family = "emoji_domains/"
  config.data.train = name
  config.data.ood = tuple(
    x for x in data.names() if name.startswith(family) and x.startswith(family) and x != name
  )


def check_weights(given: Mapping[str, str]) -> None:
  """Raises ValueError where arguments give one of backbone and weights alone."""
  if ("backbone" in given) != ("weights" in given):
    raise ValueError(
      "give backbone and weights together, such as backbone=vit_b16,weights=vit_b16/augreg-in21k"
    )


def use_network(config: ml_collections.ConfigDict, given: Mapping[str, str]) -> None:
  """Backbone, weights, preprocessing and image size, where arguments give them."""
  for field, key in (("name", "backbone"), ("weights", "weights"),
                     ("preprocessing", "preprocessing")):  # fmt: skip
    config.backbone[field] = given.get(key, config.backbone[field])
  if "image_size" in given:
    config.data.image_size = integer("image_size", given["image_size"])


def use_shift(config: ml_collections.ConfigDict, name: str) -> None:
  """Trains on the source of a shift benchmark and tests on all of its shifted sets."""
  choices.check("shift", name, shifts.SHIFTS)
  shift = shifts.SHIFTS[name]
  config.data.shift = name
  config.data.train, config.data.ood = shift.id_data, shift.ood_data
