"""Fashion-MNIST taken in VTAB's way: 800 images to train, 200 to choose, 10,000 to test, 28 px.

  apt-get install dataset-fashion-mnist && python scripts/prepare_fashion_mnist.py
  python -m subtune_jax.main --config=configs/fashion_mnist.py

A ResNet of 370,000 parameters from random weights, with nothing to download but the data. It tests
the path from TensorFlow Datasets to the report, not the methods: linear probing here is a probe on
random features, and SubTuning trains the last third of the blocks on top of random ones.

Result of 2026-11-22 on two CPU cores, five and a half minutes (float32, jax 0.10.2). Test accuracy
in %, mean over 2 seeds, ± half the 95 % interval of a bootstrap over the 10,000 test images and the
seeds, after training on all 1,000 labelled images:

                    fashion_mnist  setting    moved
  Linear probing       68.7 ± 0.9  l2 1e-4        0
  Full fine-tuning     78.0 ± 1.5  lr 1e-2  74.67 %
  SubTuning            77.8 ± 0.8  lr 1e-3  10.85 %

Against linear probing, paired: full fine-tuning +9.2 [+7.7, +10.8], SubTuning +9.1 [+8.3, +9.9].
Between the two it is undecided. Validation accuracy (200 images, first seed) by learning rate:

  Full fine-tuning             1e-3 .760  1e-2 .780  1e-1 .595
  SubTuning         1e-4 .625  1e-3 .750  1e-2 .735
"""

from subtune_jax.data import vtab
from subtune_jax.studies.compare import config as compare_config


def get_config():
  """Fashion-MNIST; fields are declared in subtune_jax/studies/compare/config.py."""
  config = compare_config.default()
  config.name = "fashion_mnist"
  config.title = "Fashion-MNIST with 1,000 labels, from random weights"
  config.methods = ("lp", "ft", "subtuning")
  config.seeds = (0, 1)
  config.batch_size = 32
  config.data.train, config.data.ood = "fashion_mnist", ()
  config.data.image_size = 28  # its own
  config.data.interpolation = vtab.OFFICIAL
  config.data.retrain = True
  config.backbone.name, config.backbone.weights = "resnet26", "random"
  config.backbone.preprocessing = "half"
  config.ft.epochs = config.subtuning.epochs = 6
  config.ft.learning_rates = (1e-3, 1e-2, 1e-1)
  config.subtuning.learning_rates = (1e-4, 1e-3, 1e-2)
  config.subtuning.blocks = tuple(f"block3/unit{i}" for i in (1, 2, 3, 4))
  return config
