r"""How many images? The four methods and the profile at growing sizes of the training set.

  python -m subtune_jax.main --config=configs/dataset_size.py
  python -m subtune_jax.main --config=configs/dataset_size.py --config.sizes="(50,100,500)"

At each size, SubTuning trains the group of blocks that the profile on those images chose. It has
been run on small made-up data by the tests only: no result is claimed here.
"""

from subtune_jax.experiments import dataset_size, search_config

# Three blocks of EfficientNet-Lite0 at a time.
GROUPS = (
  "stem..1: stem block0 block1; 2..4: block2 block3 block4; 5..7: block5 block6 block7; "
  "8..10: block8 block9 block10; 11..13: block11 block12 block13; 14..top: block14 block15 top"
)


def get_config(arg: str = ""):
  """The study; `sizes` is declared in subtune_jax/experiments/dataset_size.py, the other fields in
  search_config.py."""
  config = dataset_size.default()
  config.data.ood = ()
  config.search.units = GROUPS
  config.search.head = "probe"
  config.search.epochs = 4
  search_config.use_arguments(config, arg)
  return config
