"""The full comparison: 128 px, learning rates over decades, 3 seeds.

python -m subtune_jax.main --config=configs/compare.py
"""

from subtune_jax.experiments import compare_config


def get_config():
  """The full comparison; fields are declared in subtune_jax/experiments/compare_config.py."""
  config = compare_config.default()
  config.name = "compare"
  config.data.image_size = 128
  for name in ("ft", "lp_ft", "subtuning"):
    config[name].epochs = 8
    config[name].learning_rates = compare_config.GRIDS[name]
  return config
