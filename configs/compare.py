"""The full comparison: 128 px, learning rates over decades, 3 seeds.

  python -m subtune_jax.main --config=configs/compare.py

Result of 2026-11-21 on two CPU cores, an hour on a machine with other work (float32, jax 0.10.2).
Trained on noto; test accuracy in %, mean over 3 seeds, ± half the 95 % interval of a bootstrap over
test concepts and seeds (261 images of 237 concepts in each domain):

                    noto (ID)     twemoji    openmoji      fluent    mean OOD  setting     moved
  Linear probing    46.0 ± 6.5  31.4 ± 5.8  22.6 ± 5.3  28.7 ± 5.9  27.6 ± 4.2   l2 0.1         0
  Full fine-tuning  49.6 ± 6.4  28.5 ± 5.3  23.5 ± 5.4  27.3 ± 5.4  26.4 ± 4.1  lr 1e-3    3.25 %
  LP-FT             49.2 ± 6.6  34.0 ± 5.9  26.7 ± 5.7  31.3 ± 6.0  30.7 ± 4.4  lr 1e-4    0.31 %
  SubTuning         53.5 ± 6.5  33.0 ± 5.4  25.2 ± 5.5  33.1 ± 6.0  30.4 ± 4.4  lr 1e-3    2.67 %

Against linear probing, paired: SubTuning in distribution +7.5 [+2.7, +12.5], LP-FT's mean out of
distribution +3.1 [+0.3, +5.7]; every other difference has 0 in its interval. Validation accuracy
(first seed) by learning rate, none chosen at the edge of its grid:

  Full fine-tuning  1e-5 .040  1e-4 .230  1e-3 .489  1e-2 .270
  LP-FT             1e-6 .477  1e-5 .471  1e-4 .500  1e-3 .483
  SubTuning         1e-5 .023  1e-4 .270  1e-3 .534  1e-2 .494
"""

from subtune_jax.studies import arguments
from subtune_jax.studies.compare import config as compare_config


def get_config():
  """The full comparison; fields are declared in subtune_jax/studies/compare/config.py."""
  config = compare_config.default()
  config.name = "compare"
  config.data.image_size = 128
  arguments.use_full_grids(config, config.methods)
  return config
