r"""In and out of distribution: LP, FT, LP-FT and SubTuning by LP-FT's protocol.

  python -m subtune_jax.main --config=configs/robustness.py
  python -m subtune_jax.main --config=configs/robustness.py:dataset=emoji_domains/fluent
  python -m subtune_jax.main --config=configs/robustness.py:shift=cifar10_to_stl10,image_size=224

Trained on one domain of Emoji Domains, tested on all four after every epoch, at learning rates over
decades and three seeds each; rates are chosen on validation images of the training domain. Other
benchmarks by name, where their data is: cifar10_to_stl10, cifar10_to_cifar10_1, domainnet40,
living17, entity30, imagenet (-> V2, R, A, Sketch), ... (configs/shift.py lists them). Arguments,
all optional: dataset or shift, image_size, backbone, weights, preprocessing, methods (joined by +).
"""

from subtune_jax.studies import arguments
from subtune_jax.studies.robustness import config as robustness_config

_ARGUMENTS = ("dataset", "shift", "image_size", "backbone", "weights", "preprocessing", "methods")


def get_config(arg: str = ""):
  """The study; its own fields are declared in subtune_jax/studies/robustness/config.py."""
  config = robustness_config.default()
  given = arguments.parse_argument(arg, _ARGUMENTS)
  if "dataset" in given and "shift" in given:
    raise ValueError("config arguments 'dataset' and 'shift' exclude each other; give one")
  if "dataset" in given:
    arguments.use_dataset(config, given["dataset"])
  if "shift" in given:
    arguments.use_shift(config, given["shift"])
  arguments.use_network(config, given)
  if "methods" in given:
    robustness_config.use_methods(config, tuple(given["methods"].split("+")))
  return config
