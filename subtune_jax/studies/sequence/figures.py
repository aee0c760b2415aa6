"""The figure of tasks in sequence, drawn from its record."""

from typing import TYPE_CHECKING, Any

import numpy as np

from subtune_jax.report import charts, marks, style

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Row = dict[str, Any]


def over_time(record: Row) -> "Figure":
  """Test accuracy of each task from its training on, a panel per task, a line per method."""
  tasks = [task["name"] for task in record["tasks"]]
  titles = {method["name"]: method["title"] for method in record["methods"]}
  looks, count = style.looks(list(titles)), len(tasks)
  figure, panels = charts.panels(count, 1.2 + 1.75 * count, 2.9, sharey=True)
  for at, (task, axes) in enumerate(zip(tasks, panels, strict=True)):
    for method in record["methods"]:
      values = np.array([[100 * row[at] for row in method["matrix"][at:]]])
      marks.lines(axes, range(at + 1, count + 1), values, *looks[method["name"]])
    axes.set_xlim(0.7, count + 0.3)
    axes.set_xticks(range(1, count + 1))
    charts.label(axes, task.replace("/", "/\n"), y="" if at else "test accuracy, %")
  figure.supxlabel("tasks learnt so far", fontsize=charts.SIZE)
  charts.legend(figure, marks.keys(looks, titles, dashes="-"))
  return figure
