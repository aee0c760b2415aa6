r"""Fine-tuning on some of the classes, tested on all of them: who forgets what, and calibration.

  python -m subtune_jax.main --config=configs/calibration.py
  ... --config=configs/calibration.py:source=emoji_domains/fluent,target=emoji_domains/openmoji
  python -m subtune_jax.main --config=configs/calibration.py:study=main
  python -m subtune_jax.main --config=configs/calibration.py:study=sweep,image_size=32

A source model learns all classes in one domain; each method fine-tunes it in another on images of
22 of the 45 classes; the test has all 45. Each row with and without calibration, SubTuning per
block, numbers of seen classes, and in a study of its own (study=sweep) optimisers, learning rates
and weight decays. Another benchmark by name where its data is (folder:... of Office-Home's domains,
imagenet_r or imagenet_sketch with --config.backbone.keep_head=True and weights of ImageNet, VTAB's
tasks with a CLIP tower and --config.source.class_embeddings=FILE). Two
pairs of Emoji Domains at 64 px are in docs/calibration.md.

Result of 2026-11-25 on two CPU cores (float32, jax 0.10.2), a small network for want of hours: a
ResNet-14 that knows the ten classes of clean Fashion-MNIST is fine-tuned on images of low contrast
of five of them (drawn anew for each of 3 seeds; SGD with momentum, 40 steps of 32, rate 1e-2, the
head's 10 times that, batch statistics: the defaults are milder today). 10,000 test images of all
ten, micro accuracy in %, means over seeds; "star" is an oracle:

                      as it is             + ALG        + PCV        + gamma star
                      Y/Y   S/Y   U/Y      S/Y   U/Y    S/Y   U/Y    S/Y   U/Y    AUSUC   U/U
  Source model       10.2   6.9  13.5      8.2  13.8                28.0  20.4     6.2   25.6
  Fine-tuning        48.6  91.1   6.1     89.8  37.4   35.3  66.9   83.1  53.5    57.3   67.4
  Linear probing     30.1  60.0   0.2     27.9  29.4                49.3  19.8    16.0   36.2
  Frozen classifier  67.7  90.7  44.6     91.1  31.0                82.7  69.9    70.1   80.5
  L2-SP              48.8  91.1   6.5     89.7  37.2                82.7  53.4    57.0   67.1
  Distillation       45.5  91.0   0.0     74.5  26.5                86.0  29.3    31.1   35.6
  WiSE-FT, 0.5       27.0  47.8   6.1     43.8  17.8                30.8  42.3    20.6   55.0
  Oracle             83.3  86.6  80.0                                             79.6   88.9
  SubTuning, stem    43.5  85.8   1.3     62.2  47.4                76.3  39.9    42.2   54.8
  SubTuning, block1  50.1  90.9   9.4     85.7  44.4                83.6  48.1    51.8   59.9
  SubTuning, block2  45.0  89.9   0.1     84.7  39.3                82.4  46.0    48.9   57.9
  SubTuning, block3  43.9  87.9   0.0     85.6  15.4                73.0  36.7    41.5   59.7

What holds: fine-tuning on five classes makes the features better for the five others (U/U 25.6 to
67.4) and hides it in the logits (U/Y 13.5 to 6.1); ALG, from training data alone, brings 31 points
back for one. What does not: ALG undershoots gamma star (5.4 against 7.8), PCV overshoots it (12.5),
and the best row is the frozen classifier, as it is or calibrated. Distilling the source's absent
logits keeps what was wrong with them here: the source model does not know low contrast. No unit
alone reaches full fine-tuning; the early ones keep more of the absent classes.

Arguments, all optional: source, target, image_size, backbone, weights, preprocessing, methods
(joined by +), study: "all", "main" (the table), or "sweep".
"""

from subtune_jax.data import choices
from subtune_jax.studies import arguments
from subtune_jax.studies.holistic_transfer import config as holistic_config

_ARGUMENTS = (
  "source", "target", "image_size", "backbone", "weights", "preprocessing", "methods", "study"
)  # fmt: skip


def get_config(arg: str = ""):
  """The study; its own fields are declared in subtune_jax/studies/holistic_transfer/config.py."""
  config = holistic_config.default()
  given = arguments.parse_argument(arg, _ARGUMENTS)
  config.source.data = given.get("source", config.source.data)
  config.data.train = given.get("target", config.data.train)
  arguments.use_network(config, given)
  config.methods = tuple(given["methods"].split("+")) if "methods" in given else config.methods
  study = given.get("study", "all")
  choices.check("study", study, ("all", "main", "sweep"))
  if study == "all":
    config.holistic.num_seen = (22, 5, 10, 15, 30)
    config.holistic.hows = ("random", "group")
  if study != "all" or "backbone" in given:
    config.subtuning.units = ""  # the groups are EfficientNet-Lite0's: name your own
  if study == "sweep":
    config.name = "calibration_sweep"
    config.methods, config.holistic.pcv_methods, config.seeds = ("ft",), (), (0,)
    config.sweep.optimizers = ("sgd", "adam", "adabelief", "adadelta", "adagrad", "rmsprop")
  return config
