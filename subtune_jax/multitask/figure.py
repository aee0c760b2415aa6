"""The plan of a multi-task network as a picture: what is shared, and where it forks."""

from collections.abc import Mapping
import itertools
from typing import TYPE_CHECKING

from subtune_jax.multitask import plan as plan_lib
from subtune_jax.report import charts, marks, style

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_SHARED, _AGAIN, _OWN = "#B5C7D9", "#E3E9EF", "#009E73"
_LEGEND = ((_SHARED, "frozen, before any fork"), (_OWN, "a task's own"), (_AGAIN, "frozen, again"))
_LEAST = 0.012  # of the width, for blocks that cost next to nothing
_HEIGHT, _GAP = 0.62, 0.006


def draw(plan: plan_lib.Plan, macs: Mapping[str, float]) -> "Figure":
  """The tree from the images at the left to the heads at the right.

  A box is one run of one unit, as wide as its share of the multiply-adds; a box that several tasks
  share stands between their rows.

  Args:
    plan: of a `MultiTask`.
    macs: multiply-adds of each unit.
  """
  from matplotlib import patches

  edges, rows = _edges(plan, macs), _rows(plan)
  lowest = min(rows)
  figure, (axes,) = charts.panels(1, 8.4, 1.5 + 0.42 * (1 - lowest))
  for i, node in enumerate(plan.nodes):
    left, right = edges[node.unit]
    for at in node.reads:
      if at is not None and rows[at] != rows[i]:
        x = edges[plan.nodes[at].unit][1] - _GAP
        axes.plot([x, left], [rows[at], rows[i]], color=style.MUTED, linewidth=1, zorder=0)
    box = (left, rows[i] - _HEIGHT / 2), right - left - _GAP, _HEIGHT
    axes.add_patch(patches.Rectangle(*box, color=_color(plan, i), linewidth=0))
  for task in plan.tasks:
    axes.text(1.015, rows[plan.leaf(task)], charts.plain(task), va="center", fontsize=charts.SMALL)
  _finish(axes, lowest, plan, edges)
  charts.legend(figure, [(marks.bar_key(color), label) for color, label in _LEGEND])
  return figure


def _color(plan: plan_lib.Plan, at: int) -> str:
  node = plan.nodes[at]
  if node.tuned or node.unit == plan_lib.HEAD:
    return _OWN
  while node.parent is not None:
    node = plan.nodes[node.parent]
    if node.tuned:
      return _AGAIN
  return _SHARED


def _edges(plan: plan_lib.Plan, macs: Mapping[str, float]) -> dict[str, tuple[float, float]]:
  """Unit -> left and right end of its boxes, from 0 to 1."""
  total = sum(macs[unit] for unit in plan.units)
  widths = [max(_LEAST, macs[unit] / total) for unit in plan.units]
  ends = [0.0, *itertools.accumulate(widths)]
  return {
    unit: (ends[i] / ends[-1], ends[i + 1] / ends[-1]) for i, unit in enumerate(plan.units)
  }  # fmt: skip


def _rows(plan: plan_lib.Plan) -> list[float]:
  """Height of each node: heads in a row each, in the order of the tree, others between theirs.

  What runs for nothing but frozen features that heads read too has a row below.
  """
  order = [
    task
    for segment in plan.segments()
    for task in segment.tasks
    if plan.nodes[segment.nodes[-1]].unit == plan_lib.HEAD
  ]
  row = {task: -float(i) for i, task in enumerate(order)}
  through: list[list[float]] = [[] for _ in plan.nodes]
  for task in plan.tasks:
    for i in plan.path(task):
      through[i].append(row[task])
  return [sum(own) / len(own) if own else -float(len(row)) for own in through]


def _finish(
  axes, lowest: float, plan: plan_lib.Plan, edges: Mapping[str, tuple[float, float]]
) -> None:
  axes.set_xlim(0, 1)
  axes.set_ylim(lowest - 0.6, 0.6)
  axes.set_yticks([])
  far = 0.0
  ticks: list[tuple[float, str]] = []
  for unit, (left, right) in edges.items():  # names that do not overlap
    middle = (left + right) / 2
    if not ticks or middle - far > 0.034:
      ticks.append((middle, unit))
      far = middle
  axes.set_xticks([x for x, _ in ticks], [charts.plain(unit) for _, unit in ticks], rotation=60,
                  ha="right", rotation_mode="anchor")  # fmt: skip
  axes.spines[:].set_visible(False)
  axes.tick_params(colors=style.INK, labelsize=charts.SMALL, length=2)
