r"""Do the pretrained values of tuned blocks matter, or only that they are trained?

python -m subtune_jax.main --config=configs/reinit.py

Result of 2026-11-29 on two busy CPU cores, two minutes each: EfficientNet-Lite0 at 32 px, block13
to top and the head, 8 epochs, 2 seeds. Test accuracy in % in distribution, half the 95 % interval,
and the rate that validation chose (*: the end of the grid):

                             handwriting                 noto        Fashion-MNIST
  SubTuning           65.1 ± 5.9  3e-3   31.8 ± 5.6  1e-2 *    79.2 ± 0.8  3e-3
  ... fresh blocks    71.2 ± 5.6  1e-3   35.2 ± 6.3  3e-4 *    80.6 ± 0.8  1e-2 *

The pretrained values of these blocks are no help there (docs/pruning.md).
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
