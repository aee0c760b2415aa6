"""The figures of a study of the number of training images, drawn from its record."""

from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import charts, estimate, heat_map, marks, style, words
from subtune_jax.studies import fields
from subtune_jax.studies.dataset_size import record as size_record
from subtune_jax.studies.search import record as search_record

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Row = search_record.Row
REFERENCE = "ft"
_X = "training images (logarithmic)"


def curves(record: Row) -> "Figure":
  """Test accuracy of every method against the number of training images."""
  titles, sizes = size_record.methods(record), [size["size"] for size in record["sizes"]]
  looks, values = style.looks(list(titles)), []
  figure, (axes,) = charts.panels(1, 9.5, 5.0)
  for index, (name, (color, marker)) in enumerate(looks.items()):
    dodge = charts.dodge(sizes, index, len(titles))
    found = {row["size"] * dodge: size_record.method(row, name) for row in record["sizes"]}
    found = {x: method for x, method in found.items() if method is not None}
    means = []
    for x, method in found.items():
      value, seeds = fields.estimate(method, "accuracy"), method["by_seed"]
      marks.interval(axes, x, (100 * value.low, 100 * value.high), color)
      seed_values = 100 * np.array(seeds, float)
      marks.seed_dots(axes, [x] * len(seeds), seed_values, color=color, marker="_", s=16)
      values += [*charts.ends([value]), *seeds]
      means.append(100 * value.mean)
    marks.lines(axes, list(found), np.array([means]), color, marker)
  charts.log_axis(axes, sizes)
  charts.label(axes, x=_X)
  charts.accuracy_axis(axes, values, "test accuracy, %")
  charts.legend(figure, marks.keys(looks, titles))
  return figure


def differences(record: Row) -> "Figure | None":
  """Test accuracy minus that of full fine-tuning, against the number of training images."""
  titles, sizes = size_record.methods(record), [size["size"] for size in record["sizes"]]
  found = {n: {s["size"]: s["against_ft"][n] for s in record["sizes"] if n in s["against_ft"]}
           for n in titles if n != REFERENCE}  # fmt: skip
  found = {name: by_size for name, by_size in found.items() if by_size}
  if not found:
    return None
  looks, zero = style.looks(list(titles)), style.METHOD_COLORS[REFERENCE]
  figure, (axes,) = charts.panels(1, 9.5, 4.6)
  axes.axhline(0, color=zero, linewidth=1.8, zorder=1)
  for index, (name, by_size) in enumerate(found.items()):
    color, marker = looks[name]
    xs = [size * charts.dodge(sizes, index, len(found)) for size in by_size]
    ys = [100 * entry["mean"] for entry in by_size.values()]
    axes.plot(xs, ys, color=color, linewidth=1.4, zorder=2)
    for x, value in zip(xs, map(fields.estimate, by_size.values()), strict=True):
      decided = value.known and value.verdict != estimate.UNDECIDED
      marks.mean(axes, x, value, color, marker, filled=decided)
  axes.margins(y=0.1)
  charts.log_axis(axes, sizes)
  charts.label(axes, x=_X, y="difference from full\nfine-tuning, points")
  level = marks.key(zero, dashes="-"), "full fine-tuning: the zero"
  hollow = marks.key(style.INK, "o", filled=False), "hollow: undecided"
  charts.legend(figure, [level, *marks.keys(looks, titles, found), hollow])
  return figure


def unit_map(record: Row) -> "Figure | None":
  """Heat map of the gain of each unit over the head alone, a row per number of images."""
  found = record["map"]
  if found is None or not found["rows"] or not found["head"]:
    return None
  values, near, heads = size_record.gains(record)
  rows = [f"{head['size']:,} images\nhead {words.percent(head['mean'])} %" for head in heads]
  return heat_map.gains(found["units"], rows, values, near, row_height=0.5)
