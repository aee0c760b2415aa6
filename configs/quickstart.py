r"""Four methods on letters and digits of unseen fonts, in ten minutes on two cores.

  python -m subtune_jax.main --config=configs/quickstart.py
  python -m subtune_jax.main --config=configs/quickstart.py:train=glyph_domains/serif,fonts=5
  python -m subtune_jax.main --config=configs/quickstart.py:train=emoji_domains/noto

`train` is a domain of a set that comes with the package, the others of that set are out of
distribution; `fonts` is how many of the 26 training fonts of a glyph domain are used, and a smaller
subset lies in every larger one. 64 px, one learning rate per method, the ones that validation chose
over decades: on handwriting for glyphs, on noto (configs/compare.py) for emoji.

Result of 2026-11-29 on two CPU cores: 4 minutes with the installation, at most 3.2 GiB (jax
0.10.2). Trained on handwriting; test accuracy in %, ± half the 95 % interval over test fonts and
seeds (1,152 images of 32 fonts in each domain):

                   handwriting (ID)     display        sans       serif    mean OOD
  Linear probing         62.4 ± 5.9  44.2 ± 9.6  74.7 ± 7.0  61.5 ± 3.6  60.1 ± 4.6
  Full fine-tuning       77.7 ± 6.5  63.3 ± 9.4  85.7 ± 7.0  78.9 ± 4.9  76.0 ± 5.8
  LP-FT                  64.5 ± 5.3  47.0 ± 9.1  76.5 ± 6.9  63.9 ± 3.5  62.5 ± 4.6
  SubTuning              73.5 ± 5.6  63.4 ± 8.1  83.2 ± 7.2  78.1 ± 3.6  74.9 ± 4.6

Full fine-tuning and SubTuning are above the probe everywhere by more than the noise, LP-FT in
distribution and in the mean out of it. On emoji no difference is outside its noise (noto: 37.5,
36.7, 40.1, 41.3 in distribution and 23.4, 19.9, 24.1, 25.0 out of it, ± 4 to 6, three seeds).

With --config.methods="('lp','head2toe')" Head2Toe reaches 86.3 ± 3.6 and 89.3 ± 3.5 on these glyphs
(docs/head2toe.md); it takes 100 seconds.
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
