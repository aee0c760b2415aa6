"""The figure of the greedy searches: accuracy against step, trained parameters below."""

import textwrap
from typing import TYPE_CHECKING

from subtune_jax.report import chart_elements, charts, style, words
from subtune_jax.studies.search import figures as search_figures
from subtune_jax.studies.search import record as search_record
from subtune_jax.studies.search import sentences

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Row = search_record.Row
_COLOR, _MARKER = search_figures.COLOR, search_figures.MARKER
_CANDIDATE = "#B0B0B0"


def greedy(record: Row) -> "Figure | None":
  """The paths of the greedy searches: accuracy against step, trained parameters below."""
  paths = [path for path in search_record.searches(record, search_record.GREEDY) if path["steps"]]
  if not paths:
    return None
  counts = [max(len(path["steps"]) + 1, 6) for path in paths]
  beside = len(paths) == 1 or sum(counts) <= 26
  columns, bands = (len(paths), 1) if beside else (1, len(paths))
  width = chart_elements.page_width(sum(counts) if beside else max(counts))
  room = chart_elements.label_room(search_record.unit_names(record))
  figure = charts.new_figure(width, 0.4 + (4.6 + room) * bands)
  axes = figure.subplots(
    2 * bands,
    columns,
    squeeze=False,
    width_ratios=counts if beside and len(paths) > 1 else None,
    height_ratios=[3.6, 1.2] * bands,
  )
  values, entries = [], {}
  for number, path in enumerate(paths):
    band, column = (0, number) if beside else (number, 0)
    top, below = axes[2 * band, column], axes[2 * band + 1, column]
    values += _draw_path(record, path, top, below, entries, labels=column == 0)
    share = counts[number] / sum(counts) if beside else 1.0
    _label_path(record, path, top, below, share * (width - 1.0))
  params = [p[1]["trained_params"] for path in paths for p in _path_points(record, path)]
  most = max(params, default=1)
  for band in range(bands):
    for column in range(columns):
      chart_elements.accuracy_axis(axes[2 * band, column], values)
      axes[2 * band + 1, column].set_ylim(0, 1.35 * most)
      if column:
        axes[2 * band, column].set_ylabel("")
        axes[2 * band, column].tick_params(labelleft=False)
  chart_elements.legend(figure, [(handle, label) for label, handle in entries.items()])
  return figure


def _path_points(record: Row, path: Row) -> list[tuple[int, Row, bool]]:
  """(step, set, taken) of a path; step 0 is its start, if it was tried."""
  sets = search_record.by_units(record)
  points = [(0, sets.get(tuple(path["steps"][0]["base"])), True)]
  for number, step in enumerate(path["steps"], start=1):
    points.append((number, sets.get(tuple(step["chosen"])), step["taken"]))
  return [(number, tried, taken) for number, tried, taken in points if tried is not None]


def _draw_path(record: Row, path: Row, top, below, entries: dict, *, labels: bool) -> list[float]:
  """Draws a path and its parameters; returns the accuracies shown."""
  candidates = [
    (number, tried["mean"])
    for number, step in enumerate(path["steps"], start=1)
    for tried in step["tried"]
    if tried["units"] != step["chosen"]
  ]
  for number, mean in candidates:
    top.plot([number], [100 * mean], marker="_", markersize=9, color=_CANDIDATE, zorder=1)
  points = _path_points(record, path)
  taken = [(number, 100 * tried["mean"]) for number, tried, on in points if on]
  top.plot([x for x, _ in taken], [y for _, y in taken], color=_COLOR, linewidth=1.6, zorder=2)
  for number, tried, on in points:
    value, (color, marker) = search_record.estimate(tried), _set_look(record, tried)
    if not on and taken:
      (x, y), dashes = taken[-1], (0, (2, 2))
      top.plot([x, number], [y, 100 * value.mean], color=_COLOR, linewidth=1.2, linestyle=dashes,
               zorder=2)  # fmt: skip
    chart_elements.mean(top, number, value, color=color, marker=marker, filled=on)
    if on and tried["units"] == path["chosen"]:
      top.plot([number], [100 * value.mean], marker="o", markersize=16, markerfacecolor="none",
               markeredgecolor=style.INK, markeredgewidth=1.5, zorder=5)  # fmt: skip
    _draw_params(below, number, tried["trained_params"], color, filled=on)
  below.set_yticks([])
  if labels:
    below.set_ylabel("trained\nparameters", fontsize=charts.SIZE)
  entries["step taken"] = chart_elements.point_entry(_COLOR, _MARKER, filled=True)
  if any(not on for _, _, on in points):
    entries["step not taken"] = chart_elements.point_entry(_COLOR, _MARKER, filled=False)
  entries["returned set"] = chart_elements.point_entry(style.INK, "o", filled=False, size=12)
  if candidates:
    entries["other candidates of the step"] = chart_elements.point_entry(
      _CANDIDATE, "_", filled=False
    )
  shown = search_figures.all_values([tried for _, tried, _ in points], folds=False)
  return shown + [mean for _, mean in candidates]


def _draw_params(axes, x: float, params: int, color: str, *, filled: bool) -> None:
  """A bar from zero with its number."""
  face = color if filled else "white"
  axes.bar(x, params, width=0.62, color=face, edgecolor=color, linewidth=1.2)
  chart_elements.number_above(axes, x, params, words.parameters(params))


def _set_look(record: Row, tried: Row) -> tuple[str, str]:
  """Colour and marker of a set: the head alone is linear probing, all units full fine-tuning."""
  method = {0: "lp", len(record["units"]): "ft"}.get(len(tried["units"]), "subtuning")
  return style.METHOD_COLORS[method], style.markers([method])[method]


def _label_path(record: Row, path: Row, top, below, width: float) -> None:
  """Title, and under each step the unit that came or went."""
  names = search_record.unit_names(record)
  first = path["steps"][0]["base"]
  labels = [search_record.set_name(first, names)]
  labels += [" ".join(sentences.moves(step)) for step in path["steps"]]
  for axes in (top, below):
    axes.set_xlim(-0.6, max(len(labels) - 0.4, 5.6))
    charts.clean(axes)
  below.grid(False)
  below.spines["left"].set_visible(False)
  top.tick_params(axis="x", length=0)
  below.tick_params(axis="x", length=0)
  top.set_xticks(range(len(labels)), [""] * len(labels))
  chart_elements.unit_ticks(below, labels, width * len(labels) / max(len(labels), 6))
  direction = "forward" if path["start"] == search_record.FORWARD else "backward"
  racing = ", candidates raced" if path["racing"] else ""
  last = path["steps"][-1]
  end = f"stopped: {path['stopped']}"
  if not last["taken"]:
    end = f"step {len(path['steps'])} not taken: {last['reason']}"
  text = textwrap.fill(end, max(int(width / 0.078), 20), max_lines=3)
  title = f"{direction}, rule: {path['rule']['kind']}{racing}\n{text}"
  top.set_title(charts.plain(title), fontsize=charts.SIZE - 0.5, loc="left", linespacing=1.35)
