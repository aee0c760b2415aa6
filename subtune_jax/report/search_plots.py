"""The figures of a search for the units to train, drawn from its record.

Every function returns a matplotlib figure, or None where the record has nothing for it. One
colour has one meaning: black the head alone, orange all units (full fine-tuning), green SubTuning.
"""

from collections.abc import Sequence
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import marks, plots, records, style, table
from subtune_jax.report import search_records as search_lib

if TYPE_CHECKING:
  from matplotlib.artist import Artist
  from matplotlib.figure import Figure

Row = search_lib.Row
HEAD_COLOR = style.METHOD_COLORS["lp"]
ALL_COLOR = style.METHOD_COLORS["ft"]
COLOR = style.METHOD_COLORS["subtuning"]
MARKER = style.markers(list(style.METHOD_COLORS))["subtuning"]
HEAD_DASHES, ALL_DASHES = (0, (5, 2)), "-"
_DROPPED = "#8A8A8A"
_PALE = "#8CCFBA"  # SubTuning, less so
_CANDIDATE = "#B0B0B0"
# All are SubTuning: one hue, told apart by lightness and marker.
_WINDOW_LOOKS = ((COLOR, MARKER), ("#003D2E", "o"), ("#5FC2A5", "s"), (style.MUTED, "D"))


def _percent(value: table.Estimate) -> str:
  return f"{table.percent(value.mean)} %"


def _references(axes, sets, names) -> list[tuple["Artist", str]]:
  """Lines of the head alone and of all units where they were tried; their legend entries."""
  entries = []
  for units, color, dashes, title in (
    ((), HEAD_COLOR, HEAD_DASHES, "head alone"),
    (names, ALL_COLOR, ALL_DASHES, "all units (full fine-tuning)"),
  ):
    if units in sets:
      value = search_lib.estimate(sets[units])
      marks.level_line(axes, value, color, dashes)
      entries.append((marks.level_entry(color, dashes), f"{title}: {_percent(value)}"))
  return entries


def _all_values(entries: Sequence[Row], *, folds: bool = True) -> list[float]:
  """Accuracies of sets with the ends of their intervals and, if wanted, those of the folds."""
  values = []
  for entry in entries:
    value = search_lib.estimate(entry)
    values += [value.mean, value.low, value.high]
    values += search_lib.folds(entry).tolist() if folds else []
  return values


def _look(tried: Row, chosen: bool) -> dict:
  """How the point of a set is drawn: filled if chosen, grey if a race dropped it."""
  color = COLOR if tried["complete"] else _DROPPED
  return {"color": color, "marker": MARKER if tried["complete"] else "x", "filled": chosen}


def profile(record: Row) -> "Figure | None":
  """Accuracy of each unit trained alone (with the head), and its parameters below."""
  sets, names = search_lib.by_units(record), search_lib.unit_names(record)
  alone = {name: sets[name,] for name in names if (name,) in sets}
  if not alone:
    return None
  chosen, width = record["chosen"], marks.page_width(len(names))
  figure = plots.new_figure(width, 5.0 + marks.label_room(names))
  axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1.15])
  entries = _references(axes, sets, names)
  for i, name in enumerate(names):
    if name in chosen:
      axes.axvspan(i - 0.5, i + 0.5, color=COLOR, alpha=0.1, linewidth=0, zorder=0)
    if name in alone:
      look = _look(alone[name], name in chosen)
      marks.fold_dots(axes, i, search_lib.folds(alone[name]))
      value = search_lib.estimate(alone[name])
      marks.interval(axes, i, value, look["color"])
      marks.point(axes, i, 100 * value.mean, **look)
  entries += _profile_entries(record, alone)
  shown = [*alone.values(), *(sets[units] for units in ((), names) if units in sets)]
  marks.accuracy_axis(axes, _all_values(shown))
  plots.clean(axes)
  axes.tick_params(axis="x", length=0, labelbottom=False)
  _draw_params(below, record, {unit["name"]: unit["params"] for unit in record["units"]}, chosen)
  marks.unit_ticks(below, names, width - 1.0, bold=chosen)
  axes.set_xlim(-0.6, len(names) - 0.4)
  marks.legend(figure, entries)
  return figure


