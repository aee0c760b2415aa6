"""Table and page of a suite of tasks, such as VTAB-1k, from its record.

The record has a row per task, with the accuracy and the 95 % interval of every method, and scores
over the tasks, which are there only when all tasks are.
"""

from collections.abc import Mapping
import os
import pathlib
import textwrap
from typing import Any

from subtune_jax import files
from subtune_jax.report import html, terminal, words

Row = Mapping[str, Any]
PAGE = html.PAGE
NO_GROUP = "none"  # of tasks that are in no score
_INTERVALS = (
  "95 % intervals of a task by a paired bootstrap over its test images and seeds; with one seed "
  "they say nothing about another training. Those of a score add the tasks' intervals as "
  "independent errors. They leave out another training set of 1,000 images, another choice of the "
  "setting and another backbone."
)


def group_title(group: str) -> str:
  return "in no score" if group == NO_GROUP else group


def titles(record: Row) -> dict[str, str]:
  """Titles of the methods by name, in the order of the table."""
  return {m["name"]: m["title"] for row in record["tasks"][:1] for m in row["methods"]}


def standing(record: Row) -> str:
  """How much of the suite is there: "2 of 19 tasks are there, so no score is given ..."."""
  total, missing = record["num_tasks"], record["missing"]
  if not missing:
    return f"All {total} tasks are there."
  return (
    f"{total - len(missing)} of {total} tasks are there, so no score is given. Missing: "
    f"{', '.join(missing)}."
  )


def _cell(method: Row) -> str:
  half = (method["high"] - method["low"]) / 2
  return f"{words.percent(method['accuracy'])} ±{100 * half:4.1f}"


def task_line(row: Row) -> str:
  """A finished task in one line: the test accuracy of each method."""
  cells = ", ".join(
    f"{method['title']} {' '.join(_cell(method).split())}" for method in row["methods"]
  )
  return f"{row['task']}: {cells} (test accuracy in %, {row['num_test']:,} images)"


def format_table(record: Row, *, width: int = terminal.WIDTH) -> str:
  """The table of tasks and scores as plain text for a terminal of `width` columns."""
  if not record["tasks"]:
    return standing(record) + "\n"
  header = ["test accuracy, %", "group", "images", *titles(record).values()]
  rows = [
    [row["task"], group_title(row["group"]), f"{row['num_test']:,}", *map(_cell, row["methods"])]
    for row in record["tasks"]
  ]
  for score in record["scores"] or ():
    cells = [_cell(score["methods"][name]) for name in titles(record)]
    rows.append([score["title"], "", "", *cells])
  notes = [standing(record), f"± is half the width of the 95 % interval. {_seeds(record)}"]
  notes.append(_INTERVALS)
  text = [line for note in notes for line in textwrap.wrap(note, 100, subsequent_indent="  ")]
  return terminal.grid(header, rows, width) + "\n\n" + "\n".join(text) + "\n"


def _seeds(record: Row) -> str:
  numbers = sorted({row["num_seeds"] for row in record["tasks"]})
  return f"{' or '.join(map(str, numbers))} seed{'s' if numbers != [1] else ''} per method."


def _page_cell(method: Row, best: bool) -> str:
  css = ' class="best"' if best else ""
  low, high = words.percent(method["low"]), words.percent(method["high"])
  return (
    f"<span{css}>{words.percent(method['accuracy'])}</span><small>{low}\N{EN DASH}{high}</small>"
  )


def _setting_cell(method: Row) -> str:
  text = html.escape(
    f"{words.setting_name(method['setting'])} {words.setting_value(method['value'])}"
  )
  edge = '<small class="edge">! edge of grid</small>' if method["grid_edge"] else ""
  return text + edge


def _link(row: Row) -> str:
  return f'<a href="{html.escape(row["folder"])}/{PAGE}">{html.escape(row["task"])}</a>'


def _results(record: Row) -> str:
  rows = []
  for row in record["tasks"]:
    only = len(row["methods"]) > 1 and len(row["leaders"]) == 1
    cells = [_page_cell(m, only and m["name"] in row["leaders"]) for m in row["methods"]]
    rows.append([_link(row), group_title(row["group"]), f"{row['num_test']:,}", *cells])
  header = ["Test accuracy, %", "Group", "Test images", *html.swatched(titles(record))]
  note = (
    "<p>Bold: above every other method of the task by a difference whose interval excludes 0. "
    "Small: 95 % intervals. A task's name leads to its own report.</p>"
  )
  return f"<h2>Tasks</h2>{html.grid(header, rows, 'results')}{note}"


def _scores(record: Row) -> str:
  if not record["scores"]:
    return f"<h2>Scores</h2><p>{html.escape(standing(record))}</p>"
  rows = [
    [html.escape(score["title"]), *(_page_cell(score["methods"][m], False) for m in titles(record))]
    for score in record["scores"]
  ]
  grid = html.grid(["Mean accuracy, %", *html.swatched(titles(record))], rows, "results")
  return f"<h2>Scores</h2>{grid}"


def _choices(record: Row) -> str:
  rows = [[_link(row), *map(_setting_cell, row["methods"])] for row in record["tasks"]]
  header = ["Setting chosen on validation", *html.swatched(titles(record))]
  grid = html.grid(header, rows, "results")
  return f"<h2>Settings chosen</h2>{grid}"


def page(record: Row) -> str:
  """The whole page as text."""
  body = [
    f"<h1>{html.escape(record['title'])}</h1>",
    f'<p class="quiet">{html.escape(record["name"])}. {html.escape(standing(record))}</p>',
  ]
  if record["tasks"]:
    latest = max(row["created"] for row in record["tasks"])
    devices = sorted({row["devices"] for row in record["tasks"]})
    facts = [
      ("Command", f"<code>{html.escape(record['command'])}</code>"),
      ("Written", html.escape(latest)),
      ("Devices", html.escape("; ".join(devices))),
      ("Seeds", html.escape(_seeds(record))),
    ]
    body += [_results(record), _scores(record)]
    body += [f"<h3>What the intervals mean</h3><p>{html.escape(_INTERVALS)}</p>"]
    body += [_choices(record), f"<h2>The run</h2>{html.fact_list(facts)}"]
  return html.document(record["title"], [*body, html.settings(record["config"])])


def write_page(record: Row, workdir: str | os.PathLike) -> pathlib.Path:
  """Writes report.html into the suite's workdir; returns its path."""
  path = pathlib.Path(workdir) / PAGE
  files.write_atomically(path, page(record).encode("utf-8"))
  return path
