"""The figures of a robustness study that compare settings: accuracies, distortion, rates.

Those along a training or a line of weights are in `robustness_curves`.
"""

from collections.abc import Iterable, Sequence
import math
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import chart_elements, charts, style, words
from subtune_jax.studies import fields
from subtune_jax.studies.robustness import record as study_lib

if TYPE_CHECKING:
  from matplotlib.artist import Artist
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

DASHES = (0, (4, 2))
_WIDE_RANGE = 30.0  # largest over smallest positive value from which an axis is logarithmic
_FAINT = 0.38
_APART = 0.04  # decades between the methods at one learning rate, so that none hides another
MOVED = "features moved,\n% of their norm"


def method_entries(
  study: study_lib.Study, methods: Iterable[str], *, line: bool = False
) -> list[tuple["Artist", str]]:
  """Legend entries: colour and marker of each method."""
  from matplotlib import lines

  colors, markers = style.colors(study.methods), style.markers(study.methods)
  return [
    (
      lines.Line2D(
        [], [], color=colors[name], marker=markers[name], markersize=6,
        linestyle="-" if line else "none", linewidth=1.8,
      ),
      words.shorten(study.titles[name], 28),
    )
    for name in methods
  ]  # fmt: skip


def side_entries(study: study_lib.Study) -> list[tuple["Artist", str]]:
  """Legend entries of solid and dashed lines."""
  entries = [(chart_elements.level_entry(style.INK, "-"), study.title_of(study.id))]
  if study.ood:
    entries.append(
      (chart_elements.level_entry(style.INK, DASHES), study.title_of(study.ood_column))
    )
  return entries


def sides(study: study_lib.Study) -> dict[bool, str]:
  """Whether out of distribution -> title, of the sides that the study has."""
  found = {False: study.title_of(study.id)}
  return found | ({True: study.title_of(study.ood_column)} if study.ood else {})


def from_zero(axes: "Axes", values: Iterable[float], *, which: str = "y") -> None:
  """An axis from 0; logarithmic above the smallest value where they span decades."""
  from matplotlib import ticker

  known = [value for value in values if math.isfinite(value)]
  positive = [value for value in known if value > 0]
  axis = axes.yaxis if which == "y" else axes.xaxis
  top = max(positive, default=1.0)
  if positive and top / min(positive) > _WIDE_RANGE:
    least = 10.0 ** math.floor(math.log10(min(positive)))
    scale = axes.set_yscale if which == "y" else axes.set_xscale
    scale("symlog", linthresh=least, linscale=0.4)
    first, last = round(math.log10(least)), math.ceil(math.log10(top))
    step = max(1, math.ceil((last - first) / 6))
    axis.set_major_locator(
      ticker.FixedLocator([0, *(10.0**k for k in range(first, last + 1, step))])
    )
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    top = top * 1.6
  else:
    top *= 1.12
  (axes.set_ylim if which == "y" else axes.set_xlim)(0, top)


def ring(axes: "Axes", x: float, y: float, color: str) -> None:
  """A ring around a point: it was chosen."""
  axes.plot(
    [x], [y], marker="o", markersize=14, markerfacecolor="none", markeredgecolor=color,
    markeredgewidth=1.5, linestyle="none", zorder=6,
  )  # fmt: skip


def ring_entry() -> "Artist":
  """Legend handle of `ring`."""
  from matplotlib import lines

  return lines.Line2D(
    [], [], marker="o", markersize=11, markerfacecolor="none", markeredgecolor=style.MUTED,
    markeredgewidth=1.5, linestyle="none",
  )  # fmt: skip


def integer_epochs(axes: "Axes") -> None:
  """Ticks at whole epochs, one at least."""
  from matplotlib import ticker

  axes.xaxis.set_major_locator(ticker.MaxNLocator(7, integer=True, min_n_ticks=1))


def id_against_ood(study: study_lib.Study) -> "Figure | None":
  """Accuracy in and out of distribution: every training faint, the chosen settings large."""
  if not study.ood:
    return None
  chosen = {m: _chosen_point(study, m) for m in study.methods}
  faint = {
    m: np.array([[100 * study.accuracy(t["epochs"][-1], ood=ood) for ood in (False, True)]
                 for t in study.trainings(m)]).reshape(-1, 2)
    for m in study.methods
  }  # fmt: skip
  ends = np.array([[[e.low, e.mean, e.high] for e in point] for point in chosen.values()]) * 100
  low, high = np.nanmin(ends, axis=(0, 2)), np.nanmax(ends, axis=(0, 2))
  every = np.concatenate([*faint.values()])
  closer = bool(np.any(np.ptp(every, axis=0) > 1.5 * (high - low)))
  figure = charts.new_figure(11.0 if closer else 8.5, 5.2)
  panels = figure.subplots(1, 2 if closer else 1, squeeze=False)[0]
  for axes in panels:
    _draw_points(study, axes, faint, chosen)
    axes.set_xlabel(f"accuracy on {study.title_of(study.id)}, %", fontsize=charts.SIZE)
    charts.clean(axes, grid="both")
  panels[0].set_ylabel(f"accuracy on {study.title_of(study.ood_column)}, %", fontsize=charts.SIZE)
  room = np.maximum(0.08 * (high - low), 0.5)
  (left, bottom), (right, top) = low - room, high + room
  if closer:
    _frame(panels[0], left, bottom, right, top)
    panels[0].set_title("all trainings", fontsize=charts.SIZE, loc="left")
    panels[1].set_title("the chosen settings, closer", fontsize=charts.SIZE, loc="left")
    panels[1].set(xlim=(left, right), ylim=(bottom, top))
  note = [(chart_elements.point_entry(style.MUTED, "o", filled=True, size=4), "one training")]
  chart_elements.legend(figure, [*method_entries(study, study.methods), *note])
  return figure


