"""The figures of a study of corruptions, drawn from its record."""

import math
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import charts, heat_map, marks, style, words
from subtune_jax.studies import fields
from subtune_jax.studies.corruption import record as corruption_record
from subtune_jax.studies.search import figures as search_figures
from subtune_jax.studies.search import record as search_record

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Row = search_record.Row
MOST_PANELS = 16
_ALL = "all units"
_LOOK = (search_figures.COLOR, search_figures.MARKER)


def gain_map(record: Row) -> "Figure | None":
  """Heat map of the gain of each unit over the head alone, a row per corruption."""
  values, near = corruption_record.gains(record)
  if not np.isfinite(values).any():
    return None
  units = [*search_record.unit_names(record), " ", _ALL]
  if not np.isfinite(values[:, -1]).any():
    values, near, units = values[:, :-2], near[:, :-2], units[:-2]
  rows, ranked = corruption_record.labels(record), len(record["units"])
  return heat_map.gains(units, rows, values, near, row_height=0.4, ranked=ranked)


def greedy_order(record: Row) -> "Figure | None":
  """The units in the order in which the greedy search took them, a row per corruption."""
  rows = corruption_record.titled(record, "order")
  if not rows:
    return None
  names = search_record.unit_names(record)
  width = charts.page_width(len(names), 0.54)
  figure, (axes,) = charts.panels(1, width, 0.7 + charts.label_room(names) + 0.34 * len(rows))
  for number, (_, row) in enumerate(rows):
    for place, step in enumerate(row["order"], start=1):
      _draw_step(axes, number, names.index(step["unit"]), place, step["taken"])
  heat_map.gaps(axes, len(rows), len(names), style.GRID, 0.7)
  charts.unit_ticks(axes, names, width - 2.0)
  charts.row_ticks(axes, [title for title, _ in rows])
  entries = [(marks.key(search_figures.COLOR, "s", size=10), "taken, by step")]
  if not all(step["taken"] for _, row in rows for step in row["order"]):
    entries.append((marks.key(marks.FOLD, "s", filled=False, size=10), "tried, not taken"))
  charts.legend(figure, entries)
  return figure


def _draw_step(axes, row: int, column: int, place: int, taken: bool) -> None:
  """A cell with the number of the step: filled if taken, the earlier the darker."""
  from matplotlib import colors, patches

  base = np.array(colors.to_rgb(search_figures.COLOR))
  face = colors.to_hex(1 - (1 - base) * max(1 - 0.22 * (place - 1), 0.34)) if taken else "#FFFFFF"
  box = patches.Rectangle((column - 0.44, row - 0.42), 0.88, 0.84, facecolor=face, linewidth=1.1)
  if not taken:
    box.set(edgecolor=marks.FOLD, linestyle=style.DASHED)
  axes.add_patch(box)
  ink, weight = (style.text_color(face), "bold") if taken else (style.MUTED, "normal")
  look = {"ha": "center", "va": "center", "color": ink, "fontweight": weight}
  axes.text(column, row, str(place), fontsize=charts.SIZE - 0.5, **look)


def profiles(record: Row) -> "Figure | None":
  """The finetuning profile of each corruption, small, all on one scale; None if there are many."""
  rows, names = corruption_record.titled(record, "profile"), search_record.unit_names(record)
  if not rows or len(rows) > MOST_PANELS:
    return None
  columns = min(len(rows), 3 if len(names) > 12 else 4)
  width, room = 12.0 if columns > 2 else 9.5, 0.5 + charts.label_room(names)
  figure, panels = charts.panels(len(rows), width, 1.95, per_row=columns, around=room, sharey=True)
  values, references = [], {}
  for index, (axes, (title, row)) in enumerate(zip(panels, rows, strict=True)):
    values += _draw_profile(axes, names, row, references)
    charts.label(axes, words.shorten(title, 34))
    axes.set_xlim(-0.6, len(names) - 0.4)
    if index + columns < len(rows):
      axes.set_xticks(range(len(names)), [])
      continue
    charts.unit_ticks(axes, names, (width - 1.0) / columns)
    for text in axes.get_xticklabels():  # above an empty place: no room needs to be made
      text.set_in_layout(index // columns == (len(rows) - 1) // columns)
  label = charts.accuracy_axis(panels[0], values, "held-out\naccuracy, %")
  for axes in panels[::columns]:
    axes.set_ylabel(label, fontsize=charts.SIZE)
  points = [(marks.key(*_LOOK, filled=on), text)
            for on, text in ((True, "unit of the chosen set"), (False, "other unit"))]  # fmt: skip
  charts.legend(figure, [*((handle, title) for title, handle in references.items()), *points])
  return figure


def _draw_profile(axes, names, row: Row, references: dict) -> list[float]:
  """One small profile, its lines added to the legend; returns the accuracies shown."""
  levels = [fields.estimate(row[key]) if row[key] else None for key in ("head", "all")]
  references |= {title: handle for handle, title in search_figures.references(axes, *levels)}
  shown = [value for value in levels if value is not None]
  for point in row["profile"]:
    value, chosen = fields.estimate(point), point["unit"] in row["chosen"]
    marks.mean(axes, names.index(point["unit"]), value, *_LOOK, filled=chosen, size=5.5)
    shown.append(value)
  axes.tick_params(axis="x", length=0)
  return charts.ends(shown)


def test_accuracy(record: Row) -> "Figure | None":
  """Test accuracy of every method under every corruption, with intervals."""
  titles = corruption_record.method_titles(record)
  if not titles:
    return None
  rows, looks, values = corruption_record.titled(record, "test"), style.looks(list(titles)), []
  figure, (axes,) = charts.panels(1, 9.5, 1.3 + 0.5 * len(rows))
  for place, (_, row) in enumerate(rows):
    if place % 2:
      axes.axhspan(place - 0.5, place + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
    for index, name in enumerate(titles):
      if name in row["test"]:
        at = place + 0.72 * ((index + 0.5) / len(titles) - 0.5)
        value = fields.estimate(row["test"][name], "accuracy")
        marks.mean(axes, at, value, *looks[name], size=5.5, flat=True)
        values += charts.ends([value])
  charts.row_ticks(axes, [title for title, _ in rows])
  low = min(value for value in values if not math.isnan(value))
  note = "\n(axis does not start at 0)" if low > 0.05 else ""
  charts.label(axes, x=f"test accuracy, %{note}", grid="x")
  charts.legend(figure, marks.keys(looks, titles))
  return figure
