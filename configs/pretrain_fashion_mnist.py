r"""A small ResNet on clean Fashion-MNIST, for configs/corruption.py to adapt to corrupted images.

  apt-get install dataset-fashion-mnist && python scripts/prepare_fashion_mnist.py
  python -m subtune_jax.main --config=configs/pretrain_fashion_mnist.py
  python scripts/save_backbone.py runs/pretrain_fashion_mnist resnet14_fashion_mnist.msgpack

ResNet-14 (He's form for CIFAR, 2 units a stage, 175,000 parameters) at 20 px from random weights on
30,000 images, none of which is among the 1,000 that configs/corruption.py trains on: 3 epochs of
SGD (momentum 0.9, weight decay 5e-4, rate 0.1 along a cosine) in batches of 128.
"""

from subtune_jax.studies.compare import config as compare_config


def get_config():
  """The pretraining; fields are declared in subtune_jax/studies/compare/config.py."""
  config = compare_config.default()
  config.name = "pretrain_fashion_mnist"
  config.title = "ResNet-14 on Fashion-MNIST from random weights"
  config.methods = ("ft",)
  config.seeds = (0,)
  config.batch_size = 128
  config.data.train, config.data.ood = "fashion_mnist/rest", ()
  config.data.image_size = 20
  config.data.num_train = 30_000
  config.backbone.name = "resnet14"
  config.backbone.weights, config.backbone.preprocessing = "random", "half"
  config.optimizer.name, config.optimizer.momentum = "sgd", 0.9
  config.optimizer.weight_decay = 5e-4
  config.ft.epochs = 3
  config.ft.learning_rates = (0.1,)
  return config
