"""The canvas of every figure: panels, labels, notes, a legend, axes of one kind, a PNG.

Every figure is a matplotlib `Figure` of its own (no pyplot, no global state), so it works without a
display and from several threads. What is drawn on it is in `marks` and `heat_map`; accuracies come
as fractions and are drawn in per cent.
"""

from collections.abc import Iterable, Sequence
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from subtune_jax.report import estimate, style, words

if TYPE_CHECKING:
  from matplotlib.artist import Artist
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

DPI = 160
SIZE, SMALL = 10, 8.5
ACCURACY = "held-out accuracy, %"
LONGEST_SET = 44  # characters of a label
_CHAR = 0.072  # inches, of a character of a label
_LONGEST = 24  # characters of a name; the tables have it whole
_WIDE_RANGE = 30.0  # largest over smallest positive value from which an axis is logarithmic
Entry = tuple["Artist", str]  # of a legend


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


def panels(
  count: int,
  width: float,
  height: float,
  *,
  per_row: int | None = None,
  around: float = 0.0,
  **share: Any,
) -> "tuple[Figure, list[Axes]]":
  """A figure of `count` axes, row by row.

  Args:
    count: of axes.
    width: of the figure, inches.
    height: of a row, inches.
    per_row: axes in a row; None: all.
    around: inches that all rows share, of the legend and of names below.
    **share: of matplotlib's `subplots`, such as `sharey`.
  """
  columns = min(per_row or count, count)
  rows = math.ceil(count / columns)
  figure = new_figure(width, around + height * rows)
  found = figure.subplots(rows, columns, squeeze=False, **share).ravel()
  for axes in found[count:]:
    axes.remove()
  return figure, list(found[:count])


def page_width(num_columns: int, per_column: float = 0.46) -> float:
  """Inches of a figure with so many units side by side."""
  return min(max(9.5, per_column * num_columns + 2.0), 12.6)


def text_width(labels: Sequence[str]) -> float:
  """Inches of the longest of small labels."""
  return _CHAR * max(min(len(label), LONGEST_SET) for label in labels)


def label_room(names: Sequence[str]) -> float:
  """Inches that slanted names take below an axis."""
  return 0.2 + 0.75 * _CHAR * min(max(map(len, names)), _LONGEST)


def plain(text: Any) -> str:
  """`text` as it stands: a dollar sign is no formula."""
  return str(text).replace("$", r"\$")


def label(
  axes: "Axes", title: str = "", *, x: str = "", y: str = "", grid: str = "y", noted: bool = False
) -> None:
  """Title and labels; no box, and a quiet grid behind the data ("y", "x", "both" or "").

  The title stands at the left, or in the middle over a note below it (`noted`).
  """
  place = {"loc": "center", "pad": 20} if noted else {"loc": "left", "pad": 4}
  axes.set_title(plain(title), fontsize=SIZE, **place)
  for text, put in ((x, axes.set_xlabel), (y, axes.set_ylabel)):
    if text:
      put(plain(text), fontsize=SIZE)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(style.MUTED)
  axes.tick_params(colors=style.INK, labelsize=SMALL)
  axes.set_axisbelow(True)
  if grid:
    axes.grid(True, axis=grid, color=style.GRID, linewidth=0.8)


def note(
  axes: "Axes",
  text: Any,
  at: tuple[Any, Any],
  shift: tuple[float, float] = (0, 0),
  *,
  color: str = style.INK,
  size: float = SMALL,
  **how: Any,
) -> None:
  """A small text, `shift` points from a place; `how` as for matplotlib's `annotate`."""
  how = {"fontsize": size, "color": color, "annotation_clip": False, **how}
  axes.annotate(plain(text), at, shift, textcoords="offset points", **how)


