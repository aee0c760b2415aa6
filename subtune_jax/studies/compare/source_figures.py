"""Which units a head on features of all units reads."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from subtune_jax.report import charts, style, words
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
  figure = charts.new_figure(min(max(7.5, 0.42 * len(names) + 1.5), 24), 5.2)
  above, below = figure.subplots(2, 1, sharex=True)
  rows = ((above, kept, "features kept", "{:,.0f}"),
          (below, shares, "share of the unit's, %", "{:.2g}"))  # fmt: skip
  for axes, values, label, form in rows:
    axes.bar(range(len(names)), values, width=0.8, color=color)
    for x, value in enumerate(values):
      if value:
        axes.annotate(form.format(value), (x, value), (0, 2), textcoords="offset points",
                      ha="center", fontsize=charts.SMALL, color=style.INK)  # fmt: skip
    axes.set_ylim(0, 1.15 * max(max(values), 1e-9))
    axes.set_ylabel(label, fontsize=charts.SIZE)
    charts.clean(axes)
  labels = [charts.plain(words.shorten(name, 30)) for name in names]
  below.set_xticks(range(len(names)), labels, rotation=90, fontsize=charts.SMALL)
  below.tick_params(axis="x", length=0)
  return figure


def chosen_text(selection: Mapping[str, Any]) -> str:
  """What validation chose, as a sentence."""
  return (
    f"{words.count(int(selection['kept']), 'feature')}, {100 * selection['fraction']:g} % of all, "
    f"ranked at a strength of {selection['strength']:g}, chosen on the validation split."
  )
