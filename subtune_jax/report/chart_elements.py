"""What figures of searches are made of: points with intervals, bands, heat maps, unit names.

Everything draws on matplotlib axes that are handed in; accuracies come as fractions and are drawn
in per cent.
"""

from collections.abc import Iterable, Sequence
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from subtune_jax.report import charts, estimate, style, words

if TYPE_CHECKING:
  from matplotlib.artist import Artist
  from matplotlib.axes import Axes
  from matplotlib.colors import Colormap, Normalize
  from matplotlib.figure import Figure
  from matplotlib.image import AxesImage

ACCURACY = "held-out accuracy, %"
QUIET = "#BDBDBD"  # what is there to compare with
FOLD = "#8A8A8A"
DOT = "\N{BLACK CIRCLE}"
_CHAR = 0.072  # inches, of a character of a label
_LONGEST = 24  # characters of a name; the tables have it whole
LONGEST_SET = 44


def page_width(num_columns: int, per_column: float = 0.46) -> float:
  """Inches of a figure with so many units side by side."""
  return min(max(9.5, per_column * num_columns + 2.0), 12.6)


def text_width(labels: Sequence[str]) -> float:
  """Inches of the longest of small labels."""
  return _CHAR * max(min(len(label), LONGEST_SET) for label in labels)


def label_room(names: Sequence[str]) -> float:
  """Inches that slanted names take below an axis."""
  return 0.2 + 0.75 * _CHAR * min(max(map(len, names)), _LONGEST)


def interval(
  axes: "Axes",
  at: float,
  value: estimate.Estimate,
  color: str,
  *,
  line: float = 1.5,
  cap: float = 0.1,
  horizontal: bool = False,
  zorder: float = 3,
) -> None:
  """A 95 % interval with its caps, `cap` to each side; nothing where it is not known."""
  low, high = 100 * value.low, 100 * value.high
  if math.isnan(low) or math.isnan(high):
    return
  look = {"color": color, "linewidth": line, "zorder": zorder}
  if horizontal:
    axes.hlines(at, low, high, **look)
    axes.vlines([low, high], at - cap, at + cap, **look)
  else:
    axes.vlines(at, low, high, **look)
    axes.hlines([low, high], at - cap, at + cap, **look)


def fold_dots(axes: "Axes", at: float, by_fold: np.ndarray) -> None:
  """The accuracy of each fold as a small dot beside the point; NaN is left out."""
  if len(by_fold) < 2:
    return
  xs = at + np.linspace(0.17, 0.4, len(by_fold))
  axes.scatter(xs, 100 * by_fold, s=10, color=FOLD, linewidths=0, zorder=2)


def point(
  axes: "Axes",
  x: float,
  y: float,
  *,
  color: str,
  marker: str,
  filled: bool,
  size: float = 7.5,
  zorder: float = 4,
) -> "Artist":
  """A mean: filled, or hollow."""
  return axes.plot(
    [x],
    [y],
    marker=marker,
    markersize=size,
    color=color,
    markerfacecolor=color if filled else "white",
    markeredgecolor=color,
    markeredgewidth=1.5,
    linestyle="none",
    zorder=zorder,
  )[0]


def mean(
  axes: "Axes",
  at: float,
  value: estimate.Estimate,
  *,
  color: str,
  marker: str,
  filled: bool,
  size: float = 7.5,
  line: float = 1.5,
  cap: float = 0.1,
  horizontal: bool = False,
) -> None:
  """A `point` at a mean with its `interval`."""
  interval(axes, at, value, color, line=line, cap=cap, horizontal=horizontal)
  x, y = (100 * value.mean, at) if horizontal else (at, 100 * value.mean)
  point(axes, x, y, color=color, marker=marker, filled=filled, size=size)


def number_above(
  axes: "Axes", x: float, height: float, text: str, *, upright: bool = False
) -> None:
  """The number of a bar, above its end."""
  axes.annotate(
    text,
    (x, height),
    (0, 3),
    textcoords="offset points",
    ha="center",
    va="bottom",
    rotation=90 if upright else 0,
    fontsize=charts.SMALL - 1,
    color=style.INK,
  )


def level_line(axes: "Axes", value: estimate.Estimate, color: str, dashes: Any) -> None:
  """A horizontal line at an accuracy, with its interval as a band."""
  if not (math.isnan(value.low) or math.isnan(value.high)):
    axes.axhspan(100 * value.low, 100 * value.high, color=color, alpha=0.09, linewidth=0, zorder=0)
  axes.axhline(100 * value.mean, color=color, linewidth=1.5, linestyle=dashes, zorder=1)


