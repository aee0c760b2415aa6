r"""What is lost where the blocks that SubTuning trains lose half of their channels first?

python -m subtune_jax.main --config=configs/pruning.py
python -m subtune_jax.main --config=configs/pruning.py:first=block13 --config.pruned.share=0.75
"""

from subtune_jax.studies import arguments
from subtune_jax.studies.compare import config as compare_config


def get_config(arg: str = ""):
  """SubTuning with all channels and with fewer; fields are in studies/compare/config.py.

  `first` is the first of the blocks that are pruned and trained.
  """
  given = arguments.parse_argument(arg, ("train", "first"))
  config = compare_config.default()
  config.name = "pruning"
  config.title = "SubTuning with all channels and with fewer"
  config.methods = ("lp", "subtuning", "pruned")
  config.seeds = (0, 1)
  config.data.image_size = 32
  arguments.use_dataset(config, given.get("train", "glyph_domains/handwriting"))
  arguments.use_blocks_from(config, ("subtuning", "pruned"), given.get("first", "block6"))
  for name in ("subtuning", "pruned"):
    config[name].learning_rates = (1e-3, 3e-3, 1e-2)
  return config
