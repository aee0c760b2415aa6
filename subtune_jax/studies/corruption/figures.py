"""The figures of a study of corruptions, drawn from its record."""

import math
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import chart_elements, charts, style, words
from subtune_jax.studies.corruption import record as corruption_record
from subtune_jax.studies.search import figures as search_figures
from subtune_jax.studies.search import record as search_record

if TYPE_CHECKING:
  from matplotlib.artist import Artist
  from matplotlib.figure import Figure

Row = search_record.Row
MOST_PANELS = 16
_ALL = "all units"


def gain_map(record: Row) -> "Figure | None":
  """Heat map of the gain of each unit over the head alone, a row per corruption."""
  values, near = corruption_record.gains(record)
  if not np.isfinite(values).any():
    return None
  names = [*search_record.unit_names(record), " ", _ALL]
  if not np.isfinite(values[:, -1]).any():
    values, near, names = values[:, :-2], near[:, :-2], names[:-2]
  width = chart_elements.page_width(len(names), 0.54)
  figure = charts.new_figure(width, 0.7 + chart_elements.label_room(names) + 0.4 * len(values))
  axes = figure.add_subplot()
  chart_elements.gain_map(figure, axes, values, near, width - 2.6, ranked=len(record["units"]))
  chart_elements.unit_ticks(axes, names, width - 2.6)
  chart_elements.row_ticks(axes, corruption_record.labels(record))
  chart_elements.legend(figure, chart_elements.gain_map_entries(near))
  return figure


def greedy_order(record: Row) -> "Figure | None":
  """The units in the order in which the greedy search took them, a row per corruption."""
  rows = corruption_record.titled(record, "order")
  if not rows:
    return None
  names = search_record.unit_names(record)
  width = chart_elements.page_width(len(names), 0.54)
  figure = charts.new_figure(width, 0.7 + chart_elements.label_room(names) + 0.34 * len(rows))
  axes = figure.add_subplot()
  refused = False
  for number, (_, row) in enumerate(rows):
    for place, step in enumerate(row["order"], start=1):
      refused |= not step["taken"]
      _draw_step(axes, number, names.index(step["unit"]), place, step["taken"])
  axes.set_xlim(-0.5, len(names) - 0.5)
  axes.set_ylim(len(rows) - 0.5, -0.5)
  axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
  axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
  axes.grid(True, which="minor", color=style.GRID, linewidth=0.7)
  chart_elements.unit_ticks(axes, names, width - 2.0)
  chart_elements.row_ticks(axes, [title for title, _ in rows])
  axes.tick_params(which="both", length=0, colors=style.INK)
  axes.spines[:].set_visible(False)
  entries = [
    (chart_elements.point_entry(search_figures.COLOR, "s", filled=True, size=10), "taken, by step")
  ]
  if refused:
    entries.append(
      (
        chart_elements.point_entry(chart_elements.FOLD, "s", filled=False, size=10),
        "tried, not taken",
      )
    )
  chart_elements.legend(figure, entries)
  return figure


def _draw_step(axes, row: int, column: int, place: int, taken: bool) -> None:
  """A cell with the number of the step: filled if taken, the earlier the darker."""
  from matplotlib import colors, patches

  base = np.array(colors.to_rgb(search_figures.COLOR))
  face = colors.to_hex(1 - (1 - base) * max(1 - 0.22 * (place - 1), 0.34)) if taken else "#FFFFFF"
  axes.add_patch(
    patches.Rectangle(
      (column - 0.44, row - 0.42),
      0.88,
      0.84,
      facecolor=face,
      edgecolor=face if taken else chart_elements.FOLD,
      linestyle="-" if taken else (0, (3, 2)),
      linewidth=1.1,
    )
  )
  axes.text(
    column,
    row,
    str(place),
    ha="center",
    va="center",
    fontsize=charts.SIZE - 0.5,
    fontweight="bold" if taken else "normal",
    color=style.text_color(face) if taken else style.MUTED,
  )


