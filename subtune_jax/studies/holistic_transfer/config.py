"""The fields of a study of holistic transfer, and the methods that it compares."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections

from subtune_jax import methods
from subtune_jax.calibration import class_splits
from subtune_jax.data import choices, splits
from subtune_jax.runner import executors, recipes
from subtune_jax.search import units as units_lib
from subtune_jax.studies.compare import config as compare_config


class _Own(NamedTuple):
  """A method of this study: its declaration, a title where it has another one here, and whether the
  head, which knows the classes, stays frozen."""

  declared: str
  title: str = ""
  freeze_head: bool = False


_METHODS = {
  "ft": _Own("ft", "Fine-tuning"),
  "lp": _Own("head_only", "Linear probing"),
  "frozen_classifier": _Own("ft", "Frozen classifier", freeze_head=True),
  "batch_norm_only": _Own("batch_norm_only", freeze_head=True),
  "l2_sp": _Own("l2_sp"),
  "distillation": _Own("distillation"),
  "feature_rank": _Own("feature_rank"),
  "swa": _Own("swa"),
  "ema": _Own("ema", "EMA"),
  "lolsgd": _Own("lolsgd"),
}
TITLES = {
  name: own.title or methods.DECLARED[own.declared].title for name, own in _METHODS.items()
} | {"wise_ft": "WiSE-FT", "oracle": "Oracle (all classes)"}
PRETRAINED = "pretrained"
WISE_FT, ORACLE = "wise_ft", "oracle"  # made of others: no section of their own
SUBTUNING = "subtuning"
_SOURCE_METHODS = ("ft", "lp_ft")
_HOW = ("random", "group", "given")
_SEPARATOR = ":"  # "subtuning:early", "sweep:adam:0.01"

# Three blocks of EfficientNet-Lite0 at a time.
GROUPS = (
  "stem..1: stem block0 block1; 2..4: block2 block3 block4; 5..7: block5 block6 block7; "
  "8..10: block8 block9 block10; 11..13: block11 block12 block13; 14..top: block14 block15 top"
)


def default() -> ml_collections.ConfigDict:
  """All methods from one domain of Emoji Domains to another; 22 of 45 classes are seen."""
  config = compare_config.default()
  for name in recipes.offered():
    del config[name]
  del config.sampling, config.loss, config.select_by
  del config.data["ood"], config.data["label_map"], config.data["retrain"], config.data["shift"]
  del config.data["num_train"], config.data["subset_seed"], config.data["flip_labels"]
  config.experiment = "holistic_transfer"
  config.name = "calibration"
  config.title = "Fine-tuning on some of the classes"
  config.methods = tuple(TITLES)
  config.data.train = "emoji_domains/twemoji"  # the target
  config.optimizer.name = "sgd"  # one of methods.OPTIMIZERS
  config.optimizer.nesterov = True
  config.optimizer.weight_decay = 5e-4
  config.optimizer.steps_per_epoch = 5  # an "epoch" is so many steps; 0: one pass

  config.source = source = _gradient(epochs=8, learning_rates=(1e-4, 1e-3))
  source.data = "emoji_domains/noto"  # where the source model learns all classes
  source.method = "lp_ft"  # "ft" or "lp_ft"; nothing is trained with backbone.keep_head
  source.optimizer = "adam"
  source.head_factor = 1.0
  source.class_embeddings = ""  # with keep_head: .npz for a zero-shot head (weights/zero_shot.py)

  config.holistic = holistic = ml_collections.ConfigDict()
  holistic.how = "random"  # seen classes: "random", whole super-classes ("group"), or "given"
  holistic.num_seen = (22,)  # classes fine-tuned on; the first is the study, the rest are figure 8
  holistic.hows = ("random",)  # of the further numbers: "random" and "group"
  holistic.given = ()  # names of the seen classes, where how is "given"
  holistic.separator = "-"  # a super-class is what stands before it in the name of a class
  holistic.classes_by_seed = True  # a seed draws its own classes; False: those of the first seed
  holistic.along = ("ft",)  # read after every epoch (figures 4, 5, 6, 11); the others at the end
  holistic.wise_alphas = (0.5,)  # WiSE-FT: shares of the fine-tuned weights
  holistic.pcv_methods = ("ft",)  # with gamma by PCV; each costs pcv_splits trainings a seed
  holistic.pcv_splits = 3  # pseudo splits of each seed
  holistic.target_split = (64, 16, 20)  # train, validation, test of a target that has one split
  holistic.memory_gb = 1.0  # of activations kept between trainings

  config.sweep = sweep = ml_collections.ConfigDict()
  sweep.optimizers = ()  # figure 9, of fine-tuning on the first seed; () leaves it out
  sweep.learning_rates = (1e-4, 1e-3, 1e-2, 1e-1)  # of the backbone
  sweep.weight_decays = (0.0, 5e-4, 5e-3)

  for name, own in _METHODS.items():
    config[name] = _gradient(epochs=8, learning_rates=(1e-3, 3e-3, 1e-2))
    for field, option in methods.DECLARED[own.declared].options.items():
      config[name][field] = option.default
  config.lp.head_factor, config.lp.learning_rates = 1.0, (1e-4, 1e-3, 1e-2)
  config.batch_norm_only.learning_rates = (1e-3, 1e-2, 1e-1)
  config.ema.decay = 0.9  # epochs are short here
  config.subtuning = _gradient(epochs=8, learning_rates=(1e-2,))
  config.subtuning.units = GROUPS  # "" leaves it out; "blocks", "stages" or named groups
  config.subtuning.head = True  # train the classifier beside the blocks
  return config


def _gradient(*, epochs: int, learning_rates: tuple[float, ...]) -> Any:
  config = ml_collections.ConfigDict()
  config.epochs = epochs
  config.learning_rates = learning_rates  # peak rates tried, chosen on validation of seen classes
  # The head's rate as a multiple of the backbone's. The paper has 10 and BatchNorm on the batch,
  # over 10,000 steps; in 40 steps from a probe, validation (seen classes) is best with these.
  config.head_factor = 0.1
  config.norm_mode = "running"  # BatchNorm of tuned blocks: "batch" or "running" statistics
  return config


def section(name: str) -> str:
  """The section of the config that a method's stage comes from."""
  name = name.partition(_SEPARATOR)[0]
  return "ft" if name in (ORACLE, "sweep") else name


