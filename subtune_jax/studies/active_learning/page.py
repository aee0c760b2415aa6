"""The report of a study of active learning, from its record."""

import os

from subtune_jax.report import document as document_lib
from subtune_jax.report import estimate, words
from subtune_jax.report.document import Cell, Facts, Section, Table, Text
from subtune_jax.studies import fields, sections
from subtune_jax.studies.active_learning import figures as own_figures
from subtune_jax.studies.active_learning import record as own_record
from subtune_jax.studies.active_learning import saved

Record = own_record.Record
_INTERVALS = (
  "95 % intervals of a bootstrap over seeds and groups of test images; a seed has its own first "
  "labels, head and order of images, and few seeds say little about other seeds."
)
_SAVED = (
  "Both curves are read at the best accuracy that both reach; between two totals accuracy is taken "
  "to grow with the logarithm of the labels. Saved: 1 minus the labels that the rule needs over "
  "those that {} needs. Below 0: the rule needs more. Undecided: the interval holds 0."
)


def _share(value: float) -> str:
  return f"{100 * value:.0f}".replace("-", words.MINUS)


def _reference(record: Record) -> str:
  """The rule that the others are compared with, within a sentence."""
  return f"the rule {record['rules'][saved.REFERENCE]!r}"


def _best(method: own_record.Method) -> tuple[str, own_record.Saved] | None:
  """The rule that saves most, and how much; None without another than the reference."""
  rows = [(row["rule"], row["saved"]) for row in method["rules"] if row["saved"] is not None]
  return max(rows, key=lambda row: row[1]["mean"], default=None)


def headline(record: Record) -> list[str]:
  """What asking saves, learner by learner, said no more firmly than the data do."""
  lines = []
  for method in record["methods"]:
    best = _best(method)
    if best is None:
      continue
    title, own = record["rules"][best[0]], best[1]
    value = fields.estimate(own)
    span = f"95 % interval {_share(value.low)} to {_share(value.high)} %"
    at = f"at {words.percent(own['at'])} % accuracy"
    if value.verdict == estimate.HIGHER:
      text = f"{title} saves {_share(value.mean)} % of the labels {at} ({span})"
    else:
      text = f"no rule is shown to save labels; {title} has {_share(value.mean)} % {at} ({span})"
    lines.append(f"{method['title']}: {text}.")
  return lines


def figures(record: Record) -> list[document_lib.Figure]:
  """The figures of a study, rendered."""
  reference = _reference(record)
  drawn = [
    (
      "curves", "Accuracy by number of labels", own_figures.curves(record),
      "Test accuracy against the number of labels, a panel per learner, a line per rule.",
      "Points: means over seeds, a little apart so that all are seen; lines: 95 % intervals. All "
      "rules share the first labels.",
    ),
    (
      "saved", "Labels saved", own_figures.saved(record),
      f"Labels saved by each rule against {reference} at equal accuracy, with intervals.",
      f"Against as many labels by {reference}, at the best accuracy that both reach. Hollow: the "
      "interval holds 0.",
    ),
  ]  # fmt: skip
  return document_lib.rendered(drawn)


def _saved_cell(entry: own_record.Saved | None) -> Cell:
  if entry is None:
    return Cell("")
  value = fields.estimate(entry)
  tone: document_lib.Tone = "undecided" if value.verdict == estimate.UNDECIDED else ""
  note = f"{_share(value.low)} to {_share(value.high)}"
  return Cell(_share(value.mean), (note,), tone=tone, plain=f"{_share(value.mean)} [{note}]")


def _saved_table(record: Record) -> Section:
  rules = {rule: title for rule, title in record["rules"].items() if rule != saved.REFERENCE}
  if not rules:
    return Section("Labels saved", [])
  rows: list[list[Cell | str]] = []
  for method in record["methods"]:
    found = {row["rule"]: row["saved"] for row in method["rules"]}
    rows.append([method["title"], *(_saved_cell(found.get(rule)) for rule in rules)])
  table = Table(["Labels saved, %", *rules.values()], rows)
  return Section("Labels saved at equal accuracy", [table, Text(_SAVED.format(_reference(record)))])


def _accuracies(record: Record, method: own_record.Method) -> Section:
  rows: list[list[Cell | str]] = []
  for row in method["rules"]:
    values = map(fields.estimate, row["points"])
    rows.append([record["rules"][row["rule"]], *map(document_lib.accuracy, values)])
  header = ["Test accuracy, %; labels", *(f"{total:,}" for total in record["totals"])]
  return Section(method["title"], [Table(header, rows)], level=3)


def _choices(record: Record) -> str:
  """Which labels were used that the axis does not count."""
  if not record["chose"]:
    return "Nothing was chosen on other labels: each learner has one setting."
  titles = {method["name"]: method["title"] for method in record["methods"]}
  names = words.listed([titles[name] for name in record["chose"]])
  return (
    f"{names} chose a setting on {record['data']['num_validation']:,} labelled validation images "
    "in every round, which the axis does not count."
  )


def report(record: Record) -> document_lib.Document:
  """The whole report."""
  data = record["data"]
  totals = ", ".join(f"{total:,}" for total in record["totals"])
  facts = [
    *sections.run_rows(record),
    *sections.backbone_rows(record["backbone"]),
    ("Pool", f"{data['num_pool']:,} images of {data['pool']}, {len(data['class_names'])} classes"),
    ("Labels", totals),
    ("Test images", f"{data['num_test']:,}"),
    ("Seeds", f"{len(record['seeds'])}"),
  ]
  parts: list[document_lib.Part] = [
    *(Text(line, tone="best") for line in headline(record)),
    *figures(record),
    _saved_table(record),
    Section("Accuracies", [
      *(_accuracies(record, method) for method in record["methods"]),
      Text(f"{data['num_test']:,} test images, {len(record['seeds'])} seeds. {_INTERVALS}"),
      Text(_choices(record)),
    ]),
    Section("The run", [Facts(facts)], page_only=True),
    sections.settings(record["config"]),
    sections.attribution(data.get("attribution")),
  ]  # fmt: skip
  subtitle = f"{record['name']}, {record['created']}. {totals} labels of {data['num_pool']:,}."
  return document_lib.Document(record["title"], subtitle, parts)


def document(workdir: str | os.PathLike) -> document_lib.Document:
  """The report of a finished run, from what it left in `workdir`; see `record.load`."""
  return report(own_record.load(workdir))
