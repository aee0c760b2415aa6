"""What is drawn on axes: bars and lines with their seeds, points with intervals, levels, stages.

Numbers are those of the axes, estimates are fractions drawn in per cent; seeds and intervals look
the same in every figure. `key` and `bar_key` are the handles of a legend.
"""

from collections.abc import Iterable, Mapping, Sequence
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from subtune_jax.report import charts, estimate, style, words

if TYPE_CHECKING:
  from matplotlib.artist import Artist
  from matplotlib.axes import Axes

QUIET = "#BDBDBD"  # what is there to compare with
FOLD = "#8A8A8A"
THIN = {"linewidth": 0.7, "alpha": 0.4}  # of the line of one seed
POINT, LINE = 7.5, 1.5


def interval(
  axes: "Axes", at: float, ends: Sequence[float], color: str, *, flat: bool = False,
  line: float = LINE, zorder: float = 3,
) -> None:  # fmt: skip
  """A line from end to end, upright at x or flat at y = `at`; nothing where it is not known."""
  if len(ends) and not any(map(math.isnan, ends)):
    draw = axes.hlines if flat else axes.vlines
    draw(at, *ends, color=color, linewidth=line, zorder=zorder)


def _look(color: str, filled: bool, size: float) -> dict[str, Any]:
  face = color if filled else "white"
  return {"color": color, "markerfacecolor": face, "markeredgewidth": 1.5, "markersize": size}


def point(
  axes: "Axes", x: float, y: float, color: str, marker: style.Marker, *, filled: bool = True,
  size: float = POINT, zorder: float = 4,
) -> "Artist":  # fmt: skip
  """A mean: filled, or hollow."""
  look = _look(color, filled, size)
  return axes.plot([x], [y], marker=marker, linestyle="none", zorder=zorder, **look)[0]


def mean(
  axes: "Axes", at: float, value: estimate.Estimate, color: str, marker: style.Marker, *,
  filled: bool = True, size: float = POINT, flat: bool = False,
) -> None:  # fmt: skip
  """A `point` at a mean with its 95 % `interval`."""
  middle, low, high = 100 * value.mean, 100 * value.low, 100 * value.high
  interval(axes, at, (low, high), color, flat=flat)
  x, y = (middle, at) if flat else (at, middle)
  point(axes, x, y, color, marker, filled=filled, size=size)


def ring(axes: "Axes", x: float, y: float, color: str = style.INK) -> None:
  """A ring around a point: it was chosen."""
  axes.add_line(ring_key(color, 15)).set_data([x], [y])


def seed_dots(axes: "Axes", xs: Sequence[float], ys: Sequence[float], **look: Any) -> None:
  """Single seeds or folds as small dots; none where there is one alone."""
  if len(xs) > 1:
    axes.scatter(xs, ys, **{"s": 11, "zorder": 2, "linewidths": 0.6, **look})


def fold_dots(axes: "Axes", at: float, by_fold: np.ndarray) -> None:
  """The accuracy of each fold beside the point; NaN is left out."""
  xs = at + np.linspace(0.17, 0.4, len(by_fold))
  seed_dots(axes, xs, 100 * by_fold, color=FOLD, s=10, linewidths=0)


def lines(
  axes: "Axes", xs: Sequence[float], curves: np.ndarray, color: str, marker: style.Marker = "", *,
  dashes: Any = "-", filled: bool = True,
) -> None:  # fmt: skip
  """Curves [seeds, points]: each seed thin, their mean thick; NaN where a seed has no value."""
  line = {"color": color, "linestyle": dashes}
  if len(curves) > 1:
    dots = marker if len(xs) < 3 else ""  # else a line of one point would not be seen
    axes.plot(xs, curves.T, marker=dots, markersize=3, **line, **THIN)
  look = _look(color, filled, 6.0) | {"markeredgewidth": 1.0, "zorder": 3, "clip_on": False}
  axes.plot(xs, curves.mean(0), marker=marker, linewidth=2.0, **(line | look))


