r"""Which images to label next? Five rules of asking, three learners, rounds of growing labels.

python -m subtune_jax.main --config=configs/active_learning.py

Result of 2026-11-28 on two CPU cores that had much other work, 25 minutes: linear probing alone,
--config.methods="('lp',)" --config.totals="(72,144,288,576)". EfficientNet-Lite0 at 32 px, 936
images of Glyph Domains' handwriting as the pool, 36 classes, 1,152 test images, 3 seeds. Test
accuracy in %, half the 95 % interval, and labels saved against random ones at equal accuracy:

  labels            72         144         288         576   labels saved, %
  Random    15.3 ± 3.1  21.9 ± 3.1  29.5 ± 3.9  35.0 ± 4.4
  Margin    15.3 ± 3.1  21.2 ± 2.8  26.6 ± 3.6  33.2 ± 4.1    -25 [-59,   0]
  Entropy   15.3 ± 3.1  19.3 ± 3.9  25.3 ± 4.7  32.5 ± 4.3    -37 [-84,  -2]
  Coreset   15.3 ± 3.1  21.9 ± 2.9  27.6 ± 3.6  36.8 ± 4.2     12 [ -1,  24]
  BADGE     15.3 ± 3.1  22.0 ± 3.0  28.7 ± 3.8  35.2 ± 5.0      1 [-31,  27]

SubTuning, three rules, --config.subtuning.blocks="('block15','top')" --config.subtuning.epochs=8:

  Random    16.1 ± 1.9  30.8 ± 4.2  45.9 ± 5.5  57.0 ± 6.0
  Margin    16.1 ± 1.9  29.9 ± 4.2  43.1 ± 4.7  58.2 ± 6.2      6 [ -8,  16]
  BADGE     16.1 ± 1.9  29.4 ± 3.6  42.7 ± 5.6  58.0 ± 5.8      4 [ -5,  13]

No rule is shown to save labels with so few for 36 classes; for the probe entropy needs more than
random. Full fine-tuning has not been measured.
"""

from subtune_jax.studies.active_learning import config as active_learning


def get_config():
  """The study; `rules` and `totals` are declared in studies/active_learning/config.py, the other
  fields in that of studies/compare."""
  config = active_learning.default()
  config.seeds = (0, 1, 2)
  config.batch_size = 32
  config.lp.l2 = (0.1,)  # one setting each: no label of the validation split is used
  for name, rate in (("subtuning", 3e-3), ("ft", 1e-3)):
    config[name].epochs = 10
    config[name].learning_rates = (rate,)
  return config
