"""The figures of a study of the number of training images, drawn from its record."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import chart_elements, charts, estimate, style, words
from subtune_jax.studies.dataset_size import record as size_record
from subtune_jax.studies.search import record as search_record

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Row = search_record.Row
REFERENCE = "ft"


def _size_axis(axes, record: Row) -> None:
  """A logarithmic axis with a tick at every size."""
  from matplotlib import ticker

  sizes = [size["size"] for size in record["sizes"]]
  room = (sizes[-1] / sizes[0]) ** 0.05 if len(sizes) > 1 else 1.5
  axes.set_xscale("log")
  axes.xaxis.set_minor_locator(ticker.NullLocator())
  axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
  axes.set_xlim(sizes[0] / room, sizes[-1] * room)
  axes.set_xlabel("training images (logarithmic)", fontsize=charts.SIZE)


def _dodge(record: Row, index: int, count: int) -> float:
  """Factor that sets the points of a method beside those of the others."""
  sizes = [size["size"] for size in record["sizes"]]
  whole = sizes[-1] / sizes[0] if len(sizes) > 1 else 1.5
  return whole ** (0.012 * (index - (count - 1) / 2))


def curves(record: Row) -> "Figure":
  """Test accuracy of every method against the number of training images."""
  titles = size_record.methods(record)
  figure = charts.new_figure(9.5, 5.0)
  axes = figure.add_subplot()
  entries, values = [], []
  for index, name in enumerate(titles):
    color, marker = style.colors(list(titles))[name], style.markers(list(titles))[name]
    xs, ys = [], []
    for size in record["sizes"]:
      method = size_record.method(size, name)
      if method is None:
        continue
      x = size["size"] * _dodge(record, index, len(titles))
      value = search_record.estimate(method, "accuracy")
      axes.vlines(x, 100 * value.low, 100 * value.high, color=color, linewidth=1.5, zorder=3)
      seeds = 100 * np.array(method["by_seed"], float)
      if len(seeds) > 1:
        axes.scatter([x] * len(seeds), seeds, s=16, marker="_", color=color, zorder=3)
      xs, ys = [*xs, x], [*ys, 100 * value.mean]
      values += [*chart_elements.ends([value]), *method["by_seed"]]
    axes.plot(xs, ys, color=color, marker=marker, markersize=7, linewidth=1.6, zorder=4)
    entries.append((chart_elements.point_entry(color, marker, filled=True), titles[name]))
  chart_elements.accuracy_axis(axes, values, "test accuracy, %")
  _size_axis(axes, record)
  charts.clean(axes)
  chart_elements.legend(figure, entries)
  return figure


def differences(record: Row) -> "Figure | None":
  """Test accuracy minus that of full fine-tuning, against the number of training images."""
  titles = size_record.methods(record)
  found = {n: {s["size"]: s["against_ft"][n] for s in record["sizes"] if n in s["against_ft"]}
           for n in titles}  # fmt: skip
  found = {name: by_size for name, by_size in found.items() if by_size and name != REFERENCE}
  if not found:
    return None
  figure = charts.new_figure(9.5, 4.6)
  axes = figure.add_subplot()
  zero = style.METHOD_COLORS[REFERENCE]
  axes.axhline(0, color=zero, linewidth=1.8, zorder=1)
  entries = [(chart_elements.level_entry(zero, "-"), "full fine-tuning: the zero")]
  for index, (name, by_size) in enumerate(found.items()):
    color, marker = style.colors(list(titles))[name], style.markers(list(titles))[name]
    _draw_differences(axes, record, by_size, color, marker, _dodge(record, index, len(found)))
    entries.append((chart_elements.point_entry(color, marker, filled=True), titles[name]))
  entries.append((chart_elements.point_entry(style.INK, "o", filled=False), "hollow: undecided"))
  axes.margins(y=0.1)
  axes.set_ylabel("difference from full\nfine-tuning, points", fontsize=charts.SIZE)
  _size_axis(axes, record)
  charts.clean(axes)
  chart_elements.legend(figure, entries)
  return figure


def _draw_differences(
  axes, record: Row, by_size: Mapping[int, Row], color: str, marker: str, dodge: float
) -> None:
  xs = [size * dodge for size in by_size]
  ys = [100 * entry["mean"] for entry in by_size.values()]
  axes.plot(xs, ys, color=color, linewidth=1.4, zorder=2)
  for x, entry in zip(xs, by_size.values(), strict=True):
    value = search_record.estimate(entry)
    decided = value.known and value.verdict != estimate.UNDECIDED
    chart_elements.mean(axes, x, value, color=color, marker=marker, filled=decided, cap=0)


def unit_map(record: Row) -> "Figure | None":
  """Heat map of the gain of each unit over the head alone, a row per number of images."""
  if record["map"] is None or not record["map"]["rows"] or not record["map"]["head"]:
    return None
  values, near, heads = size_record.gains(record)
  units: Sequence[str] = record["map"]["units"]
  width = chart_elements.page_width(len(units), 0.54)
  figure = charts.new_figure(width, 0.8 + chart_elements.label_room(units) + 0.5 * len(heads))
  axes = figure.add_subplot()
  chart_elements.gain_map(figure, axes, values, near, width - 2.4)
  chart_elements.unit_ticks(axes, units, width - 2.4)
  labels = [f"{head['size']:,} images\nhead {words.percent(head['mean'])} %" for head in heads]
  chart_elements.row_ticks(axes, labels)
  chart_elements.legend(figure, chart_elements.gain_map_entries(near))
  return figure
