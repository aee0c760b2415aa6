"""The report of a study of corruptions."""

import os
import pathlib

from subtune_jax.report import document as document_lib
from subtune_jax.report import words
from subtune_jax.report.document import Cell, Facts, Section, Table, Text
from subtune_jax.studies import fields, sections
from subtune_jax.studies.corruption import figures as corruption_figures
from subtune_jax.studies.corruption import record as corruption_record
from subtune_jax.studies.search import page as search_page
from subtune_jax.studies.search import record as search_record
from subtune_jax.studies.search import sentences

Row = corruption_record.Row
DECIDED = "none: decided"
_TEST_NOTE = (
  "95 % intervals of each accuracy. Corruptions of one set of images err together, so their mean "
  "has no interval here; whether two methods differ is in the report of each corruption."
)
_UNDECIDED_NOTE = "Sets that may be the best as well, with the probability of that."


def headline(record: Row) -> list[str]:
  """Which units were chosen most often, and how many certificates leave nothing open."""
  rows, names = record["rows"], search_record.unit_names(record)
  counts = {name: sum(name in row["chosen"] for row in rows) for name in names}
  most = sorted((name for name in names if counts[name]), key=lambda name: -counts[name])[:3]
  listed = ", ".join(f"{name} ({counts[name]} of {len(rows)})" for name in most)
  lines = [f"Chosen most often: {listed}." if most else "The head alone was chosen every time."]
  certificates = [row["certificate"] for row in rows if row["certificate"]]
  if certificates:
    decided = sum(not search_record.in_doubt(certificate) for certificate in certificates)
    text = f"Decided: {decided} of {len(certificates)} choices"
    if decided < len(certificates):
      text += "; in the others, further sets may be the best as well"
    lines.append(f"{text}.")
  means, titles = corruption_record.mean_test(record), corruption_record.method_titles(record)
  if means:
    listed = ", ".join(
      f"{titles[name]} {words.percent(value.mean)} %" for name, value in means.items()
    )
    lines.append(f"Mean test accuracy over the corruptions: {listed}.")
  return lines


def figures(record: Row) -> dict[str, document_lib.Figure]:
  """The figures of a study by name, rendered; those that its record has nothing for are absent."""
  drawn = [
    (
      "gains", "Which unit, by corruption", corruption_figures.gain_map(record),
      "Heat map of the gain of each unit over the head alone, a row per corruption.",
      "Held-out accuracy of each unit trained alone with the head, minus that of the head alone. "
      "Framed: the best unit of the row. A dot: the interval of the paired difference from it, "
      "over the folds, includes 0. At the right: all units (full fine-tuning).",
    ),
    (
      "order", "Greedy order", corruption_figures.greedy_order(record),
      "The steps of the greedy search by unit, a row per corruption.",
      "1: the unit that the greedy search took first, and so on; paler: later. Dashed: the step "
      "that it tried and did not take.",
    ),
    (
      "profiles", "Finetuning profiles", corruption_figures.profiles(record),
      "Held-out accuracy of each unit trained alone, a small panel per corruption.",
      "All panels have one scale, which may not start at 0. Points: means, with 95 % intervals; "
      "filled: units of the chosen set. Lines: the head alone and all units, with the bands of "
      "their intervals.",
    ),
    (
      "test", "Test accuracy", corruption_figures.test_accuracy(record),
      "Test accuracy of every method under every corruption, with intervals.",
      "Points: accuracies. Lines: 95 % intervals.",
    ),
  ]  # fmt: skip
  return {figure.name: figure for figure in document_lib.rendered(drawn)}


def _links(record: Row, workdir: pathlib.Path) -> list[Cell]:
  """Titles of the corruptions, which lead to their own reports."""
  return [
    sections.report_link(title, workdir, row["folder"])
    for title, row in zip(corruption_record.labels(record), record["rows"], strict=True)
  ]


