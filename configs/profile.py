r"""Finetuning profile: which single block of the network is worth training?

  python -m subtune_jax.main --config=configs/profile.py
  python -m subtune_jax.main --config=configs/profile.py:kinds=profile+windows2+windows3+pairs
  python -m subtune_jax.main --config=configs/profile.py:dataset=folder:/path/to/images

Arguments after the colon, all optional: dataset, kinds (joined by +), units ("blocks" or "stages"),
backbone and weights (together), image_size, epochs, folds. Each block is trained with a head from
the fold's linear probe on 5 folds of the training images; then the best one is trained on all of
them beside linear probing, full fine-tuning and LP-FT, and the test images are read once.

The profile at 32 px is in configs/greedy.py; at 64 px and above it has not been run whole.
"""

from subtune_jax.studies.search import config as search_config


def get_config(arg: str = ""):
  """The profile; fields are declared in subtune_jax/studies/search/config.py."""
  config = search_config.default()
  config.name = "profile"
  config.title = "Finetuning profile"
  config.search.head = "probe"
  config.search.epochs = 4
  search_config.use_arguments(config, arg)
  return config
