r"""How many images? The four methods and the profile at growing sizes of the training set.

  python -m subtune_jax.main --config=configs/dataset_size.py
  python -m subtune_jax.main --config=configs/dataset_size.py --config.sizes="(50,100,500)"

At each size, SubTuning trains the group of blocks that the profile on those images chose.

Result of 2026-11-26 on one CPU core, at 32 px (cut for time; image_size=32, folds=3,
search.learning_rate=3e-4). Test accuracy in %, 261 images of noto, 3 seeds, half 95 % intervals of
3 to 6 points:

  images            100    292    652
  Linear probing   13.8   22.6   25.7
  Full fine-tuning  5.7   24.8   31.8
  LP-FT            17.5   23.2   33.2
  SubTuning        12.6   16.3   19.0   (of block5..block7, stem..block1 twice)

SubTuning is above full fine-tuning at 100 images and below it from 292 on, as the paper says of few
images; but it is nowhere above the probe, while LP-FT's mean is at every size. On held-out images
no group is above the head alone (-1 to -19 points; the best one is the best set with probability
0.10 to 0.35), and the group that was then taken, for want of a better, did harm.
"""

from subtune_jax.studies.dataset_size import config as dataset_size
from subtune_jax.studies.search import config as search_config


def get_config(arg: str = ""):
  """The study; `sizes` is declared in subtune_jax/studies/dataset_size/config.py, the other fields
  in that of studies/search."""
  config = dataset_size.default()
  config.data.ood = ()
  config.search.units = "6"
  config.search.head = "probe"
  config.search.epochs = 4
  search_config.use_arguments(config, arg)
  return config
