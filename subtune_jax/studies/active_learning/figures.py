"""The figures of a study of active learning, drawn from its record."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from subtune_jax.report import charts, estimate, marks, style
from subtune_jax.studies.active_learning import saved as saved_lib

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Row = Mapping[str, Any]
_LIKE = {  # colours and markers that readers with the common colour blindnesses tell apart
  "random": "lp", "margin": "lp_ft", "entropy": "ft", "coreset": "subtuning", "badge": "auto_rgn",
}  # fmt: skip


def look(rules: Sequence[str]) -> dict[str, tuple[str, Any]]:
  """Colour and marker of each rule."""
  names = [_LIKE.get(rule, rule) for rule in rules]
  looks = style.looks(names)
  return {rule: looks[name] for rule, name in zip(rules, names, strict=True)}


def curves(record: Row) -> "Figure":
  """Test accuracy against the number of labels: a panel per learner, a line per rule."""
  totals, looks, count = record["totals"], look(list(record["rules"])), len(record["methods"])
  figure, panels = charts.panels(count, max(9.5, 1.0 + 3.4 * count), 4.4, sharey=True)
  for axes, method in zip(panels, record["methods"], strict=True):
    for index, row in enumerate(method["rules"]):
      color, marker = looks[row["rule"]]
      dodge = charts.dodge(totals, index, len(looks))
      xs = [point["total"] * dodge for point in row["points"]]
      axes.plot(xs, [100 * p["mean"] for p in row["points"]], color=color, linewidth=1.5, zorder=2)
      for x, point in zip(xs, row["points"], strict=True):
        value = estimate.Estimate(point["mean"], point["low"], point["high"])
        marks.mean(axes, x, value, color, marker, size=5)
    charts.log_axis(axes, totals)
    charts.label(axes, method["title"], y="test accuracy, %" if axes is panels[0] else "")
  figure.supxlabel("labels (logarithmic)", fontsize=charts.SIZE)
  charts.legend(figure, marks.keys(looks, record["rules"]))
  return figure


def saved(record: Row) -> "Figure | None":
  """Labels that each rule saves against the reference at equal accuracy, a group per learner."""
  rules = [rule for rule in record["rules"] if rule != saved_lib.REFERENCE]
  if not rules:
    return None
  looks, names = look(list(record["rules"])), [method["title"] for method in record["methods"]]
  zero, group = looks[saved_lib.REFERENCE][0], len(rules) + 1  # rows of a learner
  figure, (axes,) = charts.panels(1, 7.5, 1.3 + 0.28 * len(names) * group)
  axes.axvline(0, color=zero, linewidth=1.6, zorder=1)
  for number, method in enumerate(record["methods"]):
    for row in (row for row in method["rules"] if row["saved"] is not None):
      value = estimate.Estimate(row["saved"]["mean"], row["saved"]["low"], row["saved"]["high"])
      at, decided = number * group + rules.index(row["rule"]), value.verdict != estimate.UNDECIDED
      marks.mean(axes, at, value, *looks[row["rule"]], filled=decided, size=6, flat=True)
  places = [number * group + (len(rules) - 1) / 2 for number in range(len(names))]
  axes.set_yticks(places, [charts.plain(name) for name in names])
  axes.set_ylim(len(names) * group - 1.4, -0.6)
  charts.label(axes, x="labels saved at equal accuracy, %", grid="x")
  level = marks.key(zero, dashes="-"), f"{record['rules'][saved_lib.REFERENCE]}: the zero"
  hollow = marks.key(style.INK, "o", filled=False), "hollow: undecided"
  charts.legend(figure, [level, *marks.keys(looks, record["rules"], rules), hollow])
  return figure