def _profile_entries(record: Row, alone) -> list[tuple["Artist", str]]:
  entries = []
  if any(name in record["chosen"] for name in alone):
    entries.append((marks.point_entry(COLOR, MARKER, filled=True), "unit of the chosen set"))
  if any(t["complete"] and name not in record["chosen"] for name, t in alone.items()):
    entries.append((marks.point_entry(COLOR, MARKER, filled=False), "other unit"))
  gone = [tried for tried in alone.values() if not tried["complete"]]
  words = [w for w, is_it in (("dropped by the race", False), ("diverged", True))
           if any(bool(t.get("diverged")) is is_it for t in gone)]  # fmt: skip
  if gone:
    entries.append((marks.point_entry(_DROPPED, "x", filled=False), ", or ".join(words)))
  if record["data"]["num_folds"] > 1:
    entries.append((marks.dots_entry(), "single folds"))
  return entries


def _draw_params(axes, record: Row, counts: dict[str, int], chosen: Sequence[str]) -> None:
  """Bars from zero with their numbers."""
  heights = np.array(list(counts.values()), float)
  colors = [COLOR if name in chosen else marks.QUIET for name in counts]
  axes.bar(range(len(counts)), heights, width=0.62, color=colors)
  upright = len(counts) > 14
  for i, height in enumerate(heights):
    axes.annotate(
      table.parameters(int(height)),
      (i, height),
      (0, 3),
      textcoords="offset points",
      ha="center",
      va="bottom",
      rotation=90 if upright else 0,
      fontsize=plots.SMALL - 1,
      color=style.INK,
    )
  axes.set_ylim(0, max(heights.max(), 1) * (2.0 if upright else 1.35))
  axes.set_yticks([])
  axes.set_ylabel("parameters\nof the unit", fontsize=plots.SIZE)
  plots.clean(axes)
  axes.grid(False)
  axes.spines["left"].set_visible(False)
  axes.tick_params(axis="x", length=0)


def windows(record: Row) -> "Figure | None":
  """Accuracy of units in a row, a series per width, each at the middle of its window."""
  sets, names = search_lib.by_units(record), search_lib.unit_names(record)
  widths = sorted({search["width"] for search in search_lib.searches(record, search_lib.WINDOWS)})
  series = {}
  for window in sorted({1, *widths}) if widths else ():
    found = [(i, names[i : i + window]) for i in range(len(names) - window + 1)]
    found = {i + (window - 1) / 2: sets[units] for i, units in found if units in sets}
    if found:
      series[window] = found
  if not set(series) - {1}:
    return None
  width = marks.page_width(len(names))
  figure = plots.new_figure(width, 4.0 + marks.label_room(names))
  axes = figure.add_subplot()
  entries = _references(axes, sets, names)
  for number, (window, found) in enumerate(series.items()):
    color, marker = _WINDOW_LOOKS[number % len(_WINDOW_LOOKS)]
    shift = 0.13 * (number - (len(series) - 1) / 2)
    axes.plot(
      [x + shift for x in found],
      [100 * tried["mean"] for tried in found.values()],
      color=color,
      linewidth=1.4,
      alpha=0.8,
      zorder=2,
    )
    for x, tried in found.items():
      value = search_lib.estimate(tried)
      marks.interval(axes, x + shift, value, color, line=1.1, cap=0.05)
      filled = tried["units"] == record["chosen"]
      marks.point(
        axes, x + shift, 100 * value.mean, color=color, marker=marker, filled=filled, size=6
      )
    title = "1 unit" if window == 1 else f"{window} units in a row"
    entries.append((marks.point_entry(color, marker, filled=False), title))
  shown = [tried for found in series.values() for tried in found.values()]
  shown += [sets[units] for units in ((), names) if units in sets]
  marks.accuracy_axis(axes, _all_values(shown, folds=False))
  marks.unit_ticks(axes, names, width - 1.0, bold=record["chosen"])
  axes.set_xlim(-0.6, len(names) - 0.4)
  axes.set_xlabel("unit, or the middle of the window", fontsize=plots.SIZE)
  plots.clean(axes)
  marks.legend(figure, entries)
  return figure


def ranked_pairs(record: Row) -> list[Row]:
  """All pairs that were tried on every fold, the best first."""
  found = [tried for tried in record["sets"] if len(tried["units"]) == 2 and tried["complete"]]
  return sorted(found, key=lambda tried: -tried["mean"])


