"""Which units a head on features of all units reads."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from subtune_jax.report import charts, marks, style, words
from subtune_jax.studies.compare import record as compare_record

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def sources(run: compare_record.Run, method: Mapping[str, Any]) -> "Figure":
  """The features that are kept, and their share, a bar for each unit from input to head.

  Args:
    run: the run.
    method: one of its record's methods, with a "selection".
  """
  units, color = method["selection"]["units"], style.colors(run.methods)[method["name"]]
  names, kept = [row["unit"] for row in units], [row["kept"] for row in units]
  shares = [100 * row["kept"] / row["features"] for row in units]
  figure, panels = charts.panels(
    2, min(max(7.5, 0.42 * len(names) + 1.5), 24), 2.6, per_row=1, sharex=True
  )
  rows = ((kept, "features kept", "{:,.0f}"), (shares, "share of the unit's, %", "{:.2g}"))
  for axes, (values, label, form) in zip(panels, rows, strict=True):
    for x, value in enumerate(values):
      marks.bar(axes, x, value, 0.8, color, text=form.format(value) if value else "")
    axes.set_ylim(0, 1.15 * max(*values, 1e-9))
    charts.label(axes, y=label)
  labels = [charts.plain(words.shorten(name, 30)) for name in names]
  axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=charts.SMALL)
  axes.tick_params(axis="x", length=0)
  return figure


def chosen_text(selection: Mapping[str, Any]) -> str:
  """What validation chose, as a sentence."""
  return (
    f"{words.count(int(selection['kept']), 'feature')}, {100 * selection['fraction']:g} % of all, "
    f"ranked at a strength of {selection['strength']:g}, chosen on the validation split."
  )
