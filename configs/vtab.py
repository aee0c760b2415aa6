r"""VTAB-1k: 19 tasks of 1,000 labelled images, the same settings and grids for all.

  python -m subtune_jax.data.prepare --list        # the data sets, their sizes, what is here
  python -m subtune_jax.main --config=configs/vtab.py
  python -m subtune_jax.main --config=configs/vtab.py --config.tasks="('vtab/dtd','svhn')"
  python -m subtune_jax.main --config=configs/vtab.py:tasks=dtd+svhn

SubTuning's blocks are found for each task by greedy search, 5 folds of the 1,000 labelled images;
named behind the colon, they are those everywhere:

  python -m subtune_jax.main --config=configs/vtab.py:backbone=vit_b16,\
weights=vit_b16/augreg-in21k,blocks=encoderblock_9+encoderblock_10+encoderblock_11+encoder_norm

Arguments after the colon, all optional: backbone and weights (together), blocks (of SubTuning,
joined by +), tasks (joined by +), image_size, epochs, and protocol: the settings of published
tables, "vtab", "petl" or "subtuning" (subtune_jax/studies/vtab/protocols.py). The defaults come
with the package; most published results use vit_b16 with vit_b16/augreg-in21k, a file to download.

For each task: settings are chosen with 800 training and 200 validation images, each method is
trained at its choice on all 1,000 for every seed, and the test split is read once, at the end.
WORKDIR/tasks/TASK holds the run of a task. A killed suite goes on with the same command; with other
tasks in the same workdir, their results join the table. Scores are given once all 19 are there.

No result of the whole suite is given here: it has not been run on all 19 tasks. It is made for an
accelerator; two CPU cores take hours for a task at 224 px.
"""

from subtune_jax.studies import arguments
from subtune_jax.studies.vtab import config as vtab_config
from subtune_jax.studies.vtab import protocols


def get_config(arg: str = ""):
  """The suite; `arg` is "key=value,key=value"."""
  config = vtab_config.default()
  given = arguments.parse_argument(
    arg, ("backbone", "weights", "blocks", "tasks", "image_size", "epochs", "protocol")
  )
  arguments.check_weights(given)
  arguments.use_network(config, given)
  if "backbone" in given:
    config.name = f"vtab-{given['backbone']}"
  if "protocol" in given:
    protocols.use(config, given["protocol"])
    config.name += f"-{given['protocol']}"
  config.choose_blocks = "blocks" not in given
  if "blocks" in given:
    config.subtuning.blocks = tuple(given["blocks"].split("+"))
  if "tasks" in given:
    config.tasks = tuple(given["tasks"].split("+"))
    vtab_config.task_names(config)
  if "epochs" in given:
    for name in ("ft", "lp_ft", "subtuning", "search"):
      config[name].epochs = arguments.integer("epochs", given["epochs"])
  return config
