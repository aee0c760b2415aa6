r"""Four methods on Glyph Domains: letters and digits of one category of fonts, tested on four.

  python -m subtune_jax.main --config=configs/glyphs.py
  python -m subtune_jax.main --config=configs/glyphs.py:train=serif,fonts=5

`train` is serif, sans, handwriting or display; `fonts` is how many of its 26 training fonts are
used (all of them otherwise), and a smaller subset lies in every larger one.
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