def _choices(record: Row, workdir: pathlib.Path) -> Section:
  names, rows = search_record.unit_names(record), []
  for link, row in zip(_links(record, workdir), record["rows"], strict=True):
    best, _ = search_record.best_of(row["profile"])
    rows.append([
      link, _accuracy(row["head"]), _accuracy(row["all"]),
      best["unit"] if best else "", _accuracy(best),
      _chosen(row, names), *_certificate(row["certificate"]),
    ])  # fmt: skip
  header = [
    "Held-out accuracy, %", "Head alone", "All units", "Best unit", "It alone",
    "Chosen, in the order taken", Cell("Best with probability", plain="best"),
    Cell("Expected regret, points", page_only=True), "Undecided",
  ]  # fmt: skip
  return Section("Choices and certificates", [Table(header, rows), _undecided(record, workdir)])


def _accuracy(entry: Row | None) -> Cell:
  value = fields.estimate(entry) if entry else None
  return document_lib.accuracy(value)


def _chosen(row: Row, names: search_record.Units) -> Cell:
  """The units that the greedy search took, in order; the chosen set where it is another."""
  taken = [step["unit"] for step in row["order"] if step["taken"]]
  chosen = search_record.set_name(row["chosen"], names)
  notes = (f"chosen: {chosen}",) if set(taken) != set(row["chosen"]) else ()
  return document_lib.names(taken, notes)


def _certificate(found: Row | None) -> list[str]:
  if found is None:
    return [""] * 3
  return [
    search_record.chance_text(found["probability_best"]),
    f"{100 * found['expected_regret']:.2f}",
    str(len(search_record.in_doubt(found)) or DECIDED),
  ]


def _undecided(record: Row, workdir: pathlib.Path, most: int = 6) -> Section:
  """Per corruption the sets that its certificate leaves undecided."""
  names, rows = search_record.unit_names(record), []
  for link, row in zip(_links(record, workdir), record["rows"], strict=True):
    others = search_record.in_doubt(row["certificate"])
    if others:
      rows.append((link, sentences.in_doubt(others, names, most)))
  parts = [Text(_UNDECIDED_NOTE), Facts(rows)] if rows else []
  return Section("Undecided", parts, level=3, page_only=True)


def _tests(record: Row, workdir: pathlib.Path) -> Section:
  titles, rows = corruption_record.method_titles(record), []
  if not titles:
    return Section("Test accuracies", [])
  for link, row in zip(_links(record, workdir), record["rows"], strict=True):
    if row["test"]:
      found = [row["test"].get(name) for name in titles]
      values = [fields.estimate(entry, "accuracy") if entry else None for entry in found]
      rows.append([link, *map(document_lib.interval, values)])
  means = corruption_record.mean_test(record)
  rows.append(["Mean", *(document_lib.interval(means.get(name)) for name in titles)])
  header = ["Test accuracy, %", *document_lib.methods(titles).values()]
  return Section("Test accuracies", [Table(header, rows), Text(_TEST_NOTE)])


def report(record: Row, workdir: str | os.PathLike) -> document_lib.Document:
  """The whole report; corruptions whose own report is in `workdir` are links to it."""
  data, drawn, workdir = record["data"], figures(record), pathlib.Path(workdir)
  first, *others = headline(record)
  facts = [
    *sections.run_rows(record),
    *sections.backbone_rows(record["backbone"]),
    *search_page.data_rows(data),
    ("Data sets", ", ".join(row["name"] for row in record["rows"])),
    ("Units", ", ".join(search_record.unit_names(record))),
  ]

  def picture(*names: str) -> list[document_lib.Figure]:
    return [drawn[name] for name in names if name in drawn]

  parts = [
    Text(first, tone="best"),
    *map(Text, others),
    *picture("gains", "order"),
    _choices(record, workdir),
    *picture("test"),
    _tests(record, workdir),
    *picture("profiles"),
    Section("The run", [Facts(facts)], page_only=True),
    sections.settings(record["config"]),
    sections.attribution(data.get("attribution")),
  ]
  subtitle = (
    f"{record['name']}, {record['created']}. {len(record['rows'])} corruptions of {data['train']}, "
    f"{data['num_examples']:,} training images each, {search_page.folds_text(data)}."
  )
  return document_lib.Document(record["title"], subtitle, parts)


def document(workdir: str | os.PathLike) -> document_lib.Document:
  """The report of a finished run, from what it left in `workdir`; see `record.load`."""
  return report(corruption_record.load(workdir), workdir)
