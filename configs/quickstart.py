"""Four methods on Emoji Domains in ten minutes on two cores.

  python -m subtune_jax.main --config=configs/quickstart.py

64 px, 3 seeds, one learning rate per method: the ones that configs/compare.py chose on validation.
"""

from subtune_jax.experiments import compare_config


def get_config():
  """The quickstart; fields are declared in subtune_jax/experiments/compare_config.py."""
  config = compare_config.default()
  config.name = "quickstart"
  return config
