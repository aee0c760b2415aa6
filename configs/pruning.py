r"""What is lost where the blocks that SubTuning trains lose half of their channels first?

python -m subtune_jax.main --config=configs/pruning.py
python -m subtune_jax.main --config=configs/pruning.py:first=block13 --config.pruned.share=0.75

Result of 2026-11-29 on two busy CPU cores: EfficientNet-Lite0 at 32 px, Glyph Domains' handwriting,
block6 to top, 8 epochs, 2 seeds. Test accuracy in %, half the 95 % interval:

                     handwriting (ID)    mean OOD   trained    rate
  Linear probing           38.3 ± 4.9  41.1 ± 3.0
  SubTuning                76.0 ± 5.4  78.0 ± 4.7    3.33 M    3e-3
  SubTuning, pruned        71.6 ± 5.8  74.3 ± 5.0    0.94 M    1e-2, the end of the grid
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