def pairs(record: Row) -> "Figure | None":
  """Heat map of all pairs, single units on the diagonal; beside it the best pairs in full."""
  ranked = ranked_pairs(record)
  if not search_lib.searches(record, search_lib.PAIRS) or not ranked:
    return None
  names = search_lib.unit_names(record)
  side = min(max(0.4 * len(names), 4.6), 7.6)
  shown = ranked[: min(len(ranked), 8 if side < 5 else 14)]
  labels = [
    plots.shorten(search_lib.set_name(tried["units"], names), marks.LONGEST_SET) for tried in shown
  ]
  width = marks.text_width(names) + side + 1.25 + marks.text_width(labels) + 3.2
  figure = plots.new_figure(width, side + marks.label_room(names) + 0.4)
  axes, beside = figure.subplots(1, 2, width_ratios=[side, 2.8])
  _draw_pair_map(figure, axes, record, ranked, side)
  _draw_ranking(beside, record, shown, labels)
  return figure


def _draw_pair_map(figure, axes, record: Row, ranked: Sequence[Row], side: float) -> None:
  sets, names = search_lib.by_units(record), search_lib.unit_names(record)
  cells = {}
  for i in range(len(names)):
    for j in range(i + 1):
      units = (names[j], names[i]) if j < i else (names[i],)
      if units in sets:
        cells[i, j] = sets[units]
  values = np.full((len(names), len(names)), np.nan)
  for place, tried in cells.items():
    values[place] = 100 * tried["mean"]
  image = marks.heat_map(axes, values, *marks.accuracy_colors(values))
  show_numbers, best = len(names) <= 10, ranked[0]
  near = False
  for (i, j), tried in cells.items():
    is_pair = i != j and tried["complete"]
    is_near = is_pair and tried is not best and search_lib.undecided(tried, best)
    near |= is_near
    mark = marks.DOT if is_near else "" if tried["complete"] else "\N{MULTIPLICATION SIGN}"
    text = f"{values[i, j]:.1f}" if show_numbers else ""
    size = 5.5 if is_near else 8
    if show_numbers and mark:
      marks.in_cell(axes, image, i - 0.17, j, values[i, j], text, fontsize=plots.SMALL)
      marks.in_cell(axes, image, i + 0.24, j, values[i, j], mark, fontsize=size)
    else:
      marks.in_cell(
        axes, image, i, j, values[i, j], text or mark, fontsize=plots.SMALL if text else size
      )
  row, column = (names.index(name) for name in reversed(best["units"]))
  marks.outline(axes, row, column)
  marks.unit_ticks(axes, names, side, bold=record["chosen"])
  marks.row_ticks(axes, names, bold=record["chosen"])
  lines = ["framed: the best pair", "diagonal: one unit alone", "bold: units of the chosen set"]
  if near:
    lines.append(f"{marks.DOT}  not told apart from the best pair")
  if any(not tried["complete"] for tried in cells.values()):
    lines.append("\N{MULTIPLICATION SIGN}  dropped by the race: fewer folds")
  axes.text(
    1.0,
    1.0,
    "\n".join(lines),
    transform=axes.transAxes,
    ha="right",
    va="top",
    fontsize=plots.SMALL,
    color=style.INK,
    linespacing=1.5,
  )
  marks.color_bar(figure, image, axes, marks.ACCURACY)


def _draw_ranking(axes, record: Row, shown: Sequence[Row], labels: Sequence[str]) -> None:
  """Sets from the best down, with intervals; those told apart from the first are grey."""
  for place, tried in enumerate(shown):
    value = search_lib.estimate(tried)
    color = marks.QUIET if search_lib.told_apart(tried, shown[0]) else COLOR
    marks.interval(axes, place, value, color, horizontal=True, cap=0.16)
    marks.point(
      axes,
      100 * value.mean,
      place,
      color=color,
      marker=MARKER,
      filled=tried["units"] == record["chosen"],
    )
  axes.set_yticks(range(len(shown)), [plots.plain(label) for label in labels], fontsize=plots.SMALL)
  axes.set_ylim(len(shown) - 0.4, -0.6)
  axes.set_xlabel(f"{marks.ACCURACY}\n(axis does not start at 0)", fontsize=plots.SIZE)
  axes.set_title("the best pairs, 95 % intervals", fontsize=plots.SIZE, loc="left")
  plots.clean(axes, grid="x")
  axes.tick_params(axis="y", length=0)


