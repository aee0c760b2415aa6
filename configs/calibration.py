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
tasks with a CLIP tower and --config.source.class_embeddings=FILE). It has been run on small made-up
data by the tests only: no result is claimed here.

Arguments, all optional: source, target, image_size, backbone, weights, preprocessing, methods
(joined by +), study: "all", "main" (the table), or "sweep".
"""

from subtune_jax.data import choices
from subtune_jax.experiments import compare_config, holistic, robustness_config

_ARGUMENTS = (
  "source", "target", "image_size", "backbone", "weights", "preprocessing", "methods", "study"
)  # fmt: skip


def get_config(arg: str = ""):
  """The study; its own fields are declared in subtune_jax/experiments/holistic_config.py."""
  config = holistic.default()
  given = compare_config.parse_argument(arg, _ARGUMENTS)
  config.source.data = given.get("source", config.source.data)
  config.data.train = given.get("target", config.data.train)
  robustness_config.use_network(config, given)
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
