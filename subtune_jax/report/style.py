"""One look for every figure: a method has the same colour and marker wherever it is drawn.

The first colours are those of Okabe and Ito (2008), told apart by readers with the common colour
blindnesses; the further ones keep as far from them and from each other under simulations of the
three. A second sign (marker, symbol, word) always goes with a colour.
"""

from collections.abc import Sequence
import colorsys

INK = "#222222"
MUTED = "#666666"
GRID = "#DDDDDD"
FROZEN = "#ECECEC"
WARNING = "#A34700"
DASHED, DOTTED = (0, (4, 2)), (0, (1, 1.3))  # of lines
RIGHT = "#0072B2"
WRONG = "#B34700"
RIGHT_SYMBOL = "\N{CHECK MARK}"
WRONG_SYMBOL = "\N{BALLOT X}"

METHOD_COLORS = {
  "lp": "#000000",
  "ft": "#D55E00",
  "lp_ft": "#0072B2",
  "subtuning": "#009E73",
  "gradual_unfreezing": "#CC79A7",
  "auto_rgn": "#E69F00",
  "auto_snr": "#56B4E9",
  "l2_sp": "#91083F",
  "ema": "#A0BD75",
  "layerwise_decay": "#230891",
  "frozen_embedding": "#612A05",
  "batch_norm_only": "#960DF2",
  "bias_only": "#A56EF7",
  "wise_ft": "#5D3267",
  "pretrained": "#8C8C8C",
  "frozen_classifier": "#7788DE",
  "distillation": "#EBBAE1",
  "feature_rank": "#874E20",
  "swa": "#5CE752",
  "lolsgd": "#2247A5",
  "oracle": "#2A0363",
}
_SPARE_COLORS = ("#F0E442",)
_MARKERS = (
  "o", "s", "D", "^", "v", "P", "X", "<", ">", "h", "p", "*", "d", "8",
  # Stars of 4, 3, 6 and 8 points and a pentagon on its tip: (points, star or polygon, degrees).
  (4, 1, 0), (3, 1, 0), (4, 1, 45), (3, 1, 180), (6, 1, 0), (5, 0, 180), (8, 1, 0),
)  # fmt: skip
Marker = str | tuple[int, int, int]


def _generated_color(index: int) -> str:
  """Colour `index` of an endless row: hues a golden ratio apart, three depths of lightness."""
  hue = (0.11 + index * 0.6180339887) % 1.0
  red, green, blue = colorsys.hls_to_rgb(hue, (0.32, 0.48, 0.64)[index % 3], 0.45)
  return f"#{round(255 * red):02X}{round(255 * green):02X}{round(255 * blue):02X}"


def colors(methods: Sequence[str]) -> dict[str, str]:
  """Colours of methods, as "#RRGGBB".

  A method of `METHOD_COLORS` always has its own colour. The others get the rest of the palette in
  the order given, and generated colours after that.

  Args:
    methods: distinct names.

  Returns:
    A dict in the order of `methods`, all values distinct.
  """
  spare = list(_SPARE_COLORS)
  spare += [_generated_color(i) for i in range(len(methods))]
  taken = set(METHOD_COLORS.values())
  free = (c for c in spare if c not in taken)
  return {m: METHOD_COLORS[m] if m in METHOD_COLORS else next(free) for m in methods}


def markers(methods: Sequence[str]) -> dict[str, Marker]:
  """Matplotlib markers of methods: fixed for those of `METHOD_COLORS`, then in order."""
  known = list(METHOD_COLORS)
  unknown = [m for m in methods if m not in METHOD_COLORS]
  order = known + unknown
  return {m: _MARKERS[order.index(m) % len(_MARKERS)] for m in methods}


def looks(methods: Sequence[str]) -> dict[str, tuple[str, Marker]]:
  """Colour and marker of methods."""
  own = colors(methods)
  return {method: (own[method], marker) for method, marker in markers(methods).items()}


def text_color(background: str) -> str:
  """Black or white, whichever reads better on `background` ("#RRGGBB").

  The contrast is that of WCAG 2.1, from the relative luminance.
  """
  channels = [int(background[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
  luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
  return "#FFFFFF" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"