def _chosen_point(study: study_lib.Study, method: str):
  score = study.selection(study.rule, method)["accuracy"]
  return [study_lib.estimate(score[column]) for column in (study.id, study.ood_column)]


def _draw_points(study: study_lib.Study, axes, faint, chosen) -> None:
  colors, markers = style.colors(study.methods), style.markers(study.methods)
  for name, points in faint.items():
    axes.scatter(points[:, 0], points[:, 1], s=20, color=colors[name], marker=markers[name],
                 alpha=_FAINT, linewidths=0, zorder=2)  # fmt: skip
  for name, (inside, outside) in chosen.items():
    x, y = 100 * inside.mean, 100 * outside.mean
    chart_elements.interval(axes, x, outside, colors[name], line=1.3, cap=0.0)
    chart_elements.interval(axes, y, inside, colors[name], line=1.3, cap=0.0, horizontal=True)
    axes.plot([x], [y], marker=markers[name], markersize=11, color=colors[name],
              markeredgecolor="white", markeredgewidth=1.0, linestyle="none", zorder=5)  # fmt: skip


def _frame(axes, left: float, bottom: float, right: float, top: float) -> None:
  """Shows on one panel what the other one enlarges."""
  from matplotlib import patches

  axes.add_patch(
    patches.Rectangle(
      (left, bottom),
      right - left,
      top - bottom,
      fill=False,
      linewidth=0.9,
      edgecolor=style.MUTED,
      linestyle=(0, (3, 3)),
      zorder=1,
    )
  )


def distortion_bars(study: study_lib.Study) -> "Figure | None":
  """Relative distortion of the last block's features at the chosen setting, ID beside OOD."""
  if not study.tuned:
    return None
  found = sides(study)
  methods, height = study.methods, 0.8 / len(found)
  figure = charts.new_figure(9.5, 1.2 + 0.36 * len(methods) * len(found) + 0.12 * len(methods))
  axes, colors = figure.add_subplot(), style.colors(study.methods)
  values = {
    (name, ood): 100 * np.array([
      study.distortion(epoch["distortion"], "relative", ood=ood)
      for epoch in study.picked_epochs(study.rule, name)
    ])
    for name in methods for ood in found
  }  # fmt: skip
  from_zero(axes, np.concatenate([*values.values()]), which="x")
  for place, name in enumerate(methods):
    for index, ood in enumerate(found):
      y = place + (index - (len(found) - 1) / 2) * height
      _draw_bar(axes, y, 0.9 * height, values[name, ood], colors[name], ood)
  chart_elements.row_ticks(axes, [study.titles[name] for name in methods])
  axes.set_ylim(len(methods) - 0.5, -0.5)
  axes.set_xlabel(MOVED.replace("\n", " "), fontsize=charts.SIZE)
  charts.clean(axes, grid="x")
  axes.tick_params(axis="y", length=0)
  chart_elements.legend(figure, _bar_entries(found))
  return figure


def _draw_bar(axes, y: float, height: float, seeds: np.ndarray, color: str, ood: bool) -> None:
  """One bar: the mean, [seeds] as dots, the number; out of distribution paler and hatched."""
  mean = float(seeds.mean())
  axes.barh(y, mean, height, zorder=2, **_bar_look(color, ood))
  if len(seeds) > 1:
    offsets = np.linspace(-0.2, 0.2, len(seeds)) * height
    axes.scatter(seeds, y + offsets, s=12, color="white", edgecolors=style.INK, linewidths=0.6,
                 zorder=5, clip_on=False)  # fmt: skip
  axes.annotate(
    short_percent(mean), (max(mean, *seeds), y), (7, 0), textcoords="offset points",
    va="center", fontsize=charts.SMALL, color=style.INK, annotation_clip=False,
  )  # fmt: skip


def short_percent(value: float) -> str:
  """A percentage over decades in two digits, without its sign: 0.013, 1.3, 130."""
  if value == 0 or not math.isfinite(value):
    return "0" if value == 0 else "n/a"
  digits = max(0, 1 - math.floor(math.log10(abs(value))))
  return f"{value:.{digits}f}"


def _bar_look(color: str, ood: bool) -> dict[str, object]:
  from matplotlib import colors

  if not ood:
    return {"facecolor": color, "edgecolor": color, "linewidth": 0.8}
  pale = colors.to_hex(1 - 0.35 * (1 - np.array(colors.to_rgb(color))))
  return {"facecolor": pale, "edgecolor": color, "linewidth": 0.8, "hatch": "////"}


