"""The figures of a search for the units to train, drawn from its record.

Every function returns a matplotlib figure, or None where the record has nothing for it. One
colour has one meaning: black the head alone, orange all units (full fine-tuning), green SubTuning.
"""

from collections.abc import Sequence
import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import block_strip, charts, estimate, heat_map, marks, style, words
from subtune_jax.studies import fields
from subtune_jax.studies.search import record as search_record

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Row = search_record.Row
HEAD_COLOR = style.METHOD_COLORS["lp"]
ALL_COLOR = style.METHOD_COLORS["ft"]
COLOR, MARKER = style.looks(["subtuning"])["subtuning"]
_DROPPED = "#8A8A8A"
_PALE = "#8CCFBA"  # SubTuning, less so
_TIMES = "\N{MULTIPLICATION SIGN}"
# All are SubTuning: one hue, told apart by lightness and marker.
_WINDOW_LOOKS = ((COLOR, MARKER), ("#003D2E", "o"), ("#5FC2A5", "s"), (style.MUTED, "D"))


def references(
  axes: "Axes", head: estimate.Estimate | None, everything: estimate.Estimate | None
) -> list[charts.Entry]:
  """Lines of the head alone and of all units where they were tried; their legend entries."""
  entries = []
  for value, color, dashes, title in (
    (head, HEAD_COLOR, style.DASHED, "head alone"),
    (everything, ALL_COLOR, "-", "all units (full fine-tuning)"),
  ):
    if value is not None:
      marks.level(axes, value, color, dashes)
      entries.append((marks.key(color, dashes=dashes), title))
  return entries


def _labelled_references(axes, sets, names) -> list[charts.Entry]:
  """The same of a search, with the accuracies in the legend."""
  values = [fields.estimate(sets[units]) if units in sets else None for units in ((), names)]
  known = [value for value in values if value is not None]
  return [
    (handle, f"{title}: {words.percent(value.mean)} %")
    for (handle, title), value in zip(references(axes, *values), known, strict=True)
  ]


def all_values(entries: Sequence[Row], *, folds: bool = True) -> list[float]:
  """Accuracies of sets with the ends of their intervals and, if wanted, those of the folds."""
  values = charts.ends(map(fields.estimate, entries))
  if folds:
    values += [accuracy for entry in entries for accuracy in search_record.folds(entry)]
  return values


def profile(record: Row) -> "Figure | None":
  """Accuracy of each unit trained alone (with the head), and its parameters below."""
  sets, everything = search_record.by_units(record), search_record.unit_names(record)
  alone = {name: sets[name,] for name in everything if (name,) in sets}
  if not alone:
    return None
  # A greedy search tries few of the ranks alone.
  names, chosen = tuple(alone) if record.get("lora") else everything, record["chosen"]
  width = charts.page_width(len(names))
  figure = charts.new_figure(width, 5.0 + charts.label_room(names))
  axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1.15])
  entries = _labelled_references(axes, sets, everything)
  for i, name in enumerate(names):
    if name in chosen:
      axes.axvspan(i - 0.5, i + 0.5, color=COLOR, alpha=0.1, linewidth=0, zorder=0)
    if name in alone:  # a race drops some
      look = (COLOR, MARKER) if alone[name]["complete"] else (_DROPPED, "x")
      marks.fold_dots(axes, i, search_record.folds(alone[name]))
      marks.mean(axes, i, fields.estimate(alone[name]), *look, filled=name in chosen)
  shown = [*alone.values(), *(sets[units] for units in ((), everything) if units in sets)]
  charts.label(axes)
  charts.accuracy_axis(axes, all_values(shown))
  axes.tick_params(axis="x", length=0, labelbottom=False)
  params = {unit["name"]: unit["params"] for unit in record["units"] if unit["name"] in names}
  _draw_params(below, params, chosen)
  charts.unit_ticks(below, names, width - 1.0, bold=chosen)
  axes.set_xlim(-0.6, len(names) - 0.4)
  charts.legend(figure, entries + _profile_entries(record, alone))
  return figure


def _profile_entries(record: Row, alone) -> list[charts.Entry]:
  entries, chosen = [], record["chosen"]
  if any(name in chosen for name in alone):
    entries.append((marks.key(COLOR, MARKER), "unit of the chosen set"))
  if any(tried["complete"] and name not in chosen for name, tried in alone.items()):
    entries.append((marks.key(COLOR, MARKER, filled=False), "other unit"))
  gone = {bool(t.get("diverged")) for t in alone.values() if not t["complete"]}
  if gone:
    names = ["diverged" if diverged else "dropped by the race" for diverged in sorted(gone)]
    entries.append((marks.key(_DROPPED, "x", filled=False), ", or ".join(names)))
  if record["data"]["num_folds"] > 1:
    entries.append((marks.key(marks.FOLD, "o", size=3.2), "single folds"))
  return entries


