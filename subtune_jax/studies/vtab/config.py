"""The fields of a VTAB-1k suite, and the run that it makes of each task.

They are those of a search and its final comparison, the same for every task, without the ones that
name its data.
"""

import ml_collections

from subtune_jax.data import choices, vtab
from subtune_jax.runner import recipes
from subtune_jax.studies import arguments
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.search import config as search_config

_PREFIX = "vtab/"
# Fields of `data`.
_OF_A_TASK = (
  "train", "ood", "label_map", "shift", "num_train", "subset_seed", "flip_labels"
)  # fmt: skip


def default() -> ml_collections.ConfigDict:
  """All 19 tasks at 224 px, four methods, learning rates over decades, three seeds."""
  config = search_config.default()
  config.search.kinds, config.search.split = ("greedy",), "trainval"
  config.protocol = ""  # which of `protocols.PROTOCOLS` it follows, for the report
  config.choose_blocks = False  # SubTuning's blocks by that search, for each task on its own
  config.experiment = "vtab"
  config.name = "vtab"
  config.title = "VTAB-1k"
  config.save_model = False  # 19 whole networks; save_model writes those that are wanted
  config.tasks = tuple(vtab.TASKS)  # with or without "vtab/"; fashion_mnist may be one, unscored
  config.data.image_size = 224
  config.data.interpolation = vtab.OFFICIAL
  config.data.retrain = True  # choose with 800 and 200 images, train on the 1,000, test once
  for name in _OF_A_TASK:
    del config.data[name]
  arguments.use_full_grids(config, recipes.offered())
  for name in ("ft", "lp_ft", "subtuning", "auto_rgn", "auto_snr"):
    config[name].epochs = 40
  config.optimizer.warmup = 0.1
  return config


def task_names(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """The tasks to run, without "vtab/", in the order of the table.

  Raises:
    ValueError: none, an unknown one (the error has the nearest names), or one given twice.
  """
  known = (*vtab.TASKS, *vtab.EXTRA)
  names = [str(name).removeprefix(_PREFIX) for name in config.tasks]
  for name in names:
    choices.check("VTAB task", name, known)
  if not names or len(set(names)) != len(names):
    raise ValueError(f"tasks is {tuple(config.tasks)}; give at least one, each once")
  return tuple(name for name in known if name in names)


def shared(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config without its tasks: what makes the results of two tasks one suite."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    del config.tasks
  return config


def task_config(config: ml_collections.ConfigDict, task: str) -> ml_collections.ConfigDict:
  """The comparison of the methods on one task."""
  name = vtab.full_name({**vtab.TASKS, **vtab.EXTRA}[task])
  own, common = compare_config.default(), shared(config)
  with common.unlocked():
    del common.search, common.choose_blocks, common.protocol
  own.update(common)
  own.experiment = "compare"
  own.name = f"{config.name}-{task}"
  own.title = f"{config.title}: {task}"
  own.data.train, own.data.ood = name, ()
  return own


def search_of(config: ml_collections.ConfigDict, task: str) -> ml_collections.ConfigDict:
  """The search for the blocks of one task, whose final comparison is that of the methods."""
  own, common = search_config.default(), shared(config)
  with common.unlocked():
    del common.choose_blocks, common.protocol
  own.update(common)
  for field, value in task_config(config, task).data.items():
    own.data[field] = value
  own.experiment, own.name = "search", f"{config.name}-{task}"
  own.title = f"{config.title}: {task}"
  return own
