"""The report of a suite of tasks, such as VTAB-1k, from its record.

The record has a row per task, with the accuracy and the 95 % interval of every method, and scores
over the tasks, which are there only when all tasks are.
"""

import os

from subtune_jax.report import document as document_lib
from subtune_jax.report import estimate, html, words
from subtune_jax.report.document import Cell, Facts, Section, Table, Text
from subtune_jax.studies import fields, sections
from subtune_jax.studies.vtab import record as vtab_record

Record = vtab_record.Record
NO_GROUP = "none"  # of tasks that are in no score
_INTERVALS = (
  "95 % intervals of a task by a paired bootstrap over its test images and seeds; with one seed "
  "they say nothing about another training. Those of a score add the tasks' intervals as "
  "independent errors. They leave out another training set of 1,000 images, another choice of the "
  "setting and another backbone."
)
_BOLD = (
  "Bold: above every other method of the task by a difference whose interval excludes 0. Small: "
  "95 % intervals; ±: half of one."
)


def titles(record: Record) -> dict[str, str]:
  """Titles of the methods by name, in the order of the table."""
  return {m["name"]: m["title"] for row in record["tasks"][:1] for m in row["methods"]}


def standing(record: Record) -> str:
  """How much of the suite is there: "2 of 19 tasks are there, so no score is given ..."."""
  total, missing = record["num_tasks"], record["missing"]
  if not missing:
    return f"All {total} tasks are there."
  return (
    f"{total - len(missing)} of {total} tasks are there, so no score is given. Missing: "
    f"{', '.join(missing)}."
  )


def _estimate(method: fields.Accuracy) -> estimate.Estimate:
  return fields.estimate(method, "accuracy")


def task_line(row: vtab_record.Task) -> str:
  """A finished task in one line: the test accuracy of each method."""
  cells = ", ".join(f"{m['title']} {words.plus_minus(_estimate(m))}" for m in row["methods"])
  return f"{row['task']}: {cells} (test accuracy in %, {row['num_test']:,} images)"


def _link(row: vtab_record.Task) -> Cell:
  return Cell(row["task"], link=f"{row['folder']}/{html.PAGE}")


def _results(record: Record) -> Section:
  rows: list[list[Cell | str]] = []
  for row in record["tasks"]:
    group = "in no score" if row["group"] == NO_GROUP else row["group"]
    only = len(row["methods"]) > 1 and len(row["leaders"]) == 1
    cells = [
      document_lib.accuracy(_estimate(m), best=only and m["name"] in row["leaders"])
      for m in row["methods"]
    ]
    rows.append([_link(row), group, f"{row['num_test']:,}", *cells])
  names = document_lib.methods(titles(record)).values()
  table = Table(["Test accuracy, %", "Group", "Test images", *names], rows)
  leads = Text("A task's name leads to its own report.", page_only=True)
  return Section("Tasks", [table, Text(_BOLD), leads])


def _scores(record: Record) -> Section:
  names = document_lib.methods(titles(record))
  rows: list[list[Cell | str]] = [
    [score["title"], *(document_lib.accuracy(_estimate(score["methods"][m])) for m in names)]
    for score in record["scores"] or ()
  ]
  table = Table(["Mean accuracy, %", *names.values()], rows)
  return Section("Scores", [table] if rows else [Text(standing(record))])


def _settings(record: Record) -> Section:
  rows = [
    [_link(row), *(document_lib.setting(m["setting"], m["value"], at_edge=m["grid_edge"])
                   for m in row["methods"])]
    for row in record["tasks"]
  ]  # fmt: skip
  header: list[Cell | str] = [
    "Setting chosen on validation",
    *document_lib.methods(titles(record)).values(),
  ]
  return Section("Settings chosen", [Table(header, rows)], page_only=True)


def _run_facts(record: Record) -> Section:
  facts: list[sections.FactRow] = [
    ("Command", Cell(record["command"], code=True)),
    ("Written", max(row["created"] for row in record["tasks"])),
    ("Devices", "; ".join(sorted({row["devices"] for row in record["tasks"]}))),
    ("Seeds", _seeds(record)),
  ]
  return Section("The run", [Facts(facts)], page_only=True)


def _seeds(record: Record) -> str:
  numbers = sorted({row["num_seeds"] for row in record["tasks"]})
  return f"{' or '.join(map(str, numbers))} seed{'s' if numbers != [1] else ''} per method."


def report(record: Record) -> document_lib.Document:
  """The whole report, as far as there are tasks."""
  parts: list[document_lib.Part] = []
  if record["tasks"]:
    intervals = f"{_seeds(record)} {_INTERVALS}"
    parts += [Text(record["protocol"])] if record.get("protocol") else []
    parts += [_results(record), _scores(record), sections.what_intervals_mean(intervals)]
    parts += [_settings(record), _run_facts(record)]
  else:
    parts.append(Section("Tasks", [Text(standing(record))], terminal_only=True))
  parts.append(sections.settings(record["config"]))
  subtitle = f"{record['name']}. {standing(record)}"
  return document_lib.Document(record["title"], subtitle, parts)


def document(workdir: str | os.PathLike) -> document_lib.Document:
  """The report of a finished run, from what it left in `workdir`; see `record.load`."""
  return report(vtab_record.load(workdir))
