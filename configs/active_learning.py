r"""Which images to label next? Five rules of asking, three learners, rounds of growing labels.

python -m subtune_jax.main --config=configs/active_learning.py
"""

from subtune_jax.studies.active_learning import config as active_learning


def get_config():
  """The study; `rules` and `totals` are declared in studies/active_learning/config.py, the other
  fields in that of studies/compare."""
  config = active_learning.default()
  config.seeds = (0, 1, 2)
  config.batch_size = 32
  config.lp.l2 = (0.1,)  # one setting each: no label of the validation split is used
  for name, rate in (("subtuning", 3e-3), ("ft", 1e-3)):
    config[name].epochs = 10
    config[name].learning_rates = (rate,)
  return config
