"""What every figure shares: its canvas, its type sizes, quiet axes, a legend of methods, a PNG.

Every figure is a matplotlib `Figure` of its own (no pyplot, no global state), so it works without a
display and from several threads.
"""

from collections.abc import Mapping, Sequence
import io
import math
from typing import TYPE_CHECKING, Any

from subtune_jax.report import style, words

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

DPI = 160
SIZE, SMALL = 10, 8.5


def png(figure: "Figure") -> bytes:
  """A figure as the bytes of a PNG."""
  stream = io.BytesIO()
  figure.savefig(stream, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
  return stream.getvalue()


def new_figure(width: float, height: float, layout: str = "constrained") -> "Figure":
  """An empty figure of `width` x `height` inches that draws by Agg."""
  from matplotlib import figure
  from matplotlib.backends import backend_agg

  made = figure.Figure(figsize=(width, height), layout=layout)
  backend_agg.FigureCanvasAgg(made)
  return made


def plain(text: Any) -> str:
  """`text` as it stands: a dollar sign is no formula."""
  return str(text).replace("$", r"\$")


def clean(axes: "Axes", grid: str = "y") -> None:
  """Takes the box off and puts a quiet grid behind the data."""
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(style.MUTED)
  axes.tick_params(colors=style.INK, labelsize=SMALL)
  axes.set_axisbelow(True)
  axes.grid(True, axis=grid, color=style.GRID, linewidth=0.8)


def method_legend(figure: "Figure", methods: Sequence[str], titles: Mapping[str, str]) -> None:
  """One legend above the axes: the colour of each method; in rows as wide as the figure."""
  from matplotlib import patches

  colors = style.colors(methods)
  labels = [plain(words.shorten(titles[m], 28)) for m in methods]
  inches = sum(0.55 + 0.08 * len(label) for label in labels[:5])  # about, of a patch and its label
  rows = math.ceil(inches / figure.get_figwidth())
  figure.legend(
    [patches.Patch(color=colors[m]) for m in methods],
    labels,
    loc="outside upper left",
    ncols=math.ceil(min(len(methods), 5) / rows),
    frameon=False,
    fontsize=SIZE,
  )