def sweep_name(optimizer: str, weight_decay: float) -> str:
  """The name of fine-tuning with another optimiser."""
  return _SEPARATOR.join(("sweep", optimizer, f"{weight_decay:g}"))


def unit_name(unit: str) -> str:
  """The name of SubTuning of one unit."""
  return SUBTUNING + _SEPARATOR + unit


def title(name: str) -> str:
  """As tables show it."""
  kind, _, rest = name.partition(_SEPARATOR)
  if kind == SUBTUNING:
    return f"SubTuning({rest})"
  if kind == "sweep":
    optimizer, _, decay = rest.partition(_SEPARATOR)
    return f"Fine-tuning, {optimizer}, weight decay {decay}"
  return "Source model" if kind == PRETRAINED else TITLES[kind]


def learning_rates(config: ml_collections.ConfigDict, name: str) -> tuple[float, ...]:
  """The grid of a method."""
  if name.partition(_SEPARATOR)[0] not in (*TITLES, SUBTUNING, "sweep"):
    raise ValueError(f"unknown method {name!r}; allowed: {', '.join(TITLES)}")
  own = config.sweep if name.startswith("sweep") else config[section(_base(name))]
  return recipes.rising(f"{section(_base(name))}.learning_rates", own.learning_rates)


def _base(name: str) -> str:
  return "ft" if name == WISE_FT else name


def units(config: ml_collections.ConfigDict, block_names: Sequence[str]) -> list[units_lib.Unit]:
  """What the study per block trains, one at a time."""
  spec = config.subtuning.units
  return units_lib.parse(spec, block_names) if spec else []


def make_method(
  config: ml_collections.ConfigDict,
  name: str,
  learning_rate: float,
  block_names: Sequence[str],
) -> methods.Method:
  """The stage of a named method at one learning rate, for a network with these blocks."""
  kind, _, rest = _base(name).partition(_SEPARATOR)
  own = config[section(kind)]
  stage = recipes.stage_options(config, own, learning_rate)
  stage |= {"steps_per_epoch": config.optimizer.steps_per_epoch}
  if kind == "sweep":
    optimizer, _, decay = rest.partition(_SEPARATOR)
    stage |= {"optimizer": optimizer, "weight_decay": float(decay)}
  if kind == SUBTUNING:
    unit = next((u for u in units(config, block_names) if u.name == rest), None)
    if unit is None:
      raise ValueError(f"unknown unit {rest!r} in subtuning.units, {config.subtuning.units!r}")
    made = methods.sub_tuning(unit.blocks, learning_rate, **stage)
    return made if own.head else methods.without_head(made)
  declared = _METHODS[section(kind)]
  context = methods.Context(tuple(block_names), config.optimizer.steps_per_epoch)
  made = methods.DECLARED[declared.declared].build(own, context)(learning_rate, **stage)
  return methods.without_head(made) if declared.freeze_head else made


