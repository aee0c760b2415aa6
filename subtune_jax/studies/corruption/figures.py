"""The figures of a study of corruptions, drawn from its record."""

import math
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import chart_elements, charts, estimate, style, words
from subtune_jax.studies.search import figures as search_plots
from subtune_jax.studies.search import record as search_lib

if TYPE_CHECKING:
  from matplotlib.artist import Artist
  from matplotlib.figure import Figure

Row = search_lib.Row
MOST_PANELS = 16
_ALL = "all units"


def labels(record: Row) -> list[str]:
  """Titles of the corruptions; with their severity where there are several, 0 being none."""
  severities = {row["severity"] for row in record["rows"]} - {0}
  several = len(severities) > 1
  return [
    f"{row['title']}, {row['severity']}" if several and row["severity"] else row["title"]
    for row in record["rows"]
  ]


def gains(record: Row) -> tuple[np.ndarray, np.ndarray]:
  """The profiles of the record as arrays.

  Returns:
    [corruptions, units + 2] gain over the head alone in points: a column per unit, an empty one,
    and that of all units; NaN where there is none. [corruptions, units + 2] whether a unit is not
    told apart from the best one of its row.
  """
  names = search_lib.unit_names(record)
  values = np.full((len(record["rows"]), len(names) + 2), np.nan)
  near = np.zeros(values.shape, bool)
  for number, row in enumerate(record["rows"]):
    if row["head"] is None:
      continue
    found = {point["unit"]: point for point in row["profile"]}
    best = max(found.values(), key=lambda point: point["mean"], default=None)
    for column, unit in enumerate(names):
      if unit in found:
        point = found[unit]
        values[number, column] = 100 * (point["mean"] - row["head"]["mean"])
        near[number, column] = point is not best and search_lib.undecided(point, best)
    if row["all"] is not None:
      values[number, -1] = 100 * (row["all"]["mean"] - row["head"]["mean"])
  return values, near


def gain_map(record: Row) -> "Figure | None":
  """Heat map of the gain of each unit over the head alone, a row per corruption."""
  values, near = gains(record)
  if not np.isfinite(values).any():
    return None
  names = [*search_lib.unit_names(record), " ", _ALL]
  if not np.isfinite(values[:, -1]).any():
    values, near, names = values[:, :-2], near[:, :-2], names[:-2]
  width = chart_elements.page_width(len(names), 0.54)
  figure = charts.new_figure(width, 0.7 + chart_elements.label_room(names) + 0.4 * len(values))
  axes = figure.add_subplot()
  chart_elements.gain_map(figure, axes, values, near, width - 2.6, ranked=len(record["units"]))
  chart_elements.unit_ticks(axes, names, width - 2.6)
  chart_elements.row_ticks(axes, labels(record))
  chart_elements.legend(figure, chart_elements.gain_map_entries(near))
  return figure


