r"""Which layers are worth training? Answered from gradients, without training one.

  python -m subtune_jax.main --config=configs/which_layers.py
  python -m subtune_jax.main --config=configs/which_layers.py:dataset=folder:/path/to/images
  python -m subtune_jax.main --config=configs/which_layers.py:verify=8      # and trains the best 8

Arguments after the colon, all optional: dataset, units, backbone and weights (both), image_size,
epochs, folds (all as in configs/profile.py), and verify: how many of the sets of the highest
predicted accuracy are trained and raced, with the chosen one beside the other methods on the test
split after that. The method: docs/selection.md.

Result of 2026-11-28 at 64 px, 936 images of glyph_domains/handwriting, 3 folds by font, 3 probes:

  predicted: block5 + block7 71.5 %, the head alone 58.4 %; 82 sets

121 s on two cores with nothing compiled before: 70 s gradients and features, 20 s compiling, 17 s
fits. Trained at 1e-3, block5 + block7 reaches 56.0 % in 4 epochs and 66.3 % in 20, the best single
block 63.5 and 67.1 %: a prediction is of a training that is long enough
(benchmarks/results/selection_cpu.md).
"""

from subtune_jax.studies import arguments
from subtune_jax.studies.search import config as search_config


def get_config(arg: str = ""):
  """The prediction; fields are declared in subtune_jax/studies/search/config.py."""
  config = search_config.default()
  config.name = "which_layers"
  config.title = "Which layers, without training?"
  config.search.kinds = ("predicted",)
  config.search.folds, config.search.probes = 3, 3
  config.search.epsilon, config.search.baseline = 0.005, "head"
  config.search.head, config.search.epochs = "probe", 4
  config.search.final = False
  arguments.use_dataset(config, "glyph_domains/handwriting")
  search_config.use_arguments(config, arg, ("verify",))
  return config
