"""Accuracy of the sets of a search against what each adds to the inference of a shared backbone.

The figure of SubTuning's section on multi-task inference (arXiv 2302.06354): a set forks the
network at its first tuned block, and all that comes after runs once more.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from subtune_jax.report import block_strip, charts, marks, style, words
from subtune_jax.studies import fields
from subtune_jax.studies.search import figures
from subtune_jax.studies.search import record as search_record

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Row = search_record.Row
_SET = (figures.COLOR, figures.MARKER, "chosen set")


def draw(record: Row) -> "Figure | None":
  """All sets that were trained on every fold; the best within each cost are joined and named."""
  sets, names = search_record.by_units(record), search_record.unit_names(record)
  whole = [tried for tried in record["sets"] if tried["complete"]]
  if len(whole) < 2:
    return None
  figure, (axes,) = charts.panels(1, 9.5, 4.6)
  best, costs = frontier(record, whole), [_cost(record, tried) for tried in whole]
  axes.plot(costs, [100 * tried["mean"] for tried in whole], ".", color=figures.COLOR, alpha=0.4,
            markersize=5, markeredgewidth=0, zorder=1)  # fmt: skip
  path = [(_cost(record, tried), 100 * tried["mean"]) for tried in best]
  axes.plot(*zip(*path, strict=True), color=style.MUTED, linewidth=1, zorder=1.5)
  looks = _looks(names, tuple(record["chosen"]))
  named = [sets[units] for units in looks if units in sets]
  marked = [*best, *(tried for tried in named if tried not in best)]
  for tried in marked:
    color, marker, _ = looks.get(tuple(tried["units"]), _SET)
    value, filled = fields.estimate(tried), tried in named
    marks.mean(axes, _cost(record, tried), value, color, marker, filled=filled)
  for number, place in enumerate(path, start=1):
    charts.note(axes, number, place, (7, -4))
  charts.label(axes, x=_axis(record), grid="both")
  charts.accuracy_axis(axes, figures.all_values(marked, folds=False))
  axes.set_xlim(-0.03 * max(costs), 1.05 * max(costs))
  entries = [(marks.key(color, marker), title)
             for units, (color, marker, title) in looks.items() if units in sets]  # fmt: skip
  other = marks.key(figures.COLOR, figures.MARKER, filled=False)
  charts.legend(figure, [*entries, (other, "the best at its cost")])
  return figure


def _looks(names: tuple[str, ...], chosen: tuple[str, ...]) -> dict[tuple[str, ...], tuple]:
  """Colour, marker and title of the sets that are filled: head, all units, the chosen one."""
  ends = {
    (): (figures.HEAD_COLOR, "s", "head alone"),
    names: (figures.ALL_COLOR, "o", "all units (full fine-tuning)"),
  }
  return ends | {chosen: _SET} | ends


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
