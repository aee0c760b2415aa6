"""One method on a benchmark of distribution shift: trained on one data set, tested on others.

  python -m subtune_jax.main --config=configs/shift.py:shift=cifar10_to_stl10,method=lp_ft

Arguments after the colon, all optional: shift, method (lp, ft, lp_ft, subtuning,
gradual_unfreezing, auto_rgn, auto_snr), backbone, weights (a known name or a file), preprocessing
(of weights that do not tell), image_size, epochs, blocks (of subtuning, joined by +) and ood: some
of the shifted sets, joined by +, as in

  --config=configs/shift.py:shift=cifar10_to_cifar10_c,ood=cifar10_c/fog/5+cifar10_c/snow/5

Label maps and class masks of the benchmark hold for the shifted sets: an image of a class that the
head does not have is dropped, and where the benchmark restricts predictions, the best of the
allowed classes is the prediction. `data.ood` may also name corrupted copies of the sets
(docs/data.md).

  shift                   trained on          tested on                   needs
  cifar10_to_stl10        cifar10             stl10, 9 shared classes     these two
  cifar10_to_cifar10_1    cifar10             cifar10_1, cifar10_1/v4     these three
  cifar10_to_cifar10_c    cifar10             75 of cifar10_c             cifar10, those tested
  imagenet                imagenet            imagenet_v2, imagenet_r,    these five; imagenet by
                                              imagenet_a, imagenet_sketch hand. R, A: 200 classes
  imagenet_to_imagenet_c  imagenet            75 of imagenet_c            imagenet, those tested
  domainnet40             domainnet40/sketch  real, clipart, painting     these four
  domainnet               domainnet/sketch    five other domains          all six
  living17, entity30      .../source          .../target                  by hand: ImageNet, a list
  fmow                    fmow/americas       fmow/europe, fmow/africa    by hand
  office_home_art         office_home/art     the three other domains     by hand
    likewise office_home_clipart, office_home_product, office_home_real_world

The sets by hand lie under $SUBTUNE_JAX_DATA; the others, `python -m subtune_jax.data.prepare NAME`
gets. What is missing is told before anything is trained or written, with the command or the folder.
"""

from subtune_jax.data import choices
from subtune_jax.studies import arguments
from subtune_jax.studies.compare import config as compare_config

_ARGUMENTS = (
  "shift", "ood", "method", "backbone", "weights", "preprocessing", "image_size", "epochs",
  "blocks",
)  # fmt: skip


def get_config(arg: str = ""):
  """One method on one benchmark; `arg` is "key=value,key=value"."""
  config = compare_config.default()
  given = arguments.parse_argument(arg, _ARGUMENTS)
  method, shift = given.get("method", "lp_ft"), given.get("shift", "cifar10_to_stl10")
  arguments.use_method(config, method)
  arguments.use_shift(config, shift)
  if "ood" in given:
    chosen = tuple(given["ood"].split("+"))
    for name in chosen:
      choices.check(f"shifted set of {shift}", name, config.data.ood)
    config.data.ood = chosen
  arguments.use_network(config, {"image_size": "224"} | given)
  if "blocks" in given:
    config.subtuning.blocks = tuple(given["blocks"].split("+"))
  if "epochs" in given and method != "lp":
    config[method].epochs = arguments.integer("epochs", given["epochs"])
  config.name = f"shift-{shift}-{method}"
  return config
