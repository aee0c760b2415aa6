"""Numbers as coloured cells: their colours, texts in them, frames around them, a colour bar."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import charts, marks, style

if TYPE_CHECKING:
  from matplotlib.artist import Artist
  from matplotlib.axes import Axes
  from matplotlib.colors import Colormap, Normalize
  from matplotlib.figure import Figure
  from matplotlib.image import AxesImage

DOT = "\N{BLACK CIRCLE}"


def draw(
  axes: "Axes", values: np.ndarray, colors: "Colormap", norm: "Normalize", *, aspect: str = "equal"
) -> "AxesImage":
  """[rows, columns] as coloured cells with white gaps; NaN stays empty."""
  image = axes.imshow(
    np.ma.masked_invalid(values), cmap=colors, norm=norm, aspect=aspect, interpolation="nearest"
  )
  gaps(axes, *values.shape, "white", 1.2)
  return image


def gaps(axes: "Axes", rows: int, columns: int, color: str, line: float) -> None:
  """Lines between cells, in place of the box of the axes."""
  axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
  axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
  axes.grid(True, which="minor", color=color, linewidth=line)
  axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
  axes.tick_params(which="both", length=0, colors=style.INK, labelsize=charts.SMALL)
  axes.spines[:].set_visible(False)


def write(
  axes: "Axes", image: "AxesImage", row: float, column: int, value: float, text: str,
  size: float = charts.SMALL,
) -> None:  # fmt: skip
  """A text in the middle of a cell whose colour is that of `value`, black or white."""
  from matplotlib import colors

  ink = style.text_color(colors.to_hex(image.cmap(image.norm(value))))
  axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=size)


def outline(axes: "Axes", row: int, column: int) -> None:
  """A dark frame on white around a cell."""
  from matplotlib import patches

  for color, line in (("white", 4.5), (style.INK, 2.2)):
    look = {"fill": False, "edgecolor": color, "linewidth": line, "joinstyle": "miter", "zorder": 5}
    axes.add_patch(patches.Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, **look))


def outline_key() -> "Artist":
  """Legend handle of `outline`."""
  from matplotlib import patches

  return patches.Patch(facecolor="white", edgecolor=style.INK, linewidth=2.0)


def color_bar(image: "AxesImage", axes: "Sequence[Axes]", label: str) -> None:
  """A colour bar at the right: as high as the cells of one panel, or of all panels together."""
  figure = axes[0].figure
  if len(axes) > 1:
    bar = figure.colorbar(image, ax=list(axes), pad=0.015, aspect=25)
  else:
    inches = max(axes[0].get_window_extent().width / figure.dpi, 1.0)
    bar = figure.colorbar(image, cax=axes[0].inset_axes([1 + 0.15 / inches, 0, 0.2 / inches, 1]))
  bar.set_label(label, fontsize=charts.SIZE)
  bar.ax.tick_params(labelsize=charts.SMALL)
  bar.outline.set_visible(False)


def accuracy_colors(values: np.ndarray) -> tuple["Colormap", "Normalize"]:
  """A perceptually uniform map for accuracies in per cent, and its range."""
  import matplotlib
  from matplotlib import colors

  low, high = float(np.nanmin(values)), float(np.nanmax(values))
  if high - low < 0.1:
    low, high = low - 0.5, high + 0.5
  return matplotlib.colormaps["viridis"], colors.Normalize(low, high)


def gain_colors(values: np.ndarray) -> tuple["Colormap", "Normalize"]:
  """A map with white at no gain, orange below and purple above, cut to the range of the data."""
  import matplotlib
  from matplotlib import colors

  low, high = min(float(np.nanmin(values)), 0.0), max(float(np.nanmax(values)), 0.0)
  most = max(-low, high, 0.5)
  low, high = (low, high) if high - low > 0.1 else (-most, most)
  full = matplotlib.colormaps["PuOr"]
  part = full(np.linspace(0.5 + 0.5 * low / most, 0.5 + 0.5 * high / most, 256))
  return colors.ListedColormap(part), colors.Normalize(low, high)


def gains(
  units: Sequence[str],
  rows: Sequence[str],
  values: np.ndarray,
  near: np.ndarray,
  *,
  row_height: float,
  ranked: int | None = None,
) -> "Figure":
  """Gains over the head alone: the best of each row framed, numbers in the cells that have room.

  Args:
    units: names of the columns.
    rows: names of the rows, of one or two lines.
    values: [rows, columns] gains in points, NaN where there is none.
    near: [rows, columns] whether a cell carries a dot: not told apart from the best of its row.
    row_height: inches.
    ranked: only so many of the first columns are compared; None for all.
  """
  width = charts.page_width(len(units), 0.54)
  above = 0.8 + charts.label_room(units)
  figure, (axes,) = charts.panels(1, width, above + row_height * len(values))
  image, room = draw(axes, values, *gain_colors(values), aspect="auto"), (width - 2.5) / len(units)
  for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
    value = values[row, column]
    shift = 0.12 if room > 0.4 and near[row, column] else 0.0
    if room > 0.4:
      text = f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")
      size = charts.SMALL - (0 if room > 0.55 else 1.5)
      write(axes, image, row - shift, column, value, text, size)
    if near[row, column]:
      write(axes, image, row + 2.4 * shift, column, value, DOT, 5)
  for row, line in enumerate(values[:, :ranked]):
    if np.isfinite(line).any():
      outline(axes, row, int(np.nanargmax(line)))
  color_bar(image, [axes], "gain over the\nhead alone, points")
  charts.unit_ticks(axes, units, width - 2.5)
  charts.row_ticks(axes, rows)
  entries = [(outline_key(), "best unit of the row")]
  if near.any():
    entries.append((marks.key(style.INK, "o", size=3.5), "not told apart from it"))
  charts.legend(figure, entries)
  return figure