def legend(figure: "Figure", entries: Sequence[Entry]) -> None:
  """A legend above all axes, in as many columns as the figure is wide."""
  labels = [plain(words.shorten(label, LONGEST_SET)) for _, label in entries]
  figure.legend(
    [handle for handle, _ in entries],
    labels,
    loc="outside upper left",
    ncols=_legend_columns(labels, figure.get_figwidth()),
    frameon=False,
    fontsize=SIZE - 0.5,
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


def accuracy_axis(axes: "Axes", values: Sequence[float], label: str = ACCURACY) -> str:
  """Limits around the values (fractions), and a label that says where the axis starts."""
  from matplotlib import ticker

  known = 100 * np.array([value for value in values if not math.isnan(value)])
  low, high = (known.min(), known.max()) if len(known) else (0.0, 100.0)
  room = max(0.06 * (high - low), 0.5)
  low, high = max(math.floor(low - room), 0), min(high + room, 100.5)
  axes.set_ylim(low, high)
  axes.yaxis.set_major_locator(ticker.MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
  text = label if low == 0 else f"{label}\n(axis starts at {low:.0f} %)"
  axes.set_ylabel(text, fontsize=SIZE)
  return text


def from_zero(axes: "Axes", values: Iterable[float], *, which: str = "y") -> None:
  """An axis from 0; logarithmic above the smallest value where they span decades."""
  from matplotlib import ticker

  positive = [value for value in values if math.isfinite(value) and value > 0]
  axis, top = getattr(axes, f"{which}axis"), max(positive, default=1.0)
  wide = bool(positive) and top / min(positive) > _WIDE_RANGE
  if wide:
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(top))
    getattr(axes, f"set_{which}scale")("symlog", linthresh=10.0**first, linscale=0.4)
    step = max(1, math.ceil((last - first) / 6))
    ticks = [0, *(10.0**k for k in range(first, last + 1, step))]
    axis.set_major_locator(ticker.FixedLocator(ticks))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
  getattr(axes, f"set_{which}lim")(0, top * (1.6 if wide else 1.12))


def log_axis(axes: "Axes", values: Sequence[float]) -> None:
  """A logarithmic x axis with a tick at each of rising whole numbers."""
  from matplotlib import ticker

  room = (values[-1] / values[0]) ** 0.06 if len(values) > 1 else 1.5
  axes.set_xscale("log")
  axes.xaxis.set_minor_locator(ticker.NullLocator())
  axes.set_xticks(values, [f"{value:,}" for value in values])
  axes.set_xlim(values[0] / room, values[-1] * room)


def dodge(values: Sequence[float], index: int, count: int) -> float:
  """Factor that sets one of `count` lines beside the others on a `log_axis` of the values."""
  whole = values[-1] / values[0] if len(values) > 1 else 1.5
  return whole ** (0.012 * (index - (count - 1) / 2))


def whole_epochs(axes: "Axes") -> None:
  """Ticks at whole epochs, one at least."""
  from matplotlib import ticker

  axes.xaxis.set_major_locator(ticker.MaxNLocator(7, integer=True, min_n_ticks=1))


def unit_ticks(
  axes: "Axes", names: Sequence[str], width: float, *, bold: Sequence[str] = ()
) -> None:
  """Names of units at x = 0, 1, ...: slanted where they would touch, upright where even that is
  too wide; `width` is the axis in inches."""
  short = [_tick(name) for name in names]
  axes.set_xticks(range(len(names)), [plain(name) for name in short], fontsize=SMALL)
  labels, room = axes.get_xticklabels(), width / max(len(names), 1)
  if max(map(len, short)) * _CHAR + 0.06 > room:
    turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    if room < 0.2:
      turn = {"rotation": 90, "fontsize": SMALL - 1.5}
    for text in labels:
      text.set(**turn)
  _embolden(labels, names, bold)


def _tick(name: str) -> str:
  """A name that fits; the rank of a unit, behind its "=", stays."""
  unit, equals, rank = name.rpartition("=")
  if not unit or "=" in unit:
    return words.shorten(name, _LONGEST)
  return words.shorten(unit, _LONGEST - len(rank) - 1) + equals + rank


def row_ticks(
  axes: "Axes", names: Sequence[str], *, bold: Sequence[str] = (), longest: int = _LONGEST
) -> None:
  """Names at y = 0, 1, ... from the top down."""
  short = ["\n".join(words.shorten(line, longest) for line in n.split("\n")) for n in names]
  axes.set_yticks(range(len(names)), [plain(name) for name in short], fontsize=SMALL)
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.tick_params(axis="y", length=0)
  _embolden(axes.get_yticklabels(), names, bold)


def _embolden(labels, names: Sequence[str], bold: Sequence[str]) -> None:
  for text, name in zip(labels, names, strict=True):
    if name in bold:
      text.set_fontweight("bold")
