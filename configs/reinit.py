r"""Do the pretrained values of tuned blocks matter, or only that they are trained?

python -m subtune_jax.main --config=configs/reinit.py
"""

from subtune_jax.studies import arguments
from subtune_jax.studies.compare import config as compare_config


def get_config(arg: str = ""):
  """SubTuning of the same blocks twice; fields are in subtune_jax/studies/compare/config.py."""
  given = arguments.parse_argument(arg, ("train", "first"))
  config = compare_config.default()
  config.name = "reinit"
  config.title = "Blocks that start from pretrained or from fresh weights"
  config.methods = ("subtuning", "fresh_blocks")
  config.seeds = (0, 1)
  config.data.image_size = 32
  arguments.use_dataset(config, given.get("train", "glyph_domains/handwriting"))
  arguments.use_blocks_from(config, config.methods, given.get("first", "block13"))
  for name in config.methods:
    config[name].learning_rates = (3e-4, 1e-3, 3e-3, 1e-2)
  return config
