"""The figures of a search for the units to train, drawn from its record.

Every function returns a matplotlib figure, or None where the record has nothing for it. One
colour has one meaning: black the head alone, orange all units (full fine-tuning), green SubTuning.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import block_strip, chart_elements, charts, estimate, style, words
from subtune_jax.studies.search import record as search_record

if TYPE_CHECKING:
  from matplotlib.artist import Artist
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Row = search_record.Row
HEAD_COLOR = style.METHOD_COLORS["lp"]
ALL_COLOR = style.METHOD_COLORS["ft"]
COLOR = style.METHOD_COLORS["subtuning"]
MARKER = style.markers(list(style.METHOD_COLORS))["subtuning"]
HEAD_DASHES, ALL_DASHES = (0, (5, 2)), "-"
_DROPPED = "#8A8A8A"
_PALE = "#8CCFBA"  # SubTuning, less so
# All are SubTuning: one hue, told apart by lightness and marker.
_WINDOW_LOOKS = ((COLOR, MARKER), ("#003D2E", "o"), ("#5FC2A5", "s"), (style.MUTED, "D"))


def references(
  axes: "Axes", head: estimate.Estimate | None, everything: estimate.Estimate | None
) -> list[tuple["Artist", str]]:
  """Lines of the head alone and of all units where they were tried; their legend entries."""
  entries = []
  for value, color, dashes, title in (
    (head, HEAD_COLOR, HEAD_DASHES, "head alone"),
    (everything, ALL_COLOR, ALL_DASHES, "all units (full fine-tuning)"),
  ):
    if value is not None:
      chart_elements.level_line(axes, value, color, dashes)
      entries.append((chart_elements.level_entry(color, dashes), title))
  return entries


def _labelled_references(axes, sets, names) -> list[tuple["Artist", str]]:
  """The same of a search, with the accuracies in the legend."""
  values = [search_record.estimate(sets[units]) if units in sets else None for units in ((), names)]
  known = [value for value in values if value is not None]
  return [
    (handle, f"{title}: {words.percent(value.mean)} %")
    for (handle, title), value in zip(references(axes, *values), known, strict=True)
  ]


def all_values(entries: Sequence[Row], *, folds: bool = True) -> list[float]:
  """Accuracies of sets with the ends of their intervals and, if wanted, those of the folds."""
  values = chart_elements.ends(map(search_record.estimate, entries))
  if folds:
    values += [accuracy for entry in entries for accuracy in search_record.folds(entry)]
  return values


def _look(tried: Row, chosen: bool) -> dict:
  """How the point of a set is drawn: filled if chosen, grey if a race dropped it."""
  color = COLOR if tried["complete"] else _DROPPED
  return {"color": color, "marker": MARKER if tried["complete"] else "x", "filled": chosen}


def profile(record: Row) -> "Figure | None":
  """Accuracy of each unit trained alone (with the head), and its parameters below."""
  sets, names = search_record.by_units(record), search_record.unit_names(record)
  alone = {name: sets[name,] for name in names if (name,) in sets}
  if not alone:
    return None
  everything = names
  if record.get("lora"):  # a greedy search tries few of the ranks alone
    names = tuple(alone)
  chosen, width = record["chosen"], chart_elements.page_width(len(names))
  figure = charts.new_figure(width, 5.0 + chart_elements.label_room(names))
  axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1.15])
  entries = _labelled_references(axes, sets, everything)
  for i, name in enumerate(names):
    if name in chosen:
      axes.axvspan(i - 0.5, i + 0.5, color=COLOR, alpha=0.1, linewidth=0, zorder=0)
    if name in alone:
      look = _look(alone[name], name in chosen)
      chart_elements.fold_dots(axes, i, search_record.folds(alone[name]))
      chart_elements.mean(axes, i, search_record.estimate(alone[name]), **look)
  entries += _profile_entries(record, alone)
  shown = [*alone.values(), *(sets[units] for units in ((), everything) if units in sets)]
  chart_elements.accuracy_axis(axes, all_values(shown))
  charts.clean(axes)
  axes.tick_params(axis="x", length=0, labelbottom=False)
  params = {unit["name"]: unit["params"] for unit in record["units"] if unit["name"] in names}
  _draw_params(below, params, chosen)
  chart_elements.unit_ticks(below, names, width - 1.0, bold=chosen)
  axes.set_xlim(-0.6, len(names) - 0.4)
  chart_elements.legend(figure, entries)
  return figure


def _profile_entries(record: Row, alone) -> list[tuple["Artist", str]]:
  entries = []
  if any(name in record["chosen"] for name in alone):
    entries.append(
      (chart_elements.point_entry(COLOR, MARKER, filled=True), "unit of the chosen set")
    )
  if any(t["complete"] and name not in record["chosen"] for name, t in alone.items()):
    entries.append((chart_elements.point_entry(COLOR, MARKER, filled=False), "other unit"))
  gone = {bool(t.get("diverged")) for t in alone.values() if not t["complete"]}
  if gone:
    names = ["diverged" if diverged else "dropped by the race" for diverged in sorted(gone)]
    entries.append((chart_elements.point_entry(_DROPPED, "x", filled=False), ", or ".join(names)))
  if record["data"]["num_folds"] > 1:
    entries.append((chart_elements.dots_entry(), "single folds"))
  return entries


def _draw_params(axes, counts: dict[str, int], chosen: Sequence[str]) -> None:
  """Bars from zero with their numbers."""
  heights = np.array(list(counts.values()), float)
  colors = [COLOR if name in chosen else chart_elements.QUIET for name in counts]
  axes.bar(range(len(counts)), heights, width=0.62, color=colors)
  upright = len(counts) > 14
  for i, height in enumerate(heights):
    chart_elements.number_above(axes, i, height, words.parameters(int(height)), upright=upright)
  axes.set_ylim(0, max(heights.max(), 1) * (2.0 if upright else 1.35))
  axes.set_yticks([])
  axes.set_ylabel("parameters\nof the unit", fontsize=charts.SIZE)
  charts.clean(axes)
  axes.grid(False)
  axes.spines["left"].set_visible(False)
  axes.tick_params(axis="x", length=0)


def windows(record: Row) -> "Figure | None":
  """Accuracy of units in a row, a series per width, each at the middle of its window."""
  sets, names = search_record.by_units(record), search_record.unit_names(record)
  searches = search_record.searches(record, search_record.WINDOWS)
  widths = sorted({search["width"] for search in searches})
  series = {}
  for window in sorted({1, *widths}) if widths else ():
    found = [(i, names[i : i + window]) for i in range(len(names) - window + 1)]
    found = {i + (window - 1) / 2: sets[units] for i, units in found if units in sets}
    if found:
      series[window] = found
  if not set(series) - {1}:
    return None
  width = chart_elements.page_width(len(names))
  figure = charts.new_figure(width, 4.0 + chart_elements.label_room(names))
  axes = figure.add_subplot()
  entries = _labelled_references(axes, sets, names)
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
      chart_elements.mean(
        axes, x + shift, search_record.estimate(tried), color=color, marker=marker,
        filled=tried["units"] == record["chosen"], size=6, line=1.1, cap=0.05,
      )  # fmt: skip
    title = "1 unit" if window == 1 else f"{window} units in a row"
    entries.append((chart_elements.point_entry(color, marker, filled=False), title))
  shown = [tried for found in series.values() for tried in found.values()]
  shown += [sets[units] for units in ((), names) if units in sets]
  chart_elements.accuracy_axis(axes, all_values(shown, folds=False))
  chart_elements.unit_ticks(axes, names, width - 1.0, bold=record["chosen"])
  axes.set_xlim(-0.6, len(names) - 0.4)
  axes.set_xlabel("unit, or the middle of the window", fontsize=charts.SIZE)
  charts.clean(axes)
  chart_elements.legend(figure, entries)
  return figure


def pairs(record: Row) -> "Figure | None":
  """Heat map of all pairs, single units on the diagonal; beside it the best pairs in full."""
  ranked = search_record.ranked_pairs(record)
  if not search_record.searches(record, search_record.PAIRS) or not ranked:
    return None
  names = search_record.unit_names(record)
  side = min(max(0.4 * len(names), 4.6), 7.6)
  shown = ranked[: min(len(ranked), 8 if side < 5 else 14)]
  labels = [
    words.shorten(search_record.set_name(tried["units"], names), chart_elements.LONGEST_SET)
    for tried in shown
  ]
  width = chart_elements.text_width(names) + side + 1.25 + chart_elements.text_width(labels) + 3.2
  figure = charts.new_figure(width, side + chart_elements.label_room(names) + 0.4)
  axes, beside = figure.subplots(1, 2, width_ratios=[side, 2.8])
  _draw_pair_map(figure, axes, record, ranked, side)
  _draw_ranking(beside, record, shown, labels)
  return figure


def _draw_pair_map(figure, axes, record: Row, ranked: Sequence[Row], side: float) -> None:
  sets, names = search_record.by_units(record), search_record.unit_names(record)
  cells = {}
  for i in range(len(names)):
    for j in range(i + 1):
      units = (names[j], names[i]) if j < i else (names[i],)
      if units in sets:
        cells[i, j] = sets[units]
  values = np.full((len(names), len(names)), np.nan)
  for place, tried in cells.items():
    values[place] = 100 * tried["mean"]
  image = chart_elements.heat_map(axes, values, *chart_elements.accuracy_colors(values))
  show_numbers, best = len(names) <= 10, ranked[0]
  near = False
  for (i, j), tried in cells.items():
    is_pair = i != j and tried["complete"]
    is_near = is_pair and tried is not best and search_record.undecided(tried, best)
    near |= is_near
    mark = chart_elements.DOT if is_near else "" if tried["complete"] else "\N{MULTIPLICATION SIGN}"
    text = f"{values[i, j]:.1f}" if show_numbers else ""
    size = 5.5 if is_near else 8
    if show_numbers and mark:
      chart_elements.in_cell(axes, image, i - 0.17, j, values[i, j], text, fontsize=charts.SMALL)
      chart_elements.in_cell(axes, image, i + 0.24, j, values[i, j], mark, fontsize=size)
    else:
      chart_elements.in_cell(
        axes, image, i, j, values[i, j], text or mark, fontsize=charts.SMALL if text else size
      )
  row, column = (names.index(name) for name in reversed(best["units"]))
  chart_elements.outline(axes, row, column)
  chart_elements.unit_ticks(axes, names, side, bold=record["chosen"])
  chart_elements.row_ticks(axes, names, bold=record["chosen"])
  lines = ["framed: the best pair", "diagonal: one unit alone", "bold: units of the chosen set"]
  if near:
    lines.append(f"{chart_elements.DOT}  not told apart from the best pair")
  if any(not tried["complete"] for tried in cells.values()):
    lines.append("\N{MULTIPLICATION SIGN}  dropped by the race: fewer folds")
  axes.text(
    1.0,
    1.0,
    "\n".join(lines),
    transform=axes.transAxes,
    ha="right",
    va="top",
    fontsize=charts.SMALL,
    color=style.INK,
    linespacing=1.5,
  )
  chart_elements.color_bar(figure, image, axes, chart_elements.ACCURACY)


def _draw_ranking(axes, record: Row, shown: Sequence[Row], labels: Sequence[str]) -> None:
  """Sets from the best down, with intervals; those told apart from the first are grey."""
  for place, tried in enumerate(shown):
    color = chart_elements.QUIET if search_record.told_apart(tried, shown[0]) else COLOR
    chart_elements.mean(
      axes, place, search_record.estimate(tried), color=color, marker=MARKER,
      filled=tried["units"] == record["chosen"], cap=0.16, horizontal=True,
    )  # fmt: skip
  axes.set_yticks(
    range(len(shown)), [charts.plain(label) for label in labels], fontsize=charts.SMALL
  )
  axes.set_ylim(len(shown) - 0.4, -0.6)
  axes.set_xlabel(f"{chart_elements.ACCURACY}\n(axis does not start at 0)", fontsize=charts.SIZE)
  axes.set_title("the best pairs, 95 % intervals", fontsize=charts.SIZE, loc="left")
  charts.clean(axes, grid="x")
  axes.tick_params(axis="y", length=0)


def network(record: Row, *, most: int = 6) -> "Figure":
  """The blocks of the network, those of the chosen set coloured; below, sets it may not beat."""
  sets, certificate = search_record.by_units(record), record["certificate"]
  label = "chosen"
  if certificate and certificate["chosen"] == record["chosen"]:
    label += f", best: {search_record.chance_text(certificate['probability_best'])}"
  rows = [_block_row(record, sets, record["chosen"], label, COLOR)]
  for number, other in enumerate(search_record.in_doubt(certificate)[:most]):
    label = f"undecided, best: {search_record.chance_text(other['probability'])}"
    row = _block_row(record, sets, other["units"], label, _PALE)
    rows.append(block_strip.BlockRow(row.label, row.blocks, row.color, row.note, gap=number == 0))
  return block_strip.network(record["backbone"], rows)


def _block_row(
  record: Row, sets, units: Sequence[str], label: str, color: str
) -> block_strip.BlockRow:
  tried = sets.get(tuple(units))
  note = "" if tried is None else f"{words.parameters(tried['trained_params'])} trained"
  return block_strip.BlockRow(
    label, search_record.blocks(record, units) | {block_strip.HEAD}, color, note
  )


def cost(record: Row) -> "Figure":
  """Trainings, seconds and operations of the search, beside those of the plain one."""
  spent = record["cost"]
  figure = charts.new_figure(11, 1.9)
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
  scale, unit = search_record.flop_unit(record)
  flops = {"this search": spent["flops"] / scale, "plain search": spent["plain_flops"] / scale}
  ratio = search_record.flop_ratio(record)
  note = f" (plain: {ratio:.2g} times)" if ratio else ""
  _draw_bars(right, f"operations, {unit}{note}", flops, "{:,.3g}")
  return figure


def _draw_bars(
  axes, title: str, values: dict[str, float], form: str, second: str = chart_elements.QUIET
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
      fontsize=charts.SMALL,
      color=style.INK,
    )
  axes.set_yticks(range(len(values)), list(values), fontsize=charts.SIZE - 0.5)
  axes.set_ylim(len(values) - 0.5, -0.5)
  axes.set_xlim(0, 1.28 * max([*values.values(), 1e-9]))
  axes.set_title(title, fontsize=charts.SIZE, loc="left")
  charts.clean(axes, grid="x")
  axes.spines["left"].set_visible(False)
  axes.tick_params(axis="y", length=0)
  axes.locator_params(axis="x", nbins=4)
