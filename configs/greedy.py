r"""Greedy SubTuning: the set of blocks to train, found by cross-validation.

  python -m subtune_jax.main --config=configs/greedy.py
  python -m subtune_jax.main --config=configs/greedy.py:racing=yes
  python -m subtune_jax.main --config=configs/greedy.py --config.search.start=both

Arguments after the colon, all optional: those of configs/profile.py but kinds, and racing (yes or
no), rule, start. The rule is the paper's: the block that helps most is added while the score rises
by more than one point (`search.epsilon`). With `search.store` the trainings are shared with other
searches: a profile that was run on the same store is not trained again.

Result of 2026-11-25 on two CPU cores with other work, at 32 px (cut for time; image_size=32,
search.kinds=('profile','greedy'), search.rule=size): 265 trainings, 25 minutes. Held-out accuracy
in %, 652 images of noto, 5 folds, one seed:

  head alone 27.0, + block9 27.9, + block14 28.9, + block7 30.4; all units 16.3

Undecided: the chosen set is the best of 53 tried with probability 0.24 (expected regret 1.6
points); 15 others may be. Against the head alone +3.4 [-4.4, +11.1]; with the paper's epsilon of
0.01 and baseline=head the first block, +0.9, would not have been taken. At this rate (1e-3, 4
epochs, probed head) blocks without a shortcut, such as block3, 5, 8 and 11, do harm alone: 10 to
19 %, and so does training everything.
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
