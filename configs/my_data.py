r"""Your own images: four methods, and the blocks that SubTuning trains, in one run.

  python -m subtune_jax.main --config=configs/my_data.py:train=folder:/path/to/images
  python -m subtune_jax.main --config=configs/my_data.py:train=folder:/path/to/images,\
ood=folder:/path/to/photos+folder:/path/to/sketches --config.data.image_size=128

The first trains on a folder (docs/data.md has its layouts), the second also tests on two others,
whose classes have the same names. Before that: the same command with --dry_run says what it will
take. Arguments after the colon: train, ood (joined by +), image_size, epochs, seeds (how many),
backbone and weights (together). A path may hold spaces, colons and plus signs (put the argument in
quotes); one with a comma goes into --config.data.train=... and --config.data.ood="('...',)".

The blocks are six runs of neighbours. Each is trained on folds of the training images, those that
will not win are dropped after the first fold or the second, and the winner is SubTuning's in the
comparison. Learning rates are tried over three decades. WORKDIR/report.html is of the search,
WORKDIR/final/report.html of the methods, WORKDIR/final/best the network that validation chose.

Seen on 2026-11-28 with 1,087 emoji in 45 classes at 48 px: 15 minutes on two cores beside much
other work, 8 minutes of processor time. The race took 8 of at most 18 trainings; the comparison
took 1.10 times the processor time of its forecast (configs/quickstart.py with one seed: 1.09).
"""

import re

from subtune_jax import data
from subtune_jax.data import folder
from subtune_jax.studies import arguments
from subtune_jax.studies.search import config as search_config

_ARGUMENTS = ("train", "ood", "image_size", "epochs", "seeds", "backbone", "weights")


def get_config(arg: str = ""):
  """The search and its comparison; fields are declared in subtune_jax/studies/search/config.py."""
  config = search_config.default()
  given = arguments.parse_argument(arg, _ARGUMENTS)
  arguments.check_weights(given)
  config.title = "My data"
  config.data.train = given.get("train", folder.EXAMPLE)
  config.data.ood = arguments.joined(given.get("ood", ""), ("folder:", *data.names()))
  config.data.image_size = 96
  arguments.use_network(config, given)
  config.seeds = tuple(range(arguments.integer("seeds", given.get("seeds", "1"))))
  config.tensorboard = False
  config.ft.learning_rates = config.subtuning.learning_rates = (1e-4, 1e-3, 1e-2)
  config.lp_ft.learning_rates = (1e-5, 1e-4, 1e-3)
  config.search.kinds, config.search.rule, config.search.size = ("greedy",), "size", 1
  config.search.units = "6"
  config.search.racing, config.search.folds, config.search.references = True, 3, False
  config.search.head, config.search.epochs, config.search.final_grid = "probe", 4, True
  if "epochs" in given:
    for name in ("ft", "lp_ft", "subtuning", "search"):
      config[name].epochs = arguments.integer("epochs", given["epochs"])
  config.name = "my_data-" + re.sub(r"\W+", "-", config.data.train.rpartition("/")[2]).strip("-")
  search_config.check(config)
  return config
