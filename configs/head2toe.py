r"""Head2Toe, which trains nothing but a head, beside a probe and three that train the network.

  python -m subtune_jax.main --config=configs/head2toe.py
  python -m subtune_jax.main --config=configs/head2toe.py:train=emoji_domains/noto
  python -m subtune_jax.main --config=configs/head2toe.py:train=fashion_mnist

Result of 2026-11-28 and 29 on two busy CPU cores (330 s of processor time for the first):
EfficientNet-Lite0 at 32 px, 2 seeds. Test accuracy in %, half the 95 % interval, and what a step
takes in memory by the compiler's count; a head that is solved has none:

                     handwriting    mean OOD  a step          noto    mean OOD  Fashion-MNIST
  Linear probing      38.3 ± 4.9  41.1 ± 3.0            25.7 ± 5.5  16.7 ± 3.6     72.6 ± 0.9
  Head2Toe            83.5 ± 4.2  88.4 ± 2.7            41.8 ± 6.5  27.3 ± 4.6     86.1 ± 0.7
  SubTuning           61.7 ± 6.4  64.2 ± 4.1   36 MB    31.8 ± 5.6  17.3 ± 3.3     79.5 ± 1.2
  Full fine-tuning    60.7 ± 6.6  63.8 ± 4.5  129 MB    32.4 ± 6.1  17.8 ± 3.2     79.8 ± 1.3
  LoRA                57.0 ± 6.0  59.4 ± 5.1  136 MB    33.7 ± 5.8  20.5 ± 4.3     80.2 ± 0.7

Head2Toe is above the others everywhere by more than the noise; all chosen rates are at an end of a
grid of two. Why, and the seconds: docs/head2toe.md.
"""

from subtune_jax.studies import arguments
from subtune_jax.studies.compare import config as compare_config


def get_config(arg: str = ""):
  """The five methods on one data set; fields are in subtune_jax/studies/compare/config.py."""
  given = arguments.parse_argument(arg, ("train",))
  config = compare_config.default()
  config.name = "head2toe"
  config.title = "A head on features of all units, and four other methods"
  config.methods = ("lp", "head2toe", "subtuning", "ft", "lora")
  config.seeds = (0, 1)
  config.data.image_size = 32
  arguments.use_dataset(config, given.get("train", "glyph_domains/handwriting"))
  for name in ("subtuning", "ft", "lora"):
    config[name].learning_rates = (1e-3, 1e-2)
  return config
