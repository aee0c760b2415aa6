"""Named settings of published VTAB-1k tables, so that a number can be laid beside them.

Normalisation, grid and epochs move a table's rows more than its methods differ, so a number goes
with its protocol. What a source does not say stays the suite's own. All of them choose on 800
training and 200 validation images, the same for every task, and train on the 1,000.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from subtune_jax import files, methods
from subtune_jax.data import choices
from subtune_jax.runner import recipes


class Protocol(NamedTuple):
  """A protocol.

  Attributes:
    says: what it sets, in a sentence.
    apply: changes a config of the suite.
  """

  says: str
  apply: Callable[[Any], None]


def _vtab(config: Any) -> None:
  """google-research/task_adaptation, scripts/run_all_tasks.sh: 1,000 steps of 64 images."""
  config.batch_size, config.data.interpolation = 64, "bilinear_no_antialias"
  _optimizer(config, name="sgd", weight_decay=0.0, schedule="steps", warmup=0.08)
  _train(config, epochs=round(1000 / (1000 / 64)), rates=(1e-2,))


def _petl(config: Any) -> None:
  """OSU-MLB/PETL_Vision: pixels in [0, 1] and no more, AdamW, stochastic depth."""
  if not config.backbone.name.startswith("vit"):
    raise ValueError(
      f"protocol 'petl' is of vision transformers, and backbone.name is {config.backbone.name!r}; "
      "give backbone=vit_b16,weights=vit_b16/augreg-in21k, or another protocol"
    )
  config.backbone.preprocessing, config.backbone.options = "unit", "drop_path=0.1"
  config.batch_size = 64
  _optimizer(config, name="adam", weight_decay=1e-4, schedule="cosine", warmup=0.1)
  _train(config, epochs=100, rates=(1e-3, 1e-2))


def _subtuning(config: Any) -> None:
  """The released code of SubTuning: AdamW at 1e-3 with weight decay 0.01, 20 epochs."""
  config.batch_size = 256
  _optimizer(config, name="adam", weight_decay=1e-2, schedule="cosine", warmup=0.0)
  _train(config, epochs=20, rates=(1e-3,))
  config.search.learning_rate, config.search.epsilon, config.search.folds = 1e-3, 0.01, 5


def _optimizer(config: Any, **fields: Any) -> None:
  for name, value in fields.items():
    config.optimizer[name] = value


def _train(config: Any, epochs: int, rates: tuple[float, ...]) -> None:
  for name in recipes.offered():
    if methods.DECLARED[name].gradient is not None:
      config[name].epochs, config[name].learning_rates = epochs, rates
  config.search.epochs = epochs


PROTOCOLS = {
  "vtab": Protocol(
    "SGD with momentum 0.9 at 0.01, a tenth of it after 30, 60 and 90 % of 1,000 steps of 64 "
    "images, warm-up of 8 %; bilinear resize without antialiasing (task_adaptation)",
    _vtab,
  ),
  "petl": Protocol(
    "AdamW, learning rates 1e-3 and 1e-2, weight decay 1e-4 (theirs also tries 1e-3), 100 epochs "
    "of batches of 64, stochastic depth 0.1, pixels in [0, 1] without mean and deviation "
    "(PETL_Vision)",
    _petl,
  ),
  "subtuning": Protocol(
    "AdamW at 1e-3, weight decay 0.01, 20 epochs of batches of 256, cosine; greedy search on 5 "
    "folds with epsilon 0.01 (the released code of SubTuning)",
    _subtuning,
  ),
}


def use(config: Any, name: str) -> None:
  """Sets what a protocol sets.

  Raises:
    ValueError: an unknown protocol, or a backbone that it does not fit.
  """
  choices.check("protocol", name, PROTOCOLS)
  PROTOCOLS[name].apply(config)
  config.protocol = name


def described(config: Any) -> str:
  """The protocol of a config in a sentence, with the fields that differ from it; "" if none."""
  if not config.protocol:
    return ""
  wanted = config.copy_and_resolve_references()
  use(wanted, config.protocol)
  own, wanted = files.flatten(config.to_dict()), files.flatten(wanted.to_dict())
  changed = [f"{path} {value!r}" for path, value in own.items() if value != wanted[path]]
  text = f"Protocol {config.protocol}: {PROTOCOLS[config.protocol].says}."
  return f"{text} Changed: {', '.join(changed)}." if changed else text
