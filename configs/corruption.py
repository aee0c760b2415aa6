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

Result of 2026-11-25 on two CPU cores (float32, jax 0.10.2; this config, raced; the profiles were
trained without racing). Backbone: 90.9 % on clean validation images. Held-out accuracy in %, mean
over 5 folds of 1,000 images, one seed, the pretrained head at the start; half a 95 % interval of a
row is 3 to 6 points, of a difference in a row 1 to 4 (6 under flip_labels):

                   head  stem  1/1   1/2   2/1   2/2   3/1   3/2   all
  gaussian_noise   86.7  88.9  88.3  88.4  87.4  87.6  87.5  87.5  88.2
  defocus_blur     87.4  87.3  87.9  88.3  88.0  88.2  88.6  87.8  88.4
  contrast         68.4  66.7  83.3  84.1  84.1  78.6  80.3  76.9  86.0
  flip_labels      89.9   4.0  22.3  26.7  44.1  65.9  80.6  86.2  83.9

Greedy forward, the paper's rule; then 10,000 test images of the same shift, methods trained on the
1,000, two seeds, % with 95 % intervals:

                   chosen                      LP          FT          LP-FT       SubTuning
  gaussian_noise   stem                        86.6 ± 0.6  86.5 ± 0.7  87.3 ± 0.6  87.9 ± 0.6
  defocus_blur     block3/unit1                84.8 ± 0.7  86.4 ± 0.7  86.3 ± 0.6  86.0 ± 0.7
  contrast         block1/unit2, block2/unit2  73.0 ± 0.9  86.2 ± 0.6  76.0 ± 0.8  84.0 ± 0.7
  flip_labels      block3/unit2                88.6 ± 0.6  85.0 ± 0.7  88.7 ± 0.6  86.7 ± 0.6

Without racing on contrast: block1/unit2 84.1, + block2/unit2 85.4, + block1/unit1 86.4, not taken,
as the gain is not above one point. Under noise, all 21 pairs: 87.4 to 88.9 (stem + block1/unit1),
none above the stem alone; greedy backward, raced, takes units away down to the stem.

What holds of "Surgical fine-tuning": under relabelling the later a block the better, and the head
alone (a probe, fitted to the end) is better still; under noise the stem is the best single block,
and tuning it alone is above every other method on the test images, by 0.6 to 1.4 points. What does
not hold: the first layers do not win under blur (flat within noise), nor under contrast, where
blocks in the middle win, the stem alone does nothing and full fine-tuning is best on the test
images. The certificates decide none of the four choices (probability of the best 2 to 14 %). Greedy
forward from nothing cannot return the empty set, which was the best under relabelling: its
certificate says so. The corruptions are mild here: the probe on the clean network's features is at
87 %.
"""

from subtune_jax.studies.corruption import config as corruption
from subtune_jax.studies.search import config as search_config


def get_config(arg: str = ""):
  """The study; its own fields are declared in subtune_jax/studies/corruption/config.py."""
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
