"""The fields of a robustness study, on top of those of a comparison."""

from typing import Any

import ml_collections

from subtune_jax.robustness import selection
from subtune_jax.runner import executors, recipes
from subtune_jax.studies import arguments
from subtune_jax.studies.compare import config as compare_config


def default() -> ml_collections.ConfigDict:
  """LP, FT, LP-FT and SubTuning in and out of distribution, at learning rates over decades."""
  config = compare_config.default()
  config.experiment = "robustness"
  config.name = "robustness"
  config.title = "In and out of distribution"
  config.grid_seeds = "all"
  arguments.use_full_grids(config, config.methods)
  config.robustness = robustness = ml_collections.ConfigDict()
  robustness.selection = "last"  # epoch behind tables and figures: "last" or "early_stopping"
  robustness.test_images = 0  # of each test set, read after every epoch; a fixed draw; 0 is all
  robustness.interpolate = ("ft", "lp_ft")  # methods with a curve of weights from the probe's
  robustness.num_alphas = 11  # points of that curve, both ends among them
  robustness.probe_steps = ()  # LP-FT again from probes stopped after so many L-BFGS steps
  return config


def check(config: Any) -> None:
  """Raises ValueError for fields that make no sense; `compare.check` does the rest."""
  executors.check_here(config)
  own = config.robustness
  if own.selection not in selection.RULES:
    raise ValueError(
      f"robustness.selection is {own.selection!r}; allowed: {', '.join(selection.RULES)}. The "
      "oracle is always reported beside it and never chooses"
    )
  unknown = [name for name in own.interpolate if name not in config.methods or name == "lp"]
  if unknown:
    raise ValueError(
      f"robustness.interpolate holds {unknown[0]!r}; give fine-tuned methods of config.methods, "
      f"{', '.join(name for name in config.methods if name != 'lp')}"
    )
  if own.interpolate and "lp" not in config.methods:
    raise ValueError("robustness.interpolate starts from the probe; add 'lp' to config.methods")
  if own.interpolate and own.num_alphas < 2:
    raise ValueError(f"robustness.num_alphas is {own.num_alphas}; give at least 2")
  if own.test_images < 0:
    raise ValueError(f"robustness.test_images is {own.test_images}; give a number, or 0 for all")
  changed = [name for name in config.methods if recipes.changes_network(config, name)]
  if changed:
    raise ValueError(
      f"methods holds {changed[0]!r}, which changes the network; this study compares features "
      "block by block, leave it out"
    )
  steps = tuple(own.probe_steps)
  if list(steps) != sorted(set(steps)) or (steps and steps[0] < 1):
    raise ValueError(f"robustness.probe_steps is {steps}; give rising numbers from 1")
  if steps and "lp_ft" not in config.methods:
    raise ValueError("robustness.probe_steps needs 'lp_ft' in config.methods")
  if config.data.retrain:
    raise ValueError("data.retrain is True; this study selects on the validation split, set it to "
                     "False")  # fmt: skip


def use_methods(config: Any, names: tuple[str, ...]) -> None:
  """Runs these methods, each with its full grid of learning rates."""
  for name in names:
    recipes.check_method(name)
  arguments.use_full_grids(config, names)
  config.methods = names
  own = config.robustness
  own.interpolate = tuple(n for n in own.interpolate if n in names and "lp" in names)
