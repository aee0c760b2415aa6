"""Four methods on Emoji Domains in ten minutes on two cores.

  python -m subtune_jax.main --config=configs/quickstart.py

64 px, 3 seeds, one learning rate per method: the ones that configs/compare.py chose on validation.
Result of 2026-11-21 on two CPU cores in 4 min 44 s, at most 3.2 GiB of memory (jax 0.10.2). Trained
on noto; test accuracy in %, ± half the 95 % interval over test concepts and seeds:

                    noto (ID)     twemoji    openmoji      fluent    mean OOD  setting     moved
  Linear probing    37.5 ± 6.4  25.3 ± 5.6  17.6 ± 4.9  27.2 ± 5.8  23.4 ± 4.0  l2 0.01         0
  Full fine-tuning  36.7 ± 5.7  22.2 ± 5.5  12.4 ± 4.8  25.0 ± 5.4  19.9 ± 4.2  lr 1e-3    3.15 %
  LP-FT             40.1 ± 6.4  26.3 ± 5.8  18.9 ± 5.1  27.1 ± 5.7  24.1 ± 4.1  lr 1e-4    0.28 %
  SubTuning         41.3 ± 6.5  27.5 ± 6.6  18.6 ± 4.5  29.0 ± 5.6  25.0 ± 4.2  lr 1e-3    2.53 %

Every paired difference from linear probing has 0 in its 95 % interval: at this size the data do not
decide between the methods.
"""

from subtune_jax.studies.compare import config as compare_config


def get_config():
  """The quickstart; fields are declared in subtune_jax/studies/compare/config.py."""
  config = compare_config.default()
  config.name = "quickstart"
  return config
