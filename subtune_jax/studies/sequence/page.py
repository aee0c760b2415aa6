"""The report of tasks in sequence, from its record."""

import os

from subtune_jax.report import document as document_lib
from subtune_jax.report import words
from subtune_jax.report.document import Cell, Facts, Section, Table, Text
from subtune_jax.studies import fields, sections
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.sequence import figures as sequence_figures
from subtune_jax.studies.sequence import record as sequence_record

Record = sequence_record.Record
Method = sequence_record.Method
_NOTE = (
  "Accuracy at the end of the sequence, in % of the test images, with 95 % intervals over groups "
  "of them; another seed or order is not in the intervals. Forgetting: accuracy after a task's own "
  "training minus that at the end, in points, mean over the tasks but the last."
)
_FORWARD = (
  "Forward transfer: accuracy right after a task's own training minus that of the task trained "
  "alone from the pretrained weights, in points, mean over the tasks but the first. On one "
  "backbone both are the same training. Others define it as the accuracy on a task before its "
  "training, which is that of a random head here."
)


def mean_forgetting(method: Method) -> float:
  """Accuracy lost since a task's own training, mean over all tasks but the last."""
  lost = method["forgetting"][:-1]
  return sum(lost) / len(lost)


def mean_transfer(method: Method) -> float | None:
  """Accuracy that the tasks before added, mean over all tasks but the first; None: not measured."""
  gained = method.get("forward_transfer", ())[1:]
  return sum(gained) / len(gained) if gained else None


def short_names(record: Record) -> list[str]:
  """The tasks' names as `compare_record.short_names` has them."""
  return list(compare_record.short_names([task["name"] for task in record["tasks"]]).values())


def headline(record: Record) -> list[str]:
  """What was forgotten, method by method."""
  lines = []
  for method in record["methods"]:
    if method["on_one_backbone"]:
      moved = method["logits_moved"]
      text = "no logit of an earlier task moved" if moved == 0 else f"logits moved by {moved:.1e}"
    else:
      lost = 100 * mean_forgetting(method)
      text = f"earlier tasks {'lost' if lost > 0 else 'gained'} {abs(lost):.1f} points of accuracy"
    lines.append(f"{method['title']}: {text}; {words.num_bytes(method['num_bytes'])} of weights.")
  return lines


def _final(record: Record) -> Section:
  transfer = [mean_transfer(method) for method in record["methods"]]
  measured = None not in transfer
  header = ["At the end", "Forgetting", *["Forward transfer"] * measured, *short_names(record)]
  rows = []
  for method, gained in zip(record["methods"], transfer, strict=True):
    cells = [document_lib.interval(fields.estimate(own, "accuracy")) for own in method["final"]]
    lost = f"{100 * mean_forgetting(method):.1f}"
    more = [] if gained is None else [f"{100 * gained:+.1f}" if gained else "0.0"]
    rows.append([method["title"], lost, *more, *cells, words.num_bytes(method["num_bytes"])])
  notes = [Text(_NOTE), *[Text(_FORWARD)] * measured]
  return Section("Accuracy and forgetting", [Table([*header, "Weights"], rows), *notes])


def _matrix(record: Record, method: Method) -> Section:
  names = short_names(record)
  rows: list[list[Cell | str]] = [
    [f"after {names[at]}", *(f"{100 * a:.1f}" for a in own), *[""] * (len(names) - len(own))]
    for at, own in enumerate(method["matrix"])
  ]
  table = Table([Cell("Test accuracy, %"), *names], rows)
  return Section(method["title"], [table], level=3, page_only=True)


def report(record: Record) -> document_lib.Document:
  """The whole report."""
  first, *others = headline(record)
  drawn = [
    (
      "over_time", "Each task over time", sequence_figures.over_time(record),
      "Test accuracy of each task from its own training to the end, a line per method.",
      "A panel per task, from the moment when it was learnt; all panels have one scale, which may "
      "not start at 0.",
    )
  ]  # fmt: skip
  facts = [
    *sections.run_rows(record),
    *sections.backbone_rows(record["backbone"]),
    *(
      (task["name"], f"{task['classes']} classes, {task['num_train']:,} training and "
       f"{task['num_test']:,} test images")
      for task in record["tasks"]
    ),
  ]  # fmt: skip
  parts: list[document_lib.Part] = [
    Text(first, tone="best"),
    *map(Text, others),
    *document_lib.rendered(drawn),
    _final(record),
    *(_matrix(record, method) for method in record["methods"]),
    Section("The run", [Facts(facts)], page_only=True),
    sections.settings(record["config"]),
    sections.attribution({task["name"]: task["attribution"] for task in record["tasks"]}),
  ]
  subtitle = f"{record['name']}, {record['created']}. {len(record['tasks'])} tasks in sequence."
  return document_lib.Document(record["title"], subtitle, parts)


def document(workdir: str | os.PathLike) -> document_lib.Document:
  """The report of a finished run, from what it left in `workdir`; see `record.load`."""
  return report(sequence_record.load(workdir))