def profiles(record: Row) -> "Figure | None":
  """The finetuning profile of each corruption, small, all on one scale; None if there are many."""
  rows = corruption_record.titled(record, "profile")
  if not rows or len(rows) > MOST_PANELS:
    return None
  names = search_record.unit_names(record)
  columns = min(len(rows), 3 if len(names) > 12 else 4)
  bands = math.ceil(len(rows) / columns)
  width = max(12.0 if columns > 2 else 9.5, 6.0)
  figure = charts.new_figure(width, 0.5 + chart_elements.label_room(names) + 1.95 * bands)
  panels = figure.subplots(bands, columns, squeeze=False, sharey=True)
  values, entries = [], {}
  for index in range(bands * columns):
    axes = panels[index // columns, index % columns]
    if index >= len(rows):
      axes.remove()
      continue
    title, row = rows[index]
    values += _draw_profile(axes, names, row, entries)
    axes.set_title(charts.plain(words.shorten(title, 34)), fontsize=charts.SIZE, loc="left", pad=4)
    axes.set_xlim(-0.6, len(names) - 0.4)
    if index + columns >= len(rows):
      chart_elements.unit_ticks(axes, names, (width - 1.0) / columns)
      for text in axes.get_xticklabels():  # above an empty place: no room needs to be made
        text.set_in_layout(index // columns == bands - 1)
    else:
      axes.set_xticks(range(len(names)), [])
  chart_elements.accuracy_axis(panels[0, 0], values, "held-out\naccuracy, %")
  low = panels[0, 0].get_ylim()[0]
  label = "held-out\naccuracy, %" + (f"\n(from {low:.0f} %)" if low > 0 else "")
  for axes in panels[:, 0]:
    axes.set_ylabel(label, fontsize=charts.SIZE - 0.5)
  color, marker = search_figures.COLOR, search_figures.MARKER
  filled = {"unit of the chosen set": True, "other unit": False}
  entries |= {t: chart_elements.point_entry(color, marker, filled=on) for t, on in filled.items()}
  chart_elements.legend(figure, [(handle, title) for title, handle in entries.items()])
  return figure


def _draw_profile(axes, names, row: Row, entries: dict[str, "Artist"]) -> list[float]:
  """One small profile, its lines added to the legend; returns the accuracies shown."""
  levels = [search_record.estimate(row[key]) if row[key] else None for key in ("head", "all")]
  lines = search_figures.references(axes, *levels)
  entries |= {title: handle for handle, title in lines}
  shown = [value for value in levels if value is not None]
  for point in row["profile"]:
    value = search_record.estimate(point)
    chart_elements.mean(
      axes, names.index(point["unit"]), value, color=search_figures.COLOR,
      marker=search_figures.MARKER, filled=point["unit"] in row["chosen"], size=5.5, line=1.2,
      cap=0,
    )  # fmt: skip
    shown.append(value)
  charts.clean(axes)
  axes.tick_params(axis="x", length=0)
  return chart_elements.ends(shown)


def test_accuracy(record: Row) -> "Figure | None":
  """Test accuracy of every method under every corruption, with intervals."""
  titles = corruption_record.method_titles(record)
  methods = list(titles)
  if not methods:
    return None
  rows = corruption_record.titled(record, "test")
  figure = charts.new_figure(9.5, 1.3 + 0.5 * len(rows))
  axes = figure.add_subplot()
  colors, markers, values = style.colors(methods), style.markers(methods), []
  for place, (_, row) in enumerate(rows):
    if place % 2:
      axes.axhspan(place - 0.5, place + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
    for index, name in enumerate(methods):
      if name in row["test"]:
        y = place + 0.72 * ((index + 0.5) / len(methods) - 0.5)
        value = search_record.estimate(row["test"][name], "accuracy")
        chart_elements.interval(axes, y, value, colors[name], horizontal=True, cap=0.0)
        axes.plot([100 * value.mean], [y], marker=markers[name], markersize=5.5,
                  color=colors[name], linestyle="none", zorder=4)  # fmt: skip
        values += chart_elements.ends([value])
  chart_elements.row_ticks(axes, [title for title, _ in rows])
  axes.set_ylim(len(rows) - 0.5, -0.5)
  charts.clean(axes, grid="x")
  axes.tick_params(axis="y", length=0)
  low = min(value for value in values if not math.isnan(value))
  note = "\n(axis does not start at 0)" if low > 0.05 else ""
  axes.set_xlabel(f"test accuracy, %{note}", fontsize=charts.SIZE)
  chart_elements.legend(
    figure,
    [(chart_elements.point_entry(colors[m], markers[m], filled=True), titles[m]) for m in methods],
  )
  return figure
