r"""Four methods on Glyph Domains: letters and digits of one category of fonts, tested on four.

  python -m subtune_jax.main --config=configs/glyphs.py
  python -m subtune_jax.main --config=configs/glyphs.py:train=serif,fonts=5

`train` is serif, sans, handwriting or display; `fonts` is how many of its 26 training fonts are
used (all of them otherwise), and a smaller subset lies in every larger one.

64 px, 2 seeds, the quickstart's learning rates. Result of 2026-11-28 on two CPU cores beside other
work, trained on handwriting; test accuracy in %, ± half the 95 % interval over test fonts and
seeds (1,152 images of 32 fonts in each domain):

                   handwriting (ID)     display        sans       serif    mean OOD
  Linear probing         62.4 ± 5.9  44.2 ± 9.6  74.7 ± 7.0  61.5 ± 3.6  60.1 ± 4.6
  Full fine-tuning       73.8 ± 5.4  60.3 ± 9.1  85.5 ± 6.8  83.8 ± 4.3  76.5 ± 4.7
  LP-FT                  64.8 ± 5.4  46.8 ± 9.3  76.7 ± 7.0  64.0 ± 3.6  62.5 ± 4.6
  SubTuning              71.6 ± 5.6  58.0 ± 8.3  82.4 ± 6.8  77.3 ± 3.4  72.6 ± 4.3

Full fine-tuning gains most on the probe, in distribution (+11.4 [+8.1, +14.8]; SubTuning cannot be
told from it there) and out of it (+16.4 [+13.9, +19.0]), otherwise than on Emoji Domains. LP-FT has
one rate here, which was chosen there and moves the weights by 0.2 %:
`--config.lp_ft.learning_rates` takes others.
"""

from subtune_jax.data import choices, glyph_domains
from subtune_jax.studies import arguments
from subtune_jax.studies.compare import config as compare_config


def get_config(arg: str = ""):
  """The comparison; fields are declared in subtune_jax/studies/compare/config.py."""
  given = arguments.parse_argument(arg, ("train", "fonts"))
  config = compare_config.default()
  config.name = "glyphs"
  config.seeds = (0, 1)
  domain = given.get("train", "handwriting")
  choices.check("Glyph Domains domain", domain, glyph_domains.SET.attribution)
  arguments.use_dataset(config, f"glyph_domains/{domain}")
  if "fonts" in given:
    fonts = arguments.integer("fonts", given["fonts"])
    most = glyph_domains.SET.split_sizes["train"] // len(glyph_domains.CLASSES)
    if fonts > most:
      raise ValueError(f"fonts is {fonts}; give 1 to {most}")
    config.data.num_train = fonts * len(glyph_domains.CLASSES)
  return config