def _draw_params(axes, counts: dict[str, int], chosen: Sequence[str]) -> None:
  """Bars from zero with their numbers."""
  upright = len(counts) > 14
  for i, (name, count) in enumerate(counts.items()):
    params_bar(axes, i, count, COLOR if name in chosen else marks.QUIET, upright=upright)
  axes.set_ylim(0, max(*counts.values(), 1) * (2.0 if upright else 1.35))
  bare(axes, "parameters\nof the unit")


def params_bar(
  axes: "Axes", at: float, count: int, color: str, *, upright: bool = False, **how
) -> None:
  """A bar of parameters with their number."""
  turn = {"rotation": 90 if upright else 0, "size": charts.SMALL - 1}
  marks.bar(axes, at, count, 0.62, color, text=words.parameters(int(count)), **turn, **how)


def bare(axes: "Axes", label: str) -> None:
  """Axes of bars with numbers: no scale."""
  charts.label(axes, y=label, grid="")
  axes.set_yticks([])
  axes.spines["left"].set_visible(False)
  axes.tick_params(axis="x", length=0)


def windows(record: Row) -> "Figure | None":
  """Accuracy of units in a row, a series per width, each at the middle of its window."""
  sets, names = search_record.by_units(record), search_record.unit_names(record)
  series = _window_series(record, sets, names)
  if not set(series) - {1}:
    return None
  width = charts.page_width(len(names))
  figure, (axes,) = charts.panels(1, width, 4.0 + charts.label_room(names))
  entries = _labelled_references(axes, sets, names)
  for number, (window, found) in enumerate(series.items()):
    color, marker = _WINDOW_LOOKS[number % len(_WINDOW_LOOKS)]
    shift = 0.13 * (number - (len(series) - 1) / 2)
    xs, ys = [x + shift for x in found], [100 * tried["mean"] for tried in found.values()]
    axes.plot(xs, ys, color=color, linewidth=1.4, alpha=0.8, zorder=2)
    for x, tried in zip(xs, found.values(), strict=True):
      chosen = tried["units"] == record["chosen"]
      marks.mean(axes, x, fields.estimate(tried), color, marker, filled=chosen, size=6)
    title = "1 unit" if window == 1 else f"{window} units in a row"
    entries.append((marks.key(color, marker, filled=False), title))
  shown = [tried for found in series.values() for tried in found.values()]
  shown += [sets[units] for units in ((), names) if units in sets]
  charts.label(axes, x="unit, or the middle of the window")
  charts.accuracy_axis(axes, all_values(shown, folds=False))
  charts.unit_ticks(axes, names, width - 1.0, bold=record["chosen"])
  axes.set_xlim(-0.6, len(names) - 0.4)
  charts.legend(figure, entries)
  return figure


def _window_series(record: Row, sets, names) -> dict[int, dict[float, Row]]:
  """Width of a window -> the middle of each -> its set, of those tried; single units with them."""
  widths = {search["width"] for search in search_record.searches(record, search_record.WINDOWS)}
  series = {}
  for window in sorted({1, *widths}) if widths else ():
    found = [(i, names[i : i + window]) for i in range(len(names) - window + 1)]
    series[window] = {i + (window - 1) / 2: sets[units] for i, units in found if units in sets}
  return {window: found for window, found in series.items() if found}


def pairs(record: Row) -> "Figure | None":
  """Heat map of all pairs, single units on the diagonal; beside it the best pairs in full."""
  ranked = search_record.ranked_pairs(record)
  if not search_record.searches(record, search_record.PAIRS) or not ranked:
    return None
  names = search_record.unit_names(record)
  side = min(max(0.4 * len(names), 4.6), 7.6)
  shown = ranked[: min(len(ranked), 8 if side < 5 else 14)]
  labels = [search_record.set_name(tried["units"], names) for tried in shown]
  width = charts.text_width(names) + side + 1.25 + charts.text_width(labels) + 3.2
  figure = charts.new_figure(width, side + charts.label_room(names) + 0.4)
  axes, beside = figure.subplots(1, 2, width_ratios=[side, 2.8])
  _draw_pair_map(axes, record, ranked, side)
  _draw_ranking(beside, record, shown, labels)
  return figure


