r"""Which layers are worth training? Answered from gradients, without training one.

  python -m subtune_jax.main --config=configs/which_layers.py
  python -m subtune_jax.main --config=configs/which_layers.py:dataset=folder:/path/to/images
  python -m subtune_jax.main --config=configs/which_layers.py:verify=8      # and trains the best 8

Arguments after the colon, all optional: dataset, units, backbone and weights (both), image_size,
epochs, folds (all as in configs/profile.py), and verify: how many of the sets of the highest
predicted accuracy are trained and raced, with the chosen one beside the other methods on the test
split after that. The method: docs/selection.md.

Result of 2026-11-28 at 64 px, 936 images of glyph_domains/handwriting, 3 folds by font:

  predicted: block7 + block9 + block10 66.3 %, +7.9 [+4.9, +11.0] points against the head alone

97 sets were predicted. The gradients took 128 s of processor time with compiling, 77 s without; the
fits of the sets about as long (on two cores with fifteen other processes, 16 minutes of the wall).
Trained, sets chosen so were above every single block: benchmarks/results/selection_cpu.md.
"""

from subtune_jax.studies import arguments
from subtune_jax.studies.search import config as search_config


def get_config(arg: str = ""):
  """The prediction; fields are declared in subtune_jax/studies/search/config.py."""
  config = search_config.default()
  config.name = "which_layers"
  config.title = "Which layers, without training?"
  config.search.kinds = ("predicted",)
  config.search.folds, config.search.probes = 3, 2
  config.search.epsilon, config.search.baseline = 0.005, "head"
  config.search.head, config.search.epochs = "probe", 4
  config.search.final = False
  arguments.use_dataset(config, "glyph_domains/handwriting")
  search_config.use_arguments(config, arg, ("verify",))
  return config
