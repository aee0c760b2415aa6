"""What a search predicted without training: sentences, a table and figures, from its record."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from subtune_jax.report import charts, document, marks, style, words
from subtune_jax.report.document import Cell, Section, Table, Text
from subtune_jax.studies import fields
from subtune_jax.studies.search import figures as search_figures
from subtune_jax.studies.search import record as search_record

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Row = search_record.Row
_MOST = 10  # sets of the table
_NAMED = 4  # points of the figure with a name
_NOTE = (
  "Predicted by kernel regression on gradients of the frozen network, fitted on the training part "
  "of each fold and scored on what it holds out; no block was trained. A training of few epochs at "
  "one learning rate often gains less than is predicted: read the order of the sets, and their "
  "differences, before the numbers."
)


def view(record: Row) -> Row:
  """The predicted sets as the record of a search: what figures and tables of trained sets read."""
  found = record["predicted"]
  return {
    **record, "sets": found["sets"], "certificate": found["certificate"],
    "chosen": found["chosen"], "searches": [],
  }  # fmt: skip


def headline(record: Row) -> list[str]:
  """The predicted set, its gain over the head alone, and what it took."""
  found, own = record["predicted"], view(record)
  sets, names = search_record.by_units(own), search_record.unit_names(record)
  name = search_record.set_name(found["chosen"], names)
  chosen, head = sets[tuple(found["chosen"])], sets[()]
  seconds = found["kernel_seconds"] + found["compile_seconds"] + found["fit_seconds"]
  if not found["chosen"]:
    first = (
      f"Predicted without training: the head alone ({words.percent(head['mean'])} %). No block is "
      "predicted to earn its place."
    )
  else:
    gain = words.difference(search_record.difference(chosen, head))
    first = (
      f"Predicted without training: {name}, with the head: {words.percent(chosen['mean'])} % on "
      f"held-out images, {gain} points against the head alone "
      f"({words.percent(head['mean'])} %)."
    )
  second = (
    f"{len(found['sets']):,} sets in {words.duration(seconds)}: "
    f"{words.duration(found['kernel_seconds'])} for the gradients of "
    f"{record['data']['num_examples']:,} images by {words.count(found['probes'], 'random probe')}, "
    f"{words.duration(found['compile_seconds'])} of compiling, "
    f"{words.duration(found['fit_seconds'])} for the fits."
  )
  return [first, *_next(record, found["chosen"]), second]


def _next(record: Row, chosen: Sequence[str]) -> list[str]:
  """What a person types to train the set."""
  own = {unit["name"]: unit["blocks"] for unit in record["units"]}
  blocks = ",".join(f"'{block}'" for name in chosen for block in own[name])
  if not blocks or record["sets"]:
    return []
  return [
    f"To train it beside the other methods: a comparison of this data (configs/compare.py, "
    f'configs/my_data.py) with --config.subtuning.blocks="({blocks},)".'
  ]


def section(record: Row, drawn: Mapping[str, document.Figure]) -> Section:
  """The table of the best predicted sets, beside what they scored when they were trained."""
  own, trained = view(record), search_record.by_units(record)
  sets, names = search_record.by_units(own), search_record.unit_names(record)
  head = sets[()]
  ranked = sorted(own["sets"], key=lambda tried: -tried["mean"])
  rows = []
  for place, tried in enumerate(ranked):
    units = tuple(tried["units"])
    if place >= _MOST and units and units != tuple(own["chosen"]):
      continue
    is_chosen = units == tuple(own["chosen"])
    name = Cell(
      search_record.set_name(units, names), ("chosen",) if is_chosen else (),
      tone="best" if is_chosen else "", color=search_figures.COLOR if is_chosen else "",
      plain=("> " if is_chosen else "") + search_record.set_name(units, names),
    )  # fmt: skip
    gain = document.difference(search_record.difference(tried, head)) if units else Cell("")
    row = [
      name,
      document.interval(fields.estimate(tried)),
      gain,
      words.parameters(tried["trained_params"]),
    ]
    if trained:
      known = trained.get(units)
      row.append(document.interval(fields.estimate(known)) if known and known["complete"] else "")
    rows.append(row)
  header = [
    "Set of blocks", "Predicted accuracy, %", "Against the head, points",
    Cell("Parameters trained", plain="trained"),
  ]  # fmt: skip
  parts: list[document.Part] = [Table(header + (["When trained"] if trained else []), rows)]
  statistics = record["predicted"]["statistics"]
  note = _NOTE
  if statistics == "candidate":
    note += (
      " The head of a set reads features with the set's own BatchNorm statistics of the images."
    )
  elif statistics == "images":
    note += " BatchNorm ran on the statistics of these images, in all blocks, the head alone too."
  return Section("Predicted without training", [*parts, Text(note), *drawn.values()])


def figures(record: Row) -> dict[str, document.Figure]:
  """The predicted profile, and predicted against trained accuracy where both are there."""
  drawn = [
    (
      "predicted", "Predicted accuracy by block", search_figures.profile(view(record)),
      "Predicted held-out accuracy of each unit trained alone with the head, with intervals.",
      "One unit and the head, from gradients; nothing was trained. Points: means, with 95 % "
      "intervals; dots: single folds. Line: the head alone. Green columns: units of the predicted "
      "set. Bars, from zero: parameters of each unit.",
    ),
    (
      "predicted_trained", "Predicted against trained", against_trained(record),
      "Scatter of the trained accuracy of sets over the predicted one.",
      "A point for each set that was both predicted and trained, in mean accuracy over the same "
      "folds; filled: the chosen set. Dashes: equality. Intervals are in the tables.",
    ),
  ]  # fmt: skip
  return {figure.name: figure for figure in document.rendered(drawn)}


def against_trained(record: Row) -> "Figure | None":
  """Trained accuracy over predicted accuracy, a point a set; None where nothing was trained."""
  trained = search_record.by_units(record)
  both = [
    (predicted, trained[tuple(predicted["units"])])
    for predicted in record["predicted"]["sets"]
    if tuple(predicted["units"]) in trained and trained[tuple(predicted["units"])]["complete"]
  ]
  if len(both) < 2:
    return None
  head = next((pair for pair in both if not pair[0]["units"]), None)
  zero = [side["mean"] for side in head] if head else [0.0, 0.0]
  points = [(100 * (p["mean"] - zero[0]), 100 * (t["mean"] - zero[1]), t) for p, t in both]
  figure, (axes,) = charts.panels(1, 7.2, 4.6)
  low, high = min(y for _, y, _ in points), max(y for _, y, _ in points)
  ends = [min(x for x, *_ in points), max(x for x, *_ in points)]
  axes.plot(ends, ends, color=marks.QUIET, linestyle=style.DASHED, zorder=0)
  best = sorted((y for _, y, _ in points), reverse=True)[: _NAMED + 1][-1]
  names = search_record.unit_names(record)
  for x, y, tried in points:
    color = search_figures.COLOR if tried["units"] else search_figures.HEAD_COLOR
    chosen = tried["units"] == record["chosen"]
    marks.point(axes, x, y, color, search_figures.MARKER, filled=chosen, size=7)
    if y > best or not tried["units"]:
      label = words.shorten(search_record.set_name(tried["units"], names), 28)
      charts.note(axes, label, (x, y), (7, -3))
  room = 0.08 * max(high - low, 1.0)
  axes.set_ylim(low - room, high + room)
  what = "gain over the head alone, points" if head else "accuracy, %"
  axes.margins(x=0.14)
  charts.label(axes, x=f"predicted {what}", y=f"trained {what}")
  return figure
