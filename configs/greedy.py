r"""Greedy SubTuning: the set of blocks to train, found by cross-validation.

  python -m subtune_jax.main --config=configs/greedy.py
  python -m subtune_jax.main --config=configs/greedy.py:racing=yes
  python -m subtune_jax.main --config=configs/greedy.py --config.search.start=both

Arguments after the colon, all optional: those of configs/profile.py but kinds, and racing (yes or
no), rule, start. The rule is the paper's: the block that helps most is added while the score rises
by more than one point (`search.epsilon`). With `search.store` the trainings are shared with other
searches: a profile that was run on the same store is not trained again.

Result of 2026-11-26 on one CPU core, at 64 px (image_size=64,rule=size and
search.kinds=('profile','greedy')): 265 trainings, 30 minutes. Held-out accuracy in %, 652 images of
noto, 5 folds, one seed:

  head alone 44.5, + block12 45.4, + block2 46.0, + block9 46.0; all units 33.3
  one alone: stem 41.9, block0 to 14 between 39.9 (block8) and 45.4, block15 33.4, top 37.9

Undecided: the chosen set is the best of 53 tried with probability 0.09 (expected regret 2.2
points); 27 others may be. Against the head alone +1.5 [-4.1, +7.1], against all units +12.7 [+3.7,
+21.8]. With the paper's epsilon of 0.01 and baseline=head no block would have been taken. What
holds: a few blocks beat all of them by far. What does not: the profile tells no block from its
neighbours; only the last two do harm alone. Then on all training images, read on test once, 3
seeds, in %:

                    noto (ID)    mean OOD    against the probe: ID     OOD
  LP                37.5 +- 6.4  23.2 +- 4.0
  FT                39.1 +- 6.1  20.9 +- 3.4   +1.5 [-4.5, +7.1]  -2.3 [-5.5, +0.7]
  LP-FT             40.2 +- 6.4  24.1 +- 4.1   +2.7 [+0.0, +5.5]  +0.9 [-0.6, +2.3]
  SubTuning         42.8 +- 6.4  21.8 +- 3.6   +5.2 [+1.1, +9.6]  -1.4 [-3.8, +0.9]

At 32 px (2026-11-25, the same otherwise): head alone 27.0, + block9 27.9, + block14 28.9, + block7
30.4; all units 16.3; undecided between 16 sets. Blocks without a shortcut, such as block3, 5, 8 and
11, did harm alone there: 10 to 19 %.
"""

from subtune_jax.studies.search import config as search_config


def get_config(arg: str = ""):
  """The search; fields are declared in subtune_jax/studies/search/config.py."""
  config = search_config.default()
  config.name = "greedy"
  config.title = "Greedy SubTuning"
  config.search.kinds = ("greedy",)
  config.search.head = "probe"
  config.search.epochs = 4
  search_config.use_arguments(config, arg, ("racing", "rule", "start"))
  return config
