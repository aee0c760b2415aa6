r"""Four methods on letters and digits of unseen fonts, in ten minutes on two cores.

  python -m subtune_jax.main --config=configs/quickstart.py
  python -m subtune_jax.main --config=configs/quickstart.py:train=glyph_domains/serif,fonts=5
  python -m subtune_jax.main --config=configs/quickstart.py:train=emoji_domains/noto

`train` is a domain of a set that comes with the package, the others of that set are out of
distribution; `fonts` is how many of the 26 training fonts of a glyph domain are used, and a smaller
subset lies in every larger one. 64 px, one learning rate per method, the ones that validation chose
over decades: on handwriting for glyphs, on noto (configs/compare.py) for emoji.

RESULT
"""

from subtune_jax import data
from subtune_jax.data import choices, glyph_domains
from subtune_jax.studies import arguments
from subtune_jax.studies.compare import config as compare_config

_RATES = {"ft": 1e-2, "lp_ft": 1e-4, "subtuning": 1e-2}  # on glyphs


def get_config(arg: str = ""):
  """The quickstart; fields are declared in subtune_jax/studies/compare/config.py."""
  given = arguments.parse_argument(arg, ("train", "fonts"))
  config = compare_config.default()
  config.name = "quickstart"
  train = given.get("train", "glyph_domains/handwriting")
  shipped = [name for name in data.names() if name.startswith(("glyph_domains/", "emoji_domains/"))]
  choices.check("set that comes with the package", train, shipped)
  arguments.use_dataset(config, train)
  glyphs = train.startswith("glyph_domains/")
  if glyphs:
    config.seeds = (0, 1)  # 936 images, and 1,152 to test on: two seeds decide
    for method, rate in _RATES.items():
      config[method].learning_rates = (rate,)
  if "fonts" in given:
    config.data.num_train = _fonts(given["fonts"], glyphs) * len(glyph_domains.CLASSES)
  return config


def _fonts(text: str, glyphs: bool) -> int:
  number = arguments.integer("fonts", text)
  most = glyph_domains.SET.split_sizes["train"] // len(glyph_domains.CLASSES)
  if not glyphs or number > most:
    raise ValueError(f"fonts is {number}; give 1 to {most}, with a glyph domain")
  return number
