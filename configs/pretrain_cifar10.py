r"""ResNet-26 in its CIFAR form, trained on CIFAR-10 from random weights: a small backbone.

  python -m subtune_jax.data.prepare cifar10
  python -m subtune_jax.main --config=configs/pretrain_cifar10.py

200 epochs of SGD (momentum 0.9, weight decay 5e-4 on every parameter, rate 0.1 along a cosine),
batches of 128, 32 px, random shifts by up to 4 pixels and flips; 45,000 images train, 5,000
validate. It has not been run: no result is claimed here.

Everything is trained, so the task that the run exports holds the whole network. KEY is the "key" of
the training in results.json. To keep it as a file of weights:

  from subtune_jax import models, weights
  from subtune_jax.training import export

  net = weights.random_weights(models.create("resnet26", 10), preprocessing="half").variables
  net, _ = export.load_task("runs/pretrain_cifar10/tasks/KEY", net)
  export.save_variables("resnet26.msgpack", net)

Then it is a backbone like any other, here for CIFAR-10 to STL-10 at 32 px:

  python -m subtune_jax.main --workdir=runs/stl10 --config=configs/shift.py:\
backbone=resnet26,weights=resnet26.msgpack,preprocessing=half,image_size=32
"""

from subtune_jax.studies.compare import config as compare_config


def get_config():
  """The pretraining; fields are declared in subtune_jax/studies/compare/config.py."""
  config = compare_config.default()
  config.name = "pretrain_cifar10"
  config.title = "ResNet-26 on CIFAR-10 from random weights"
  config.methods = ("ft",)
  config.seeds = (0,)
  config.batch_size = 128
  config.data.train, config.data.ood = "cifar10", ()
  config.data.image_size = 32
  config.backbone.name = "resnet26"
  config.backbone.weights, config.backbone.preprocessing = "random", "half"
  config.augment.kind, config.augment.pad, config.augment.flip = "shift", 4, True
  config.optimizer.name, config.optimizer.momentum = "sgd", 0.9
  config.optimizer.weight_decay = 5e-4
  config.optimizer.schedule = "cosine"
  config.ft.epochs = 200
  config.ft.learning_rates = (0.1,)
  return config
