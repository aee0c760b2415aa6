r"""Which layers under which shift? Profile and greedy search for each corruption.

A small ResNet that was trained on clean Fashion-MNIST is adapted to 1,000 corrupted or relabelled
images of it. First the backbone:

  apt-get install dataset-fashion-mnist && python scripts/prepare_fashion_mnist.py
  python -m subtune_jax.main --config=configs/pretrain_fashion_mnist.py
  python scripts/save_backbone.py runs/pretrain_fashion_mnist resnet14_fashion_mnist.msgpack
  python -m subtune_jax.main --config=configs/corruption.py

The study of the papers, where CIFAR-10-C is (python -m subtune_jax.data.prepare cifar10_c/fog/5):

  python -m subtune_jax.main --workdir=runs/cifar10_c --config=configs/corruption.py:\
backbone=resnet26,weights=resnet26.msgpack,image_size=32 \
    --config.corrupted="cifar10_c_1k/{}" --config.data.train=cifar10
"""

from subtune_jax.experiments import corruption, search_config


def get_config(arg: str = ""):
  """The study; its own fields are declared in subtune_jax/experiments/corruption.py."""
  config = corruption.default()
  config.data.image_size = 20
  config.backbone.name = "resnet14"
  config.backbone.weights, config.backbone.preprocessing = "resnet14_fashion_mnist.msgpack", "half"
  config.batch_size = 32
  config.backbone.keep_head = True
  config.search.epochs = 5
  config.search.racing = True
  config.data.retrain = True
  config.seeds = (0, 1)
  search_config.use_arguments(config, arg)
  return config