def _draw_pair_map(axes, record: Row, ranked: Sequence[Row], side: float) -> None:
  sets, names, best = search_record.by_units(record), search_record.unit_names(record), ranked[0]
  values = np.full((len(names), len(names)), np.nan)
  pairs = {(i, j): (names[j], names[i]) if j < i else (names[i],)
           for i in range(len(names)) for j in range(i + 1)}  # fmt: skip
  cells = {place: sets[units] for place, units in pairs.items() if units in sets}
  for place, tried in cells.items():
    values[place] = 100 * tried["mean"]
  image = heat_map.draw(axes, values, *heat_map.accuracy_colors(values))
  notes = {heat_map.DOT: "not told apart from the best pair",
           _TIMES: "dropped by the race: fewer folds"}  # fmt: skip
  found = set()
  for (i, j), tried in cells.items():
    mark = "" if tried["complete"] else _TIMES
    if i != j and not mark and tried is not best and search_record.undecided(tried, best):
      mark = heat_map.DOT
    found.add(mark)
    numbered = len(names) <= 10
    if numbered:
      shift = 0.17 if mark else 0
      heat_map.write(axes, image, i - shift, j, values[i, j], f"{values[i, j]:.1f}")
    if mark:
      size = 5.5 if mark == heat_map.DOT else 8
      heat_map.write(axes, image, i + 0.24 * numbered, j, values[i, j], mark, size)
  heat_map.outline(axes, *(names.index(name) for name in reversed(best["units"])))
  charts.unit_ticks(axes, names, side, bold=record["chosen"])
  charts.row_ticks(axes, names, bold=record["chosen"])
  lines = ["framed: the best pair", "diagonal: one unit alone", "bold: units of the chosen set"]
  lines += [f"{mark}  {text}" for mark, text in notes.items() if mark in found]
  corner = {"xycoords": "axes fraction", "ha": "right", "va": "top", "linespacing": 1.5}
  charts.note(axes, "\n".join(lines), (1, 1), **corner)
  heat_map.color_bar(image, [axes], charts.ACCURACY)


def _draw_ranking(axes, record: Row, shown: Sequence[Row], labels: Sequence[str]) -> None:
  """Sets from the best down, with intervals; those told apart from the first are grey."""
  for place, tried in enumerate(shown):
    color = marks.QUIET if search_record.told_apart(tried, shown[0]) else COLOR
    value, chosen = fields.estimate(tried), tried["units"] == record["chosen"]
    marks.mean(axes, place, value, color, MARKER, filled=chosen, flat=True)
  charts.row_ticks(axes, labels, longest=charts.LONGEST_SET)
  label = f"{charts.ACCURACY}\n(axis does not start at 0)"
  charts.label(axes, "the best pairs, 95 % intervals", x=label, grid="x")


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
    rows.append(dataclasses.replace(row, gap=number == 0))
  return block_strip.network(record["backbone"], rows)


def _block_row(
  record: Row, sets, units: Sequence[str], label: str, color: str
) -> block_strip.BlockRow:
  tried = sets.get(tuple(units))
  note = "" if tried is None else f"{words.parameters(tried['trained_params'])} trained"
  ranks = {}
  for unit in units if record.get("lora") else ():
    _, rank = search_record.unit_and_rank(unit)
    ranks |= dict.fromkeys(search_record.blocks(record, [unit]), rank)
  blocks = search_record.blocks(record, units) | {block_strip.HEAD}
  return block_strip.BlockRow(label, blocks, color, note, marks=ranks)


def cost(record: Row) -> "Figure":
  """Trainings, seconds and operations of the search, beside those of the plain one."""
  spent, (scale, unit) = record["cost"], search_record.flop_unit(record)
  ratio = search_record.flop_ratio(record)
  note = f" (plain: {ratio:.2g} times)" if ratio else ""
  ours, plain = "this search", "plain search"
  parts = (
    ("trainings", {ours: spent["trainings"], plain: spent["plain_trainings"]}, "{:,.0f}"),
    ("seconds", {"trainings": spent["seconds"], "compiling": spent["compile_seconds"]}, "{:,.0f}"),
    (f"operations, {unit}{note}",
     {ours: spent["flops"] / scale, plain: spent["plain_flops"] / scale}, "{:,.3g}"),
  )  # fmt: skip
  figure, panels = charts.panels(3, 11, 1.9)
  for axes, (title, values, form) in zip(panels, parts, strict=True):
    colors = (COLOR, marks.QUIET if plain in values else _PALE)
    for place, (value, color) in enumerate(zip(values.values(), colors, strict=True)):
      marks.bar(axes, place, value, 0.62, color, text=form.format(value), flat=True)
    charts.row_ticks(axes, list(values))
    axes.set_xlim(0, 1.28 * max(*values.values(), 1e-9))
    charts.label(axes, title, grid="x")
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=4)
  return figure
