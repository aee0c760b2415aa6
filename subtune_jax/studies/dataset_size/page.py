"""The report of a study of the number of training images."""

import os
import pathlib

from subtune_jax.report import document as document_lib
from subtune_jax.report import words
from subtune_jax.report.document import Cell, Facts, Section, Table, Text
from subtune_jax.studies import fields, sections
from subtune_jax.studies.dataset_size import figures as size_figures
from subtune_jax.studies.dataset_size import record as size_record
from subtune_jax.studies.search import record as search_record

Record = size_record.Record
_INTERVALS = "95 % intervals as in the comparison of each size."
_DIFFERENCES = (
  "A difference is taken image by image on the same test set, so it is surer than two intervals "
  "that overlap suggest; its interval leaves out another draw of the training images. Undecided: "
  "the interval includes 0."
)


def headline(record: Record) -> str:
  """Where SubTuning and full fine-tuning cross, in a sentence."""
  if record["crossover"] is None:
    return "Where SubTuning and full fine-tuning cross was not asked."
  return record["crossover"]["text"]


def figures(record: Record) -> list[document_lib.Figure]:
  """The figures of a study, rendered; those that its record has nothing for are left out."""
  drawn = [
    (
      "against_ft", "Against full fine-tuning", size_figures.differences(record),
      "Difference in test accuracy from full fine-tuning against the number of training images.",
      "Above the line: better than full fine-tuning with as many images. Lines: 95 % intervals of "
      "the paired difference; hollow where they include 0.",
    ),
    (
      "sizes", "Accuracy by number of images", size_figures.curves(record),
      "Test accuracy of every method against the number of training images.",
      "Points: means over seeds, a little apart so that all are seen. Lines: 95 % intervals. "
      "Dashes: single seeds.",
    ),
    (
      "map", "Which unit, by number of images", size_figures.unit_map(record),
      "Heat map of the gain of each unit over the head alone, a row per number of images.",
      "Held-out accuracy of each unit trained alone with the head, minus that of the head alone. "
      "Framed: the best unit of the row. A dot: the interval of the paired difference from it, "
      "over the folds, includes 0.",
    ),
  ]  # fmt: skip
  return document_lib.rendered(drawn)


def _images(size: size_record.Size, workdir: pathlib.Path) -> Cell:
  """The number of images, with the number asked for where it is another; a link to its report."""
  text = f"{size['size']:,}"
  if size["asked"] != size["size"]:
    text += f" (asked: {size['asked']:,})"
  return sections.report_link(text, workdir, size["folder"])


def _accuracies(record: Record, workdir: pathlib.Path) -> Section:
  titles, rows, against_rows = size_record.methods(record), [], []
  against = [n for n in titles if any(n in size["against_ft"] for size in record["sizes"])]
  for size in record["sizes"]:
    found = [size_record.method(size, name) for name in titles]
    values = [fields.estimate(entry, "accuracy") if entry else None for entry in found]
    rows.append([_images(size, workdir), *map(document_lib.interval, values)])
    lead = [size["against_ft"].get(name) for name in against]
    values = [fields.estimate(entry) if entry else None for entry in lead]
    against_rows.append([_images(size, workdir), *map(document_lib.difference, values)])
  heads = document_lib.methods(titles)
  parts: list[document_lib.Part] = []
  if against:
    table = Table(["Difference, points; images", *(heads[name] for name in against)], against_rows)
    parts = [table, Text(_DIFFERENCES)]
  data = record["data"]
  accuracies = Table(["Test accuracy, %; images", *heads.values()], rows)
  return Section("Accuracies", [
    accuracies,
    Text(f"{data['num_test']:,} test images of {data['test']}. {_INTERVALS}"),
    Section("Against full fine-tuning", parts, level=3),
  ])  # fmt: skip


def _settings(record: Record, workdir: pathlib.Path) -> list[Section]:
  """The settings chosen, and the units that SubTuning trains."""
  titles, rows, units = size_record.methods(record), [], []
  for size in record["sizes"]:
    found = [size_record.method(size, name) for name in titles]
    rows.append([_images(size, workdir), *map(_setting, found)])
    if "chosen" in size:
      chosen = " + ".join(size["chosen"]) or "head alone"
      units.append((_images(size, workdir), chosen))
  header: list[Cell | str] = ["Setting chosen; images", *document_lib.methods(titles).values()]
  return [
    Section("Settings chosen", [Table(header, rows)], level=3, page_only=True),
    Section(
      "Units that SubTuning trains", [Facts(units, page_only=False)] if units else [], level=3
    ),
  ]


def _setting(method: size_record.Method | None) -> Cell:
  value = None if method is None else method.get("value")
  if method is None or value is None:
    return Cell("")
  return document_lib.setting(method["setting"], value)


def _best_units(record: Record) -> Section:
  rows = []
  for head, profile in size_record.profiles(record):
    best, near = search_record.best_of(profile)
    if best is not None:
      others = ", ".join(entry["unit"] for entry in near)
      rows.append([
        f"{head['size']:,}",
        document_lib.accuracy(fields.estimate(head)),
        best["unit"],
        document_lib.accuracy(fields.estimate(best)),
        Cell("", (others or "none",), tone="names", plain=words.count(len(near), "unit")),
      ])  # fmt: skip
  header = ["Held-out accuracy, %; images", "Head alone", "Best unit", "Its accuracy"]
  header.append("Not told apart from it")
  return Section("The best single unit", [Table(header, rows)] if rows else [], level=3)


def report(record: Record, workdir: str | os.PathLike) -> document_lib.Document:
  """The whole report; sizes whose own report is in `workdir` are links to it."""
  data, workdir = record["data"], pathlib.Path(workdir)
  sizes = ", ".join(f"{size['size']:,}" for size in record["sizes"])
  facts = [
    *sections.run_rows(record),
    *sections.backbone_rows(record["backbone"]),
    ("Training images", f"{sizes} of {data['train']}"),
    ("Classes", f"{len(data['class_names']):,}"),
    ("Test images", f"{data['num_test']:,} of {data['test']}"),
  ]
  parts: list[document_lib.Part] = [
    Text(headline(record), tone="best"),
    *figures(record),
    _best_units(record),
    _accuracies(record, workdir),
    *_settings(record, workdir),
    Section("The run", [Facts(facts)], page_only=True),
    sections.settings(record["config"]),
    sections.attribution(data.get("attribution")),
  ]
  subtitle = f"{record['name']}, {record['created']}. {sizes} training images."
  return document_lib.Document(record["title"], subtitle, parts)


def document(workdir: str | os.PathLike) -> document_lib.Document:
  """The report of a finished run, from what it left in `workdir`; see `record.load`."""
  return report(size_record.load(workdir), workdir)
