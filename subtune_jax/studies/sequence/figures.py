"""The figure of tasks in sequence, drawn from its record."""

from typing import TYPE_CHECKING, Any

from subtune_jax.report import charts, style

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Row = dict[str, Any]


def over_time(record: Row) -> "Figure":
  """Test accuracy of each task from its training on, a panel per task, a line per method."""
  tasks = [task["name"] for task in record["tasks"]]
  names = [method["name"] for method in record["methods"]]
  colors, markers = style.colors(names), style.markers(names)
  figure = charts.new_figure(1.2 + 1.75 * len(tasks), 2.9)
  panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
  for at, (task, axes) in enumerate(zip(tasks, panels, strict=True)):
    for method in record["methods"]:
      values = [100 * row[at] for row in method["matrix"][at:]]
      times = range(at + 1, len(tasks) + 1)
      look = {"color": colors[method["name"]], "marker": markers[method["name"]]}
      axes.plot(times, values, **look, markersize=5, linewidth=1.6)
    axes.set_title(charts.plain(task.replace("/", "/\n")), fontsize=charts.SMALL)
    axes.set_xlim(0.7, len(tasks) + 0.3)
    axes.set_xticks(range(1, len(tasks) + 1))
    charts.clean(axes)
  panels[0].set_ylabel("test accuracy, %", fontsize=charts.SMALL)
  figure.supxlabel("tasks learnt so far", fontsize=charts.SMALL)
  titles = {method["name"]: method["title"] for method in record["methods"]}
  charts.method_legend(figure, names, titles)
  return figure
