"""Accuracy of the sets of a search against what each adds to the inference of a shared backbone.

The figure of SubTuning's section on multi-task inference (arXiv 2302.06354): a set forks the
network at its first tuned block, and all that comes after runs once more.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from subtune_jax.report import block_strip, chart_elements, charts, style, words
from subtune_jax.studies.search import figures
from subtune_jax.studies.search import record as search_record

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Row = search_record.Row


def draw(record: Row) -> "Figure | None":
  """All sets that were trained on every fold; the best within each cost are joined and named."""
  sets, names = search_record.by_units(record), search_record.unit_names(record)
  whole = [tried for tried in record["sets"] if tried["complete"]]
  if len(whole) < 2:
    return None
  figure = charts.new_figure(9.5, 4.6)
  axes = figure.subplots()
  best, chosen = frontier(record, whole), sets.get(tuple(record["chosen"]))
  axes.plot(
    [_cost(record, tried) for tried in whole], [100 * tried["mean"] for tried in whole],
    ".", color=figures.COLOR, alpha=0.4, markersize=5, markeredgewidth=0, zorder=1,
  )  # fmt: skip
  axes.plot(
    [_cost(record, tried) for tried in best], [100 * tried["mean"] for tried in best],
    color=style.MUTED, linewidth=1, zorder=1.5,
  )  # fmt: skip
  ends = [sets[units] for units in ((), names) if units in sets]
  marked = [*best, *(x for x in (*ends, chosen) if x is not None and x not in best)]
  for tried in marked:
    color, marker = _look(tried, names)
    chart_elements.mean(
      axes, _cost(record, tried), search_record.estimate(tried), color=color, marker=marker,
      filled=tried in ends or tried is chosen,
    )  # fmt: skip
  for number, tried in enumerate(best, start=1):
    axes.annotate(
      str(number), (_cost(record, tried), 100 * tried["mean"]), (7, -4),
      textcoords="offset points", fontsize=charts.SMALL, color=style.INK,
    )  # fmt: skip
  axes.set_xlabel(_axis(record), fontsize=charts.SIZE)
  chart_elements.accuracy_axis(axes, figures.all_values(marked, folds=False))
  most = max(_cost(record, tried) for tried in whole)
  axes.set_xlim(-0.03 * most, 1.05 * most)
  charts.clean(axes, grid="both")
  chart_elements.legend(figure, _entries(sets, names, tuple(record["chosen"])))
  return figure


def _look(tried: Row, names: Sequence[str]) -> tuple[str, str]:
  looks = {(): (figures.HEAD_COLOR, "s"), names: (figures.ALL_COLOR, "o")}
  return looks.get(tuple(tried["units"]), (figures.COLOR, figures.MARKER))


def frontier(record: Row, whole: Sequence[Row]) -> list[Row]:
  """The sets that none is both cheaper, or as cheap, and better than, by rising cost."""
  found: list[Row] = []
  for tried in sorted(whole, key=lambda own: (_cost(record, own), -own["mean"])):
    if not found or tried["mean"] > found[-1]["mean"]:
      found.append(tried)
  return found


def caption(record: Row) -> str:
  """What the figure shows."""
  by = "Milliseconds are of this machine, each block timed alone." if record.get("fork_ms") else (
    "Multiply-adds are counted; search.fork_batch=1 times them."
  )  # fmt: skip
  best = frontier(record, [tried for tried in record["sets"] if tried["complete"]])
  names = search_record.unit_names(record)
  named = [f"{i} {search_record.set_name(t['units'], names)}" for i, t in enumerate(best, start=1)]
  return (
    "A set forks the backbone at its first tuned block: all that comes after runs once more for "
    f"the new task. Dots: all sets. Line: the best of those that cost no more, {', '.join(named)}; "
    f"bars: 95 % intervals. {by}"
  )


def facts(record: Row) -> list[tuple[str, str]]:
  """The time of a fork, in a row of the facts of the run."""
  times = record.get("fork_ms")
  if not times:
    return []
  search = record["config"]["search"]
  first = search_record.unit_names(record)[0]
  text = f"{times[first]:.3g} ms at {first}, {times[block_strip.HEAD]:.3g} ms for a head alone"
  limit = f"; at most {search['max_fork_ms']:g} ms" if search["max_fork_ms"] else ""
  return [("A fork adds", f"{text}, {words.count(search['fork_batch'], 'image')} at a time{limit}")]


def _cost(record: Row, tried: Row) -> float:
  """Milliseconds, or millions of multiply-adds, of one more task."""
  times = record.get("fork_ms")
  if not times:
    return tried["fork_macs"] / 1e6
  return max(times[name] for name in (*tried["units"], block_strip.HEAD))


def _axis(record: Row) -> str:
  if not record.get("fork_ms"):
    return "millions of multiply-adds that one more task adds, an image"
  batch = words.count(record["config"]["search"]["fork_batch"], "image")
  return f"milliseconds that one more task adds to {batch}"


def _entries(sets, names, chosen):
  entries = []
  for units, color, marker, title in (
    ((), figures.HEAD_COLOR, "s", "head alone"),
    (names, figures.ALL_COLOR, "o", "all units (full fine-tuning)"),
    (chosen, figures.COLOR, figures.MARKER, "chosen set"),
  ):
    if units in sets and (title != "chosen set" or units not in ((), names)):
      entries.append((chart_elements.point_entry(color, marker, filled=True), title))
  other = chart_elements.point_entry(figures.COLOR, figures.MARKER, filled=False)
  return [*entries, (other, "the best at its cost")]