def level_entry(color: str, dashes: Any) -> "Artist":
  """Legend handle of `level_line`."""
  from matplotlib import lines

  return lines.Line2D([], [], color=color, linestyle=dashes, linewidth=1.5)


def point_entry(color: str, marker: str, *, filled: bool, size: float = 7.5) -> "Artist":
  """Legend handle of `point`."""
  from matplotlib import lines

  return lines.Line2D(
    [],
    [],
    marker=marker,
    markersize=size,
    color=color,
    markerfacecolor=color if filled else "white",
    markeredgewidth=1.5,
    linestyle="none",
  )


def dots_entry() -> "Artist":
  """Legend handle of `fold_dots`."""
  from matplotlib import lines

  return lines.Line2D([], [], marker="o", markersize=3.2, color=FOLD, linestyle="none")


def legend(figure: "Figure", entries: Sequence[tuple["Artist", str]]) -> None:
  """A legend above all axes, in as many columns as the figure is wide."""
  figure.legend(
    [handle for handle, _ in entries],
    [charts.plain(words.shorten(label, LONGEST_SET)) for _, label in entries],
    loc="outside upper left",
    ncols=_legend_columns([label for _, label in entries], figure.get_figwidth()),
    frameon=False,
    fontsize=charts.SIZE - 0.5,
    handletextpad=0.5,
    columnspacing=1.6,
  )


def _legend_columns(labels: Sequence[str], width: float) -> int:
  """The most columns that fit; matplotlib fills a column before it begins the next."""
  for columns in range(len(labels), 1, -1):
    parts = np.array_split([len(label) for label in labels], columns)
    if sum(max(part) * 0.074 + 0.6 for part in parts) <= width:
      return columns
  return 1


def ends(values: Iterable[estimate.Estimate]) -> list[float]:
  """Means and ends of intervals, for `accuracy_axis`."""
  return [end for value in values for end in (value.mean, value.low, value.high)]