def _bar_entries(found: dict[bool, str]):
  from matplotlib import patches

  return [(patches.Patch(**_bar_look(style.MUTED, ood)), title) for ood, title in found.items()]


def distortion_by_block(study: study_lib.Study) -> "Figure | None":
  """Relative distortion of every block's features, input to head, a panel for ID and OOD."""
  if not study.tuned:
    return None
  units, found = study.entry["units"], sides(study)
  width = chart_elements.page_width(len(units), 0.54)
  figure = charts.new_figure(width, 0.8 + chart_elements.label_room(units) + 2.6 * len(found))
  panels = figure.subplots(len(found), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
  colors, markers = style.colors(study.methods), style.markers(study.methods)
  shown = []
  for axes, (ood, title) in zip(panels, found.items(), strict=True):
    for name in study.methods:
      values = 100 * study.block_distortion(name, "relative", ood=ood)
      shown.append(values.ravel())
      if len(values) > 1:
        axes.plot(values.T, color=colors[name], linewidth=0.7, alpha=_FAINT)
      axes.plot(values.mean(axis=0), color=colors[name], marker=markers[name], markersize=5,
                linewidth=1.8, clip_on=False, zorder=3)  # fmt: skip
    axes.set_title(title, fontsize=charts.SIZE, loc="left", pad=4)
    axes.set_ylabel(MOVED, fontsize=charts.SIZE)
    charts.clean(axes)
  from_zero(panels[0], np.concatenate(shown))
  chart_elements.unit_ticks(panels[-1], units, width - 1.2)
  panels[-1].set_xlim(-0.4, len(units) - 0.6)
  chart_elements.legend(figure, method_entries(study, study.methods, line=True))
  return figure


def learning_rates(study: study_lib.Study) -> "Figure | None":
  """Learning rate against the distance that the weights moved, and against accuracy."""
  methods = [m for m in study.methods if len(_rates(study, m)) > 1]
  if not methods:
    return None
  found = {None: "weights moved, %"} | {
    ood: f"accuracy on\n{t}, %" for ood, t in sides(study).items()
  }
  figure = charts.new_figure(max(4.1 * len(found), 8.0), 4.5)
  panels = figure.subplots(1, len(found), squeeze=False)[0]
  for axes, (side, label) in zip(panels, found.items(), strict=True):
    shown = []
    for place, name in enumerate(methods):
      apart = 10 ** (_APART * (place - (len(methods) - 1) / 2))
      shown += _draw_rates(study, axes, name, side, apart)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xlabel("learning rate", fontsize=charts.SIZE)
    axes.set_ylabel(label, fontsize=charts.SIZE)
    charts.clean(axes)
    if side is None:
      from_zero(axes, shown)
    elif study_lib.PROBE in study.methods:
      probe = study.trainings(study_lib.PROBE)[-1]["epochs"][-1]
      look = {"color": style.colors(study.methods)[study_lib.PROBE], "linewidth": 1.3}
      axes.axhline(100 * study.accuracy(probe, ood=side), linestyle=(0, (2, 2)), zorder=1, **look)
  chart_elements.legend(figure, [*method_entries(study, methods, line=True), *_rate_entries(study)])
  return figure


def _rates(study: study_lib.Study, method: str) -> list[float]:
  return sorted({row["learning_rate"] for row in study.trainings(method)} - {0.0})


def _draw_rates(
  study: study_lib.Study, axes, method: str, side: bool | None, apart: float
) -> Sequence[float]:
  """One method of `learning_rates`; side None is the distance. Returns the values in per cent."""
  color = style.colors(study.methods)[method]
  marker = style.markers(study.methods)[method]
  chosen = study.selection(study.rule, method)["learning_rate"]
  means, shown = {}, []
  for rate in _rates(study, method):
    rows = [row for row in study.trainings(method) if row["learning_rate"] == rate]
    values = [
      100 * (fields.number(row["moved"]) if side is None
             else study.accuracy(row["epochs"][-1], ood=side))
      for row in rows
    ]  # fmt: skip
    means[rate] = float(np.mean(values))
    shown += values
    if len(values) > 1:
      axes.scatter(
        [rate * apart] * len(values), values, s=11, color=color, alpha=0.55, linewidths=0
      )
  xs, ys = [rate * apart for rate in means], list(means.values())
  axes.plot(xs, ys, color=color, marker=marker, markersize=5.5, linewidth=1.7, zorder=3)
  ring(axes, chosen * apart, means[chosen], color)
  return shown


def _rate_entries(study: study_lib.Study):
  entries = [(ring_entry(), "rate chosen")]
  if study_lib.PROBE in study.methods:
    color = style.colors(study.methods)[study_lib.PROBE]
    title = words.shorten(study.titles[study_lib.PROBE], 28)
    entries.append((chart_elements.level_entry(color, (0, (2, 2))), f"{title} (no rate)"))
  return entries