def check(config: Any) -> None:
  """Raises ValueError for fields that make no sense."""
  _check_names(config)
  own = config.holistic
  executors.check_here(config)
  recipes.check_run(config)
  choices.check("holistic.how", own.how, _HOW)
  choices.check("source.method", config.source.method, _SOURCE_METHODS)
  if (own.how == "given") != bool(own.given):
    raise ValueError(
      f"holistic.how is {own.how!r} and holistic.given is {tuple(own.given)}; names of seen "
      "classes go with how='given', and with it only"
    )
  numbers = tuple(own.num_seen)
  if not numbers or min(numbers) < 2 or len(set(numbers)) != len(numbers):
    raise ValueError(f"holistic.num_seen is {numbers}; give at least one, each once, at least 2")
  for how in own.hows:
    choices.check("holistic.hows", how, _HOW[:2])
  if "swa" in config.methods and not config.optimizer.steps_per_epoch:
    raise ValueError("swa counts steps: give optimizer.steps_per_epoch, or leave out 'swa'")
  if own.pcv_methods and own.pcv_splits < 1:
    raise ValueError(f"holistic.pcv_splits is {own.pcv_splits}; give at least 1")
  if not all(0 < alpha < 1 for alpha in own.wise_alphas):
    raise ValueError(f"holistic.wise_alphas is {tuple(own.wise_alphas)}; each lies in (0, 1)")
  if config.source.class_embeddings and not config.backbone.keep_head:
    raise ValueError("source.class_embeddings makes a head: set backbone.keep_head to True")


def _check_names(config: Any) -> None:
  """The names of methods and optimisers."""
  own, names = config.holistic, tuple(config.methods)
  if "ft" not in names or len(set(names)) != len(names):
    raise ValueError(f"methods is {names}; give each once, and 'ft' among them")
  for name in names:
    choices.check("method", name, tuple(TITLES))
    learning_rates(config, name)
  for field in ("along", "pcv_methods"):
    for name in own[field]:
      if name not in names or name in (WISE_FT, ORACLE):
        trained = [n for n in names if n not in (WISE_FT, ORACLE)]
        raise ValueError(f"holistic.{field} holds {name!r}; give some of {', '.join(trained)}")
  for optimizer in config.sweep.optimizers:
    choices.check("sweep.optimizers", optimizer, methods.OPTIMIZERS)
  if config.sweep.optimizers and not config.sweep.weight_decays:
    raise ValueError("sweep.weight_decays is (); give at least one, e.g. (0.0,)")


def class_groups(config: Any, class_names: Sequence[str]) -> list[str]:
  """The super-class of each class."""
  separator = config.holistic.separator
  if not separator:
    raise ValueError("holistic.separator is ''; super-classes need one, such as '-'")
  return [name.partition(separator)[0] for name in class_names]


def draw(
  config: Any, class_names: Sequence[str], num_seen: int, seed: int, how: str
) -> class_splits.Partition:
  """The seen and absent classes of one seed.

  Raises:
    ValueError: unknown classes, or a number that does not fit; the message says what would.
  """
  own = config.holistic
  if how == "given":
    return class_splits.from_names(class_names, tuple(own.given))
  if not own.classes_by_seed:
    seed = config.seeds[0]
  groups = class_groups(config, class_names) if how == "group" else None
  drawn = splits.class_split(len(class_names), num_seen, seed, groups, how)
  return class_splits.from_indices(len(class_names), drawn.seen)


def source_config(config: Any) -> Any:
  """The comparison of one method that trains the source model."""
  own = compare_config.default()
  for name in ("seeds", "batch_size", "resume", "checkpoint_seconds", "tensorboard"):
    own[name] = config[name]
  own.seeds = tuple(config.seeds)[:1]
  for name in ("backbone", "augment"):
    own[name].update(config[name])
  own.name, own.title = "source", "The source model"
  source = config.source
  own.methods = (source.method,)
  own.data.train, own.data.ood = source.data, ()
  own.data.image_size, own.data.interpolation = config.data.image_size, config.data.interpolation
  own.optimizer.name = source.optimizer
  for field in ("epochs", "learning_rates", "head_factor", "norm_mode"):
    own[source.method][field] = source[field]
  return own