def bar(
  axes: "Axes", at: float, length: float, width: float, color: str, *, pale: bool = False,
  seeds: Sequence[float] = (), ends: Sequence[float] = (), text: str = "", flat: bool = False,
  **how: Any,
) -> None:  # fmt: skip
  """A bar from zero.

  Args:
    axes: to draw on.
    at: the middle of the bar across.
    length: of the bar.
    width: across.
    color: of the bar.
    pale: hatched on a light ground.
    seeds: numbers of single seeds, white dots across the bar.
    ends: of the 95 % interval, dark on a white halo.
    text: at the far end.
    flat: the bar lies; it stands otherwise.
    **how: of the text, as for `charts.note`.
  """
  (axes.barh if flat else axes.bar)(at, length, width, zorder=2, **_bar_look(color, pale))
  for ink, line in (("white", 3.4), (style.INK, LINE)):
    interval(axes, at, ends, ink, flat=flat, line=line, zorder=4)
  across = at + np.linspace(-0.22, 0.22, len(seeds)) * width
  xs, ys = (seeds, across) if flat else (across, seeds)
  seed_dots(axes, xs, ys, color="white", edgecolors=style.INK, zorder=5, clip_on=False)
  if text:
    far = max([length, *seeds, *ends])
    place = (far, at) if flat else (at, far)
    turn = {"va": "center"} if flat else {"ha": "center", "va": "bottom"}
    charts.note(axes, text, place, (6, 0) if flat else (0, 4), **turn, **how)


def _bar_look(color: str, pale: bool) -> dict[str, Any]:
  from matplotlib import colors

  if not pale:
    return {"color": color, "linewidth": 0}
  light = colors.to_hex(1 - 0.3 * (1 - np.array(colors.to_rgb(color))))
  return {"facecolor": light, "edgecolor": color, "linewidth": 0.8, "hatch": "////"}


def level(axes: "Axes", value: estimate.Estimate, color: str, dashes: Any) -> None:
  """A horizontal line at an accuracy, with its interval as a band."""
  if value.known:
    axes.axhspan(100 * value.low, 100 * value.high, color=color, alpha=0.09, linewidth=0, zorder=0)
  axes.axhline(100 * value.mean, color=color, linewidth=LINE, linestyle=dashes, zorder=1)


def stages(panels: "Sequence[Axes]", spans: Sequence[tuple[str, float, float]]) -> None:
  """Stages of a training, each (title, begin, end) on the x axis that the panels share.

  Names stand above the first panel, a dashed line in all where a further stage begins.
  """
  left, right = panels[0].get_xlim()
  for number, (title, begin, end) in enumerate(spans, 1):
    if number > 1:
      for axes in panels:
        axes.axvline(begin, color=style.MUTED, linewidth=0.9, linestyle=style.DASHED)
    room = int(38 * (end - begin) / (right - left))
    if len(spans) > 1:
      title = f"{number}: {title}" if room >= 8 else str(number)
    charts.note(
      panels[0], words.shorten(title, max(room, 2)), ((begin + end) / 2, 1.0), (0, 4), ha="center",
      xycoords=("data", "axes fraction"), size=charts.SMALL - 0.5, color=style.MUTED,
    )  # fmt: skip


def key(
  color: str, marker: style.Marker = "", *, filled: bool = True, size: float = POINT,
  dashes: Any = "none",
) -> "Artist":  # fmt: skip
  """Legend handle of a point, a line, or both."""
  from matplotlib import lines as drawn

  return drawn.Line2D(
    [], [], marker=marker, linestyle=dashes, linewidth=LINE, **_look(color, filled, size)
  )


def ring_key(color: str = style.MUTED, size: float = 11) -> "Artist":
  """Legend handle of `ring`."""
  made = key(color, "o", size=size)
  made.set(markerfacecolor="none", zorder=6)
  return made


def bar_key(color: str = style.MUTED, *, pale: bool = False) -> "Artist":
  """Legend handle of `bar`."""
  from matplotlib import patches

  return patches.Patch(**_bar_look(color, pale))


def keys(
  looks: Mapping[str, tuple[str, style.Marker]], titles: Mapping[str, str],
  names: Iterable[str] | None = None, *, dashes: Any = "none",
) -> list[charts.Entry]:  # fmt: skip
  """Legend entries of methods: colour, marker, title; of those named, or of all."""
  names = looks if names is None else names
  return [(key(*looks[name], dashes=dashes), titles[name]) for name in names]