def accuracy_axis(axes: "Axes", values: Sequence[float], label: str = ACCURACY) -> None:
  """Limits around the values (fractions), and a label that says where the axis starts."""
  from matplotlib import ticker

  known = 100 * np.array([value for value in values if not math.isnan(value)])
  low, high = (known.min(), known.max()) if len(known) else (0.0, 100.0)
  room = max(0.06 * (high - low), 0.5)
  low, high = max(math.floor(low - room), 0), min(high + room, 100.5)
  axes.set_ylim(low, high)
  axes.yaxis.set_major_locator(ticker.MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
  note = "" if low == 0 else f"\n(axis starts at {low:.0f} %)"
  axes.set_ylabel(label + note, fontsize=charts.SIZE)


def unit_ticks(
  axes: "Axes", names: Sequence[str], width: float, *, bold: Sequence[str] = ()
) -> None:
  """Names of units at x = 0, 1, ...: slanted where they would touch, upright where even that is
  too wide; `width` is the axis in inches."""
  short = [_tick(name) for name in names]
  axes.set_xticks(range(len(names)), [charts.plain(name) for name in short], fontsize=charts.SMALL)
  labels, room = axes.get_xticklabels(), width / max(len(names), 1)
  if max(map(len, short)) * _CHAR + 0.06 > room:
    turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    if room < 0.2:
      turn = {"rotation": 90, "fontsize": charts.SMALL - 1.5}
    for text in labels:
      text.set(**turn)
  _embolden(labels, names, bold)


def _tick(name: str) -> str:
  """A name that fits; the rank of a unit, behind its "=", stays."""
  unit, equals, rank = name.rpartition("=")
  if not unit or "=" in unit:
    return words.shorten(name, _LONGEST)
  return words.shorten(unit, _LONGEST - len(rank) - 1) + equals + rank


def row_ticks(axes: "Axes", names: Sequence[str], *, bold: Sequence[str] = ()) -> None:
  """Names at y = 0, 1, ..."""
  short = ["\n".join(words.shorten(line, _LONGEST) for line in n.split("\n")) for n in names]
  axes.set_yticks(range(len(names)), [charts.plain(name) for name in short], fontsize=charts.SMALL)
  _embolden(axes.get_yticklabels(), names, bold)


def _embolden(labels, names: Sequence[str], bold: Sequence[str]) -> None:
  for text, name in zip(labels, names, strict=True):
    if name in bold:
      text.set_fontweight("bold")


def heat_map(
  axes: "Axes", values: np.ndarray, colors: "Colormap", norm: "Normalize", *, aspect: str = "equal"
) -> "AxesImage":
  """[rows, columns] as coloured cells with white gaps; NaN stays empty."""
  image = axes.imshow(
    np.ma.masked_invalid(values), cmap=colors, norm=norm, aspect=aspect, interpolation="nearest"
  )
  rows, columns = values.shape
  axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
  axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
  axes.grid(True, which="minor", color="white", linewidth=1.2)
  axes.tick_params(which="both", length=0, colors=style.INK, labelsize=charts.SMALL)
  axes.spines[:].set_visible(False)
  return image


def ink_on(image: "AxesImage", value: float) -> str:
  """Black or white, whichever reads better on the cell of a heat map."""
  from matplotlib import colors

  return style.text_color(colors.to_hex(image.cmap(image.norm(value))))


def in_cell(
  axes: "Axes", image: "AxesImage", row: int, column: int, value: float, text: str, **how
) -> None:
  """A text in the middle of a cell whose colour is that of `value`."""
  axes.text(
    column,
    row,
    text,
    ha="center",
    va="center",
    color=ink_on(image, value),
    **{"fontsize": charts.SMALL, **how},
  )


def outline(axes: "Axes", row: int, column: int, *, dashed: bool = False) -> None:
  """A dark frame on white around a cell."""
  from matplotlib import patches

  for color, line in (("white", 4.5), (style.INK, 2.2)):
    axes.add_patch(
      patches.Rectangle(
        (column - 0.46, row - 0.46),
        0.92,
        0.92,
        fill=False,
        edgecolor=color,
        linewidth=line,
        linestyle=(0, (2, 1)) if dashed and color != "white" else "-",
        joinstyle="miter",
        zorder=5,
      )
    )


def outline_entry() -> "Artist":
  """Legend handle of `outline`."""
  from matplotlib import patches

  return patches.Patch(facecolor="white", edgecolor=style.INK, linewidth=2.0)


def color_bar(figure: "Figure", image: "AxesImage", axes: "Axes", label: str) -> None:
  """A colour bar as high as the cells, at their right."""
  inches = max(axes.get_window_extent().width / figure.dpi, 1.0)
  bar = figure.colorbar(image, cax=axes.inset_axes([1 + 0.15 / inches, 0, 0.2 / inches, 1]))
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


def gain_map(
  figure: "Figure",
  axes: "Axes",
  values: np.ndarray,
  near: np.ndarray,
  width: float,
  *,
  ranked: int | None = None,
) -> None:
  """Heat map of gains, the best of each row framed, numbers in the cells where there is room.

  Args:
    figure: of the axes.
    axes: to draw on.
    values: [rows, columns] gains in points, NaN where there is none.
    near: [rows, columns] whether a cell carries a dot: not told apart from the best of its row.
    width: of the axes in inches.
    ranked: only so many of the first columns are compared; None for all.
  """
  image = heat_map(axes, values, *gain_colors(values), aspect="auto")
  room = width / values.shape[1]
  size = charts.SMALL if room > 0.55 else charts.SMALL - 1.5
  for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
    value = values[row, column]
    text = f"{value:+.1f}".replace("-", "\N{MINUS SIGN}") if room > 0.4 else ""
    shift = 0.12 if text and near[row, column] else 0.0
    if text:
      in_cell(axes, image, row - shift, column, value, text, fontsize=size)
    if near[row, column]:
      in_cell(axes, image, row + 2.4 * shift, column, value, DOT, fontsize=5)
  for row, line in enumerate(values[:, :ranked]):
    if np.isfinite(line).any():
      outline(axes, row, int(np.nanargmax(line)))
  color_bar(figure, image, axes, "gain over the\nhead alone, points")


def gain_map_entries(near: np.ndarray) -> list[tuple["Artist", str]]:
  """Legend of `gain_map`."""
  entries = [(outline_entry(), "best unit of the row")]
  if near.any():
    dot = point_entry(style.INK, "o", filled=True, size=3.5)
    entries.append((dot, "not told apart from it"))
  return entries
