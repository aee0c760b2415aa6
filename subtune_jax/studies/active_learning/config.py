"""The fields of a study of active learning, on top of those of a comparison."""

from collections.abc import Sequence
from typing import Any

from subtune_jax import acquisition
from subtune_jax.data import choices
from subtune_jax.runner import executors
from subtune_jax.studies.active_learning import saved
from subtune_jax.studies.compare import config as compare_config


def default() -> Any:
  """Rules of acquisition on Glyph Domains' handwriting for three learners."""
  config = compare_config.default()
  config.save_model = False
  config.experiment = "active_learning"
  config.name = "active_learning"
  config.title = "Which images to label"
  config.methods = ("lp", "subtuning", "ft")  # the learners
  # With `saved.REFERENCE`, which the others are compared with.
  config.rules = tuple(acquisition.RULES)
  config.totals = (100, 200, 400, 800)  # labels in each round, rising; the first are random
  config.data.train = "glyph_domains/handwriting"  # its training split is the pool
  config.data.ood = ()
  config.data.image_size = 32
  return config


def check(config: Any) -> None:
  """Raises ValueError for fields that make no sense."""
  for rule in config.rules:
    choices.check("rule", rule, acquisition.RULES)
  if saved.REFERENCE not in config.rules or len(set(config.rules)) != len(config.rules):
    raise ValueError(
      f"rules is {tuple(config.rules)}; give {saved.REFERENCE!r} and others, each once"
    )
  totals = tuple(config.totals)
  if len(totals) < 2 or list(totals) != sorted(set(totals)) or totals[0] < 1:
    raise ValueError(f"totals is {totals}; give at least two numbers of labels, rising, from 1")
  for field in ("ood", "retrain"):
    if config.data[field]:
      raise ValueError(
        f"data.{field} is {config.data[field]}; this study trains on a part of the training split "
        "and tests on the test split of data.train"
      )
  if config.workers != executors.HERE:
    raise ValueError(f"workers is {config.workers!r}; a round waits for the one before: set 'here'")
  if config.save_model:
    raise ValueError("save_model is True; this study keeps no network")


def check_pool(totals: Sequence[int], size: int, name: str) -> None:
  """Raises ValueError where more labels are wanted than the pool has images."""
  if totals[-1] > size:
    raise ValueError(f"totals ends with {totals[-1]}, and the pool, {name}, has {size} images")
