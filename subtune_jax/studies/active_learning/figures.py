"""The figures of a study of active learning, drawn from its record."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from subtune_jax.report import chart_elements, charts, estimate, style
from subtune_jax.studies.active_learning import saved as saved_lib

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Row = Mapping[str, Any]
_LIKE = {  # colours and markers that readers with the common colour blindnesses tell apart
  "random": "lp", "margin": "lp_ft", "entropy": "ft", "coreset": "subtuning", "badge": "auto_rgn",
}  # fmt: skip


def look(rules: Sequence[str]) -> dict[str, tuple[str, Any]]:
  """Colour and marker of each rule."""
  names = [_LIKE.get(rule, rule) for rule in rules]
  colors, markers = style.colors(names), style.markers(names)
  return {rule: (colors[n], markers[n]) for rule, n in zip(rules, names, strict=True)}


def label_axis(axes: "Axes", totals: Sequence[int]) -> None:
  """A logarithmic axis with a tick at every number of labels."""
  from matplotlib import ticker

  room = (totals[-1] / totals[0]) ** 0.08
  axes.set_xscale("log")
  axes.xaxis.set_minor_locator(ticker.NullLocator())
  axes.set_xticks(totals, [f"{total:,}" for total in totals])
  axes.set_xlim(totals[0] / room, totals[-1] * room)


def curves(record: Row) -> "Figure":
  """Test accuracy against the number of labels: a panel per learner, a line per rule."""
  totals, looks = record["totals"], look(list(record["rules"]))
  count = len(record["methods"])
  figure = charts.new_figure(max(9.5, 1.0 + 3.4 * count), 4.4)
  panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
  whole = totals[-1] / totals[0]
  for axes, method in zip(panels, record["methods"], strict=True):
    for index, row in enumerate(method["rules"]):
      color, marker = looks[row["rule"]]
      dodge = whole ** (0.014 * (index - (len(looks) - 1) / 2))
      xs = [point["total"] * dodge for point in row["points"]]
      axes.plot(xs, [100 * p["mean"] for p in row["points"]], color=color, linewidth=1.5, zorder=2)
      for x, point in zip(xs, row["points"], strict=True):
        value = estimate.Estimate(point["mean"], point["low"], point["high"])
        chart_elements.mean(axes, x, value, color=color, marker=marker, filled=True, size=5, cap=0)
    axes.set_title(charts.plain(method["title"]), fontsize=charts.SIZE)
    label_axis(axes, totals)
    charts.clean(axes)
  panels[0].set_ylabel("test accuracy, %", fontsize=charts.SIZE)
  figure.supxlabel("labels (logarithmic)", fontsize=charts.SIZE)
  entries = [
    (chart_elements.point_entry(*looks[rule], filled=True), title)
    for rule, title in record["rules"].items()
  ]
  chart_elements.legend(figure, entries)
  return figure


def saved(record: Row) -> "Figure | None":
  """Labels that each rule saves against the reference at equal accuracy, a group per learner."""
  rules = [rule for rule in record["rules"] if rule != saved_lib.REFERENCE]
  if not rules:
    return None
  looks = look(list(record["rules"]))
  names = [method["title"] for method in record["methods"]]
  figure = charts.new_figure(7.5, 1.3 + 0.28 * len(names) * (len(rules) + 1))
  axes = figure.add_subplot()
  axes.axvline(0, color=looks[saved_lib.REFERENCE][0], linewidth=1.6, zorder=1)
  places = []
  for group, method in enumerate(record["methods"]):
    top = group * (len(rules) + 1)
    places.append(top + (len(rules) - 1) / 2)
    for row in method["rules"]:
      if row["saved"] is None:
        continue
      value = estimate.Estimate(row["saved"]["mean"], row["saved"]["low"], row["saved"]["high"])
      color, marker = looks[row["rule"]]
      decided = value.verdict != estimate.UNDECIDED
      at = top + rules.index(row["rule"])
      chart_elements.mean(
        axes, at, value, color=color, marker=marker, filled=decided, size=6, horizontal=True
      )
  axes.set_yticks(places, [charts.plain(name) for name in names])
  axes.invert_yaxis()
  axes.set_xlabel("labels saved at equal accuracy, %", fontsize=charts.SIZE)
  charts.clean(axes, grid="x")
  level = chart_elements.level_entry(looks[saved_lib.REFERENCE][0], "-")
  entries = [(level, f"{record['rules'][saved_lib.REFERENCE]}: the zero")]
  entries += [
    (chart_elements.point_entry(*looks[rule], filled=True), record["rules"][rule]) for rule in rules
  ]
  entries.append((chart_elements.point_entry(style.INK, "o", filled=False), "hollow: undecided"))
  chart_elements.legend(figure, entries)
  return figure