def greedy(record: Row) -> "Figure | None":
  """The paths of the greedy searches: accuracy against step, trained parameters below."""
  paths = [path for path in search_lib.searches(record, search_lib.GREEDY) if path["steps"]]
  if not paths:
    return None
  counts = [max(len(path["steps"]) + 1, 6) for path in paths]
  beside = len(paths) == 1 or sum(counts) <= 26
  columns, bands = (len(paths), 1) if beside else (1, len(paths))
  width = marks.page_width(sum(counts) if beside else max(counts))
  room = marks.label_room(search_lib.unit_names(record))
  figure = plots.new_figure(width, 0.4 + (4.6 + room) * bands)
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
      marks.accuracy_axis(axes[2 * band, column], values)
      axes[2 * band + 1, column].set_ylim(0, 1.35 * most)
      if column:
        axes[2 * band, column].set_ylabel("")
        axes[2 * band, column].tick_params(labelleft=False)
  marks.legend(figure, [(handle, label) for label, handle in entries.items()])
  return figure


def _path_points(record: Row, path: Row) -> list[tuple[int, Row, bool]]:
  """(step, set, taken) of a path; step 0 is its start, if it was tried."""
  sets = search_lib.by_units(record)
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
  top.plot([x for x, _ in taken], [y for _, y in taken], color=COLOR, linewidth=1.6, zorder=2)
  for number, tried, on in points:
    value, (color, marker) = search_lib.estimate(tried), _set_look(record, tried)
    if not on and taken:
      top.plot([taken[-1][0], number], [taken[-1][1], 100 * value.mean], color=COLOR, linewidth=1.2,
               linestyle=(0, (2, 2)), zorder=2)  # fmt: skip
    marks.interval(top, number, value, color)
    marks.point(top, number, 100 * value.mean, color=color, marker=marker, filled=on)
    if on and tried["units"] == path["chosen"]:
      top.plot([number], [100 * value.mean], marker="o", markersize=16, markerfacecolor="none",
               markeredgecolor=style.INK, markeredgewidth=1.5, zorder=5)  # fmt: skip
    _draw_path_params(below, number, tried["trained_params"], color, filled=on)
  below.set_yticks([])
  if labels:
    below.set_ylabel("trained\nparameters", fontsize=plots.SIZE)
  entries["step taken"] = marks.point_entry(COLOR, MARKER, filled=True)
  if any(not on for _, _, on in points):
    entries["step not taken"] = marks.point_entry(COLOR, MARKER, filled=False)
  entries["returned set"] = marks.point_entry(style.INK, "o", filled=False, size=12)
  if candidates:
    entries["other candidates of the step"] = marks.point_entry(_CANDIDATE, "_", filled=False)
  return _all_values([tried for _, tried, _ in points], folds=False) + [m for _, m in candidates]


def _draw_path_params(axes, x: float, params: int, color: str, *, filled: bool) -> None:
  """A bar from zero with its number."""
  face = color if filled else "white"
  axes.bar(x, params, width=0.62, color=face, edgecolor=color, linewidth=1.2)
  axes.annotate(
    table.parameters(params),
    (x, params),
    (0, 3),
    textcoords="offset points",
    ha="center",
    va="bottom",
    fontsize=plots.SMALL - 1,
    color=style.INK,
  )


def _set_look(record: Row, tried: Row) -> tuple[str, str]:
  """Colour and marker of a set: the head alone is linear probing, all units full fine-tuning."""
  method = {0: "lp", len(record["units"]): "ft"}.get(len(tried["units"]), "subtuning")
  return style.METHOD_COLORS[method], style.markers([method])[method]


def _label_path(record: Row, path: Row, top, below, width: float) -> None:
  """Title, and under each step the unit that came or went."""
  names = search_lib.unit_names(record)
  first = path["steps"][0]["base"]
  labels = [search_lib.set_name(first, names)]
  for step in path["steps"]:
    came = [f"+ {name}" for name in step["chosen"] if name not in step["base"]]
    went = [f"\N{MINUS SIGN} {name}" for name in step["base"] if name not in step["chosen"]]
    labels.append(" ".join([*came, *went]))
  for axes in (top, below):
    axes.set_xlim(-0.6, max(len(labels) - 0.4, 5.6))
    plots.clean(axes)
  below.grid(False)
  below.spines["left"].set_visible(False)
  top.tick_params(axis="x", length=0)
  below.tick_params(axis="x", length=0)
  top.set_xticks(range(len(labels)), [""] * len(labels))
  marks.unit_ticks(below, labels, width * len(labels) / max(len(labels), 6))
  direction = "forward" if path["start"] == search_lib.FORWARD else "backward"
  racing = ", candidates raced" if path["racing"] else ""
  last = path["steps"][-1]
  end = f"stopped: {path['stopped']}"
  if not last["taken"]:
    end = f"step {len(path['steps'])} not taken: {last['reason']}"
  text = textwrap.fill(end, max(int(width / 0.078), 20), max_lines=3)
  title = f"{direction}, rule: {path['rule']['kind']}{racing}\n{text}"
  top.set_title(plots.plain(title), fontsize=plots.SIZE - 0.5, loc="left", linespacing=1.35)


