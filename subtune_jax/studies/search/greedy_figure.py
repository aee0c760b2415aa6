"""The figure of the greedy searches: accuracy against step, trained parameters below."""

from collections.abc import Sequence
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import charts, marks, style
from subtune_jax.studies import fields
from subtune_jax.studies.search import figures as search_figures
from subtune_jax.studies.search import record as search_record
from subtune_jax.studies.search import sentences

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Row = search_record.Row
Point = tuple[int, Row, bool]  # step, set, whether it was taken
_COLOR = search_figures.COLOR
_LOOK = (_COLOR, search_figures.MARKER)
_CANDIDATE = "#B0B0B0"


def greedy(record: Row) -> "Figure | None":
  """The paths of the greedy searches: accuracy against step, trained parameters below."""
  paths = [path for path in search_record.searches(record, search_record.GREEDY) if path["steps"]]
  if not paths:
    return None
  counts = [max(len(path["steps"]) + 1, 6) for path in paths]
  beside = len(paths) == 1 or sum(counts) <= 26
  columns, bands = (len(paths), 1) if beside else (1, len(paths))
  width = charts.page_width(sum(counts) if beside else max(counts))
  room = charts.label_room(search_record.unit_names(record))
  figure = charts.new_figure(width, 0.4 + (4.6 + room) * bands)
  axes = figure.subplots(
    2 * bands, columns, squeeze=False, height_ratios=[3.6, 1.2] * bands,
    width_ratios=counts if columns > 1 else None,
  )  # fmt: skip
  panels = list(zip(axes[::2].ravel(), axes[1::2].ravel(), strict=True))
  points = [_path_points(record, path) for path in paths]
  values = [value for path, own in zip(paths, points, strict=True) for value in _shown(path, own)]
  most = max((tried["trained_params"] for own in points for _, tried, _ in own), default=1)
  for number, (path, own, (top, below)) in enumerate(zip(paths, points, panels, strict=True)):
    first, share = not beside or not number, counts[number] / sum(counts) if beside else 1.0
    _draw_path(record, path, own, top, below)
    _label_path(record, path, top, below, share * (width - 1.0))
    charts.accuracy_axis(top, values)
    below.set_ylim(0, 1.35 * most)
    if first:
      below.set_ylabel("trained\nparameters", fontsize=charts.SIZE)
    else:
      top.set_ylabel("")
      top.tick_params(labelleft=False)
  charts.legend(figure, _entries(paths, points))
  return figure


def _entries(paths: Sequence[Row], points: Sequence[Sequence[Point]]) -> list[charts.Entry]:
  entries = [(marks.key(*_LOOK), "step taken")]
  if any(not taken for own in points for _, _, taken in own):
    entries.append((marks.key(*_LOOK, filled=False), "step not taken"))
  entries.append((marks.ring_key(style.INK), "returned set"))
  if any(_candidates(path) for path in paths):
    entries.append((marks.key(_CANDIDATE, "_"), "other candidates of the step"))
  return entries


def _path_points(record: Row, path: Row) -> list[Point]:
  """The start of a path, step 0, and its steps, of the sets that were tried."""
  sets = search_record.by_units(record)
  points = [(0, sets.get(tuple(path["steps"][0]["base"])), True)]
  for number, step in enumerate(path["steps"], start=1):
    points.append((number, sets.get(tuple(step["chosen"])), step["taken"]))
  return [(number, tried, taken) for number, tried, taken in points if tried is not None]


def _candidates(path: Row) -> list[tuple[int, float]]:
  """(step, accuracy) of the sets that a step tried and left."""
  return [
    (number, tried["mean"])
    for number, step in enumerate(path["steps"], start=1)
    for tried in step["tried"]
    if tried["units"] != step["chosen"]
  ]


def _shown(path: Row, points: Sequence[Point]) -> list[float]:
  """The accuracies of a path, with the ends of intervals."""
  values = search_figures.all_values([tried for _, tried, _ in points], folds=False)
  return values + [mean for _, mean in _candidates(path)]


def _draw_path(record: Row, path: Row, points: Sequence[Point], top, below) -> None:
  """A path, and the parameters of its sets."""
  for number, mean in _candidates(path):
    top.plot([number], [100 * mean], marker="_", markersize=9, color=_CANDIDATE, zorder=1)
  taken = [(number, 100 * tried["mean"]) for number, tried, on in points if on]
  top.plot(*np.array(taken).reshape(-1, 2).T, color=_COLOR, linewidth=1.6, zorder=2)
  for number, tried, on in points:
    value, (color, marker) = fields.estimate(tried), _set_look(record, tried)
    if not on and taken:
      (x, y), look = taken[-1], {"linewidth": 1.2, "linestyle": style.DASHED}
      top.plot([x, number], [y, 100 * value.mean], color=_COLOR, zorder=2, **look)
    marks.mean(top, number, value, color, marker, filled=on)
    if on and tried["units"] == path["chosen"]:
      marks.ring(top, number, 100 * value.mean)
    search_figures.params_bar(below, number, tried["trained_params"], color, pale=not on)


def _set_look(record: Row, tried: Row) -> tuple[str, style.Marker]:
  """Colour and marker of a set: the head alone is linear probing, all units full fine-tuning."""
  method = {0: "lp", len(record["units"]): "ft"}.get(len(tried["units"]), "subtuning")
  return style.looks([method])[method]


def _label_path(record: Row, path: Row, top, below, width: float) -> None:
  """Title, and under each step the unit that came or went."""
  names, last = search_record.unit_names(record), path["steps"][-1]
  labels = [search_record.set_name(path["steps"][0]["base"], names)]
  labels += [" ".join(sentences.moves(step)) for step in path["steps"]]
  direction = "forward" if path["start"] == search_record.FORWARD else "backward"
  racing = ", candidates raced" if path["racing"] else ""
  end = f"stopped: {path['stopped']}"
  if not last["taken"]:
    end = f"step {len(path['steps'])} not taken: {last['reason']}"
  text = textwrap.fill(end, max(int(width / 0.078), 20), max_lines=3)
  charts.label(top, f"{direction}, rule: {path['rule']['kind']}{racing}\n{text}")
  search_figures.bare(below, "")
  for axes in (top, below):
    axes.set_xlim(-0.6, max(len(labels) - 0.4, 5.6))
  top.tick_params(axis="x", length=0)
  top.set_xticks(range(len(labels)), [""] * len(labels))
  charts.unit_ticks(below, labels, width * len(labels) / max(len(labels), 6))