def greedy_order(record: Row) -> "Figure | None":
  """The units in the order in which the greedy search took them, a row per corruption."""
  rows = [row for row in record["rows"] if row["order"]]
  if not rows:
    return None
  names = search_lib.unit_names(record)
  width = chart_elements.page_width(len(names), 0.54)
  figure = charts.new_figure(width, 0.7 + chart_elements.label_room(names) + 0.34 * len(rows))
  axes = figure.add_subplot()
  refused = False
  for number, row in enumerate(rows):
    for place, step in enumerate(row["order"], start=1):
      refused |= not step["taken"]
      _draw_step(axes, number, names.index(step["unit"]), place, step["taken"])
  axes.set_xlim(-0.5, len(names) - 0.5)
  axes.set_ylim(len(rows) - 0.5, -0.5)
  axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
  axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
  axes.grid(True, which="minor", color=style.GRID, linewidth=0.7)
  chart_elements.unit_ticks(axes, names, width - 2.0)
  titles = dict(zip((id(row) for row in record["rows"]), labels(record), strict=True))
  chart_elements.row_ticks(axes, [titles[id(row)] for row in rows])
  axes.tick_params(which="both", length=0, colors=style.INK)
  axes.spines[:].set_visible(False)
  entries = [
    (chart_elements.point_entry(search_plots.COLOR, "s", filled=True, size=10), "taken, by step")
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

  base = np.array(colors.to_rgb(search_plots.COLOR))
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
  rows = [(title, row) for title, row in zip(labels(record), record["rows"], strict=True)
          if row["profile"]]  # fmt: skip
  if not rows or len(rows) > MOST_PANELS:
    return None
  names = search_lib.unit_names(record)
  columns = min(len(rows), 3 if len(names) > 12 else 4)
  bands = math.ceil(len(rows) / columns)
  width = max(12.0 if columns > 2 else 9.5, 6.0)
  figure = charts.new_figure(width, 0.5 + chart_elements.label_room(names) + 1.95 * bands)
  panels = figure.subplots(bands, columns, squeeze=False, sharey=True)
  values = []
  for index in range(bands * columns):
    axes = panels[index // columns, index % columns]
    if index >= len(rows):
      axes.remove()
      continue
    title, row = rows[index]
    values += _draw_profile(axes, names, row)
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
  chart_elements.legend(figure, _profile_entries([row for _, row in rows]))
  return figure


def _draw_profile(axes, names, row: Row) -> list[float]:
  """One small profile; returns the accuracies shown."""
  shown = []
  for key, color, dashes in (
    ("head", search_plots.HEAD_COLOR, search_plots.HEAD_DASHES),
    ("all", search_plots.ALL_COLOR, search_plots.ALL_DASHES),
  ):
    if row[key] is not None:
      value = search_lib.estimate(row[key])
      chart_elements.level_line(axes, value, color, dashes)
      shown += [value.mean, value.low, value.high]
  for point in row["profile"]:
    x, value = names.index(point["unit"]), search_lib.estimate(point)
    filled = point["unit"] in row["chosen"]
    chart_elements.interval(axes, x, value, search_plots.COLOR, line=1.2, cap=0.0)
    chart_elements.point(
      axes, x, 100 * value.mean, color=search_plots.COLOR, marker=search_plots.MARKER,
      filled=filled, size=5.5,
    )  # fmt: skip
    shown += [value.mean, value.low, value.high]
  charts.clean(axes)
  axes.tick_params(axis="x", length=0)
  return shown


def _profile_entries(rows) -> list[tuple["Artist", str]]:
  color, marker = search_plots.COLOR, search_plots.MARKER
  entries = []
  if any(row["head"] is not None for row in rows):
    line = chart_elements.level_entry(search_plots.HEAD_COLOR, search_plots.HEAD_DASHES)
    entries.append((line, "head alone"))
  if any(row["all"] is not None for row in rows):
    line = chart_elements.level_entry(search_plots.ALL_COLOR, search_plots.ALL_DASHES)
    entries.append((line, "all units (full fine-tuning)"))
  entries.append((chart_elements.point_entry(color, marker, filled=True), "unit of the chosen set"))
  return [*entries, (chart_elements.point_entry(color, marker, filled=False), "other unit")]


def method_titles(record: Row) -> dict[str, str]:
  """Titles of the methods that were tested, the usual ones first."""
  found = {}
  for row in record["rows"]:
    for name, entry in (row["test"] or {}).items():
      found[name] = entry.get("title") or search_lib.METHODS.get(name, name)
  usual = [name for name in search_lib.METHODS if name in found]
  return {name: found[name] for name in [*usual, *sorted(set(found) - set(usual))]}


def test_accuracy(record: Row) -> "Figure | None":
  """Test accuracy of every method under every corruption, with intervals."""
  titles = method_titles(record)
  methods = list(titles)
  if not methods:
    return None
  rows = [(title, row) for title, row in zip(labels(record), record["rows"], strict=True)
          if row["test"]]  # fmt: skip
  figure = charts.new_figure(9.5, 1.3 + 0.5 * len(rows))
  axes = figure.add_subplot()
  colors, markers, values = style.colors(methods), style.markers(methods), []
  for place, (_, row) in enumerate(rows):
    if place % 2:
      axes.axhspan(place - 0.5, place + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
    for index, name in enumerate(methods):
      if name in row["test"]:
        y = place + 0.72 * ((index + 0.5) / len(methods) - 0.5)
        value = search_lib.estimate(row["test"][name], "accuracy")
        chart_elements.interval(axes, y, value, colors[name], horizontal=True, cap=0.0)
        axes.plot([100 * value.mean], [y], marker=markers[name], markersize=5.5,
                  color=colors[name], linestyle="none", zorder=4)  # fmt: skip
        values += [value.mean, value.low, value.high]
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


def mean_test(record: Row) -> dict[str, estimate.Estimate]:
  """Mean test accuracy over the corruptions; methods that were not tested under all are absent.

  There is no interval: corruptions of one set of images err together.
  """
  rows = [row["test"] for row in record["rows"] if row["test"]]
  found = {}
  for name in method_titles(record):
    if all(name in test for test in rows):
      mean = float(np.mean([test[name]["accuracy"] for test in rows]))
      found[name] = estimate.Estimate(mean, math.nan, math.nan)
  return found
