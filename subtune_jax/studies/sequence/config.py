"""The fields of a study of tasks in sequence."""

from typing import Any

import ml_collections

from subtune_jax import methods
from subtune_jax.data import choices
from subtune_jax.methods import adapted
from subtune_jax.runner import recipes
from subtune_jax.studies.compare import config as compare_config

# These add leaves beside the frozen ones, which the tasks before may have left.
_ADAPTERS = tuple(declared.name for declared in adapted.DECLARATIONS)
_SHARED = ("backbone", "optimizer", "augment")  # sections that a comparison declares


def default() -> Any:
  """Emoji Domains and the four Glyph Domains, one after the other."""
  base = compare_config.default()
  config = ml_collections.ConfigDict()
  config.experiment = "sequence"
  config.name = "multitask"
  config.title = "Tasks, one after the other"
  config.methods = ("lp", "subtuning", "ft", "l2_sp", "lora")  # in the order of the table
  # Methods whose tasks share the frozen backbone; the others go on from the last task's weights.
  config.on_one_backbone = ("lp", "subtuning")
  config.tasks = (  # data sets, in the order in which they are learnt
    "emoji_domains/noto", "glyph_domains/serif", "glyph_domains/sans",
    "glyph_domains/handwriting", "glyph_domains/display",
  )  # fmt: skip
  # Train each task alone as well, for what the tasks before it add to its accuracy.
  config.forward_transfer = True
  config.seed = 0  # heads, orders and views
  config.batch_size = 64  # examples per step, over all devices
  config.trace_steps = base.trace_steps  # of the first training, as in a comparison
  config.data = data = ml_collections.ConfigDict()
  data.image_size = 64  # pixels, square
  data.interpolation = "bicubic"  # of the resize to that size
  data.num_train = 0  # first so many training images of a nested subset by class; 0 is all
  data.subset_seed = 0  # which of the possible subsets
  for name in _SHARED:
    config[name] = base[name]
  for name in recipes.offered():
    config[name] = recipes.section(methods.DECLARED[name])
  return config


def check(config: Any) -> None:
  """Raises ValueError for fields that make no sense."""
  recipes.check_image_size(config)
  recipes.check_seeds("seed", (config.seed,))
  recipes.check_trace(config)
  if len(config.tasks) < 2 or len(set(config.tasks)) != len(config.tasks):
    raise ValueError(f"tasks is {tuple(config.tasks)}; give at least two data sets, each once")
  if not config.methods or len(set(config.methods)) != len(config.methods):
    raise ValueError(f"methods is {tuple(config.methods)}; give at least one, each once")
  for name in config.methods:
    if len(recipes.learning_rates(config, name)) != 1:
      raise ValueError(
        f"{name}.learning_rates is {tuple(config[name].learning_rates)}; a sequence takes one"
      )
    if recipes.changes_network(config, name) and name not in _ADAPTERS:
      raise ValueError(f"{name} changes the network, and tasks of a sequence share one")
  for name in config.on_one_backbone:
    choices.check("method in on_one_backbone", name, recipes.offered())
  if config.backbone.keep_head:
    raise ValueError("backbone.keep_head is True, and every task gets a head of its own")
