r"""Greedy SubTuning: the set of blocks to train, found by cross-validation.

  python -m subtune_jax.main --config=configs/greedy.py
  python -m subtune_jax.main --config=configs/greedy.py:racing=yes
  python -m subtune_jax.main --config=configs/greedy.py --config.search.start=both

Arguments after the colon, all optional: those of configs/profile.py but kinds, and racing (yes or
no), rule, start. The rule is the paper's: the block that helps most is added while the score rises
by more than one point (`search.epsilon`). With `search.store` the trainings are shared with other
searches: a profile that was run on the same store is not trained again.
"""

from subtune_jax.experiments import search_config


def get_config(arg: str = ""):
  """The search; fields are declared in subtune_jax/experiments/search_config.py."""
  config = search_config.default()
  config.name = "greedy"
  config.title = "Greedy SubTuning"
  config.search.kinds = ("greedy",)
  config.search.head = "probe"
  config.search.epochs = 4
  search_config.use_arguments(config, arg, ("racing", "rule", "start"))
  return config