def network(record: Row, *, most: int = 6) -> "Figure":
  """The blocks of the network, those of the chosen set coloured; below, sets it may not beat."""
  sets, certificate = search_lib.by_units(record), record["certificate"]
  label = "chosen"
  if certificate and certificate["chosen"] == record["chosen"]:
    label += f", best: {search_lib.chance_text(certificate['probability_best'])}"
  rows = [_block_row(record, sets, record["chosen"], label, COLOR)]
  for number, other in enumerate(search_lib.in_doubt(certificate)[:most]):
    label = f"undecided, best: {search_lib.chance_text(other['probability'])}"
    row = _block_row(record, sets, other["units"], label, _PALE)
    rows.append(plots.BlockRow(row.label, row.blocks, row.color, row.note, gap=number == 0))
  return plots.network(record["backbone"], rows)


def _block_row(record: Row, sets, units: Sequence[str], label: str, color: str) -> plots.BlockRow:
  tried = sets.get(tuple(units))
  note = "" if tried is None else f"{table.parameters(tried['trained_params'])} trained"
  return plots.BlockRow(label, search_lib.blocks(record, units) | {records.HEAD}, color, note)


def cost(record: Row) -> "Figure":
  """Trainings, seconds and operations of the search, beside those of the plain one."""
  spent = record["cost"]
  figure = plots.new_figure(11, 1.9)
  left, middle, right = figure.subplots(1, 3)
  _draw_bars(
    left,
    "trainings",
    {"this search": spent["trainings"], "plain search": spent["plain_trainings"]},
    "{:,.0f}",
  )
  _draw_bars(
    middle,
    "seconds",
    {"trainings": spent["seconds"], "compiling": spent["compile_seconds"]},
    "{:,.0f}",
    _PALE,
  )
  scale, unit = flop_unit(max(spent["flops"], spent["plain_flops"]))
  flops = {"this search": spent["flops"] / scale, "plain search": spent["plain_flops"] / scale}
  ratio = flop_ratio(record)
  note = f" (plain: {ratio:.2g} times)" if ratio else ""
  _draw_bars(right, f"operations, {unit}{note}", flops, "{:,.3g}")
  return figure


def flop_ratio(record: Row) -> float | None:
  """Operations of the plain search over those of this one; None where they are not known."""
  spent = record["cost"]
  return spent["plain_flops"] / spent["flops"] if spent["flops"] > 0 else None


def flop_unit(most: float) -> tuple[float, str]:
  """The unit that shows a number of floating-point operations in few digits."""
  for scale, unit in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
    if most >= scale:
      return scale, unit
  return 1e6, "MFLOP"


def _draw_bars(
  axes, title: str, values: dict[str, float], form: str, second: str = marks.QUIET
) -> None:
  """Bars from zero, the first one first, with their numbers at the end."""
  axes.barh(range(len(values)), list(values.values()), color=[COLOR, second], height=0.62)
  for place, value in enumerate(values.values()):
    axes.annotate(
      form.format(value),
      (value, place),
      (4, 0),
      textcoords="offset points",
      va="center",
      fontsize=plots.SMALL,
      color=style.INK,
    )
  axes.set_yticks(range(len(values)), list(values), fontsize=plots.SIZE - 0.5)
  axes.set_ylim(len(values) - 0.5, -0.5)
  axes.set_xlim(0, 1.28 * max([*values.values(), 1e-9]))
  axes.set_title(title, fontsize=plots.SIZE, loc="left")
  plots.clean(axes, grid="x")
  axes.spines["left"].set_visible(False)
  axes.tick_params(axis="y", length=0)
  axes.locator_params(axis="x", nbins=4)
