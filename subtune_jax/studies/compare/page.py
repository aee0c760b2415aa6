"""The report of a comparison of methods."""

import os

from subtune_jax.report import document as document_lib
from subtune_jax.report import style, words
from subtune_jax.report.document import Cell, Facts, Section, Table, Text
from subtune_jax.statistics import criteria
from subtune_jax.studies import sections
from subtune_jax.studies.compare import errors_page, source_figures, verdict
from subtune_jax.studies.compare import figures as compare_figures
from subtune_jax.studies.compare import record as record_lib
from subtune_jax.studies.compare import summary as summary_lib

Summary = summary_lib.Summary
_BOLD = (
  "Bold: above every other method by a difference whose interval excludes 0. Small: 95 % "
  "intervals; ±: half of one."
)
_COLUMNS = (
  "Parameters trained: of the largest stage. Seconds: of one training. Setting: chosen on the "
  "validation split. Weights moved: how far the backbone's weights went from the pretrained ones, "
  "as a share of their length."
)
_COSTS = (
  "Memory of a step: on one device, by the compiler's count: the training images or what is kept "
  "of them before the first trained block, weights, the optimizer's state, activations, gradients; "
  "and what is kept of the validation images. Frozen weights that a step does not read, those "
  "before what is kept, are in memory too but not counted. Step: without compiling and without "
  "reading the validation images. Both of the stage that trains the most; empty where a head is "
  "solved without steps. One more task: what it adds to the inference of an image where the frozen "
  "network runs anyway. PPT: accuracy in distribution, %, times exp(-log10(P / 10 M + 1)), P the "
  "parameters trained beside the head's (V-PETL Bench)."
)
_MEASURES = (
  "Balanced accuracy: the mean over classes of the share of their images that is answered rightly. "
  "Macro F1: the mean over classes. AUROC: the mean over classes of the area under the ROC curve, "
  "the class against the rest. All three by scikit-learn's definitions. ECE: how far a stated "
  "probability is from the share of right answers, on average; lower is better."
)
_MOST_CLASSES = 60
_EDGE = "! setting at the edge of its grid: a better one may lie past it."


def results(summary: Summary, title: str = "Results") -> Section:
  """The table of accuracies and costs, and what may be said about who is ahead."""
  header = ["Test accuracy, %", *(c.title for c in summary.columns)]
  header += [
    Cell("Parameters trained", plain="trained"),
    Cell("Seconds a training", plain="seconds"),
    Cell("Setting chosen", plain="setting  "),
    Cell("Weights moved", plain="moved"),
  ]
  several, names = len(summary.rows) > 1, document_lib.methods(summary.titles)
  rows = []
  for row in summary.rows:
    rows.append(
      [
        names[row.name],
        *(
          document_lib.accuracy(
            row.accuracy[c.key], best=several and summary.winner(c.key) == row.name
          )
          for c in summary.columns
        ),
        words.parameters(row.trained_params),
        Cell(
          words.seconds(row.seconds),
          (f"compile {words.seconds(row.compile_seconds)}",),
          plain=words.seconds(row.seconds),
        ),
        document_lib.setting(row.setting, row.value, at_edge=row.at_edge),
        f"{words.percent(row.moved, 2)} %",
      ]
    )
  notes = [Text(_COLUMNS, tone="quiet")]
  if any(row.at_edge for row in summary.rows):
    notes.append(Text(_EDGE, tone="quiet"))
  notes += [Text(line, tone="edge") for line in summary.unstable]
  if several:
    notes.insert(0, Text(_BOLD))
  if summary.constant is not None:
    name, accuracy = summary.constant
    rows.append(
      [
        Cell(f"Always {name!r}", ("the largest class",), plain=f"Always {name!r}"),
        *(document_lib.accuracy(accuracy[c.key]) for c in summary.columns),
        *[""] * 4,
      ]
    )
  return Section(title, [Table(header, rows), *notes, _costs(summary)])


def _costs(summary: Summary) -> Section:
  """What a method takes beside parameters and seconds."""
  names = document_lib.methods(summary.titles)
  header = [
    "Method", Cell("Memory of a step", plain="memory"), Cell("Step, ms", plain="ms a step"),
    Cell("One more task, M multiply-adds", plain="M multiply-adds of one more task"), "PPT",
  ]  # fmt: skip
  rows = [
    [
      names[row.name],
      words.known(row.step_bytes, words.num_bytes),
      words.known(row.step_milliseconds, words.seconds),
      words.known(row.fork_macs / 1e6, lambda value: f"{value:.3g}"),
      words.percent(row.ppt),
    ]
    for row in summary.rows
  ]
  return Section("Costs", [Table(header, rows), Text(_COSTS, tone="quiet")], level=3)


def differences(summary: Summary) -> list[Section]:
  """The table of differences from the reference; nothing without one."""
  if not summary.differences:
    return []
  names, reference = document_lib.methods(summary.titles), summary.titles[summary.reference]
  rows = [
    [names[name], *(document_lib.difference(found[c.key]) for c in summary.columns)]
    for name, found in summary.differences.items()
  ]
  header = ["Difference, points", *(c.title for c in summary.columns)]
  note = (
    f"Accuracy minus that of {reference} on the same images, with its 95 % interval. Undecided: "
    "the interval includes 0."
  )
  return [Section(f"Against {reference}", [Table(header, rows), Text(note)])]


def measures(run: record_lib.Run, summary: Summary) -> Section:
  """What else practitioners read, a table for each test set; folded where classes are balanced."""
  names, short = document_lib.methods(summary.titles), record_lib.short_names(list(run.tests))
  parts: list[document_lib.Part] = []
  for name in run.tests:
    found = summary_lib.measured(run, name)
    if not found:
      continue
    rows = [
      [names[m], *(document_lib.accuracy(found[measure][m]) for measure in found)]
      for m in run.methods
    ]
    parts.append(Table([f"{short[name]}, %", *found], rows))
  if parts:
    parts.append(Text(_MEASURES))
  balanced = _balanced(run)
  return Section("More measures", parts, folded=balanced, page_only=balanced)


def recalls(run: record_lib.Run) -> Section:
  """The share of each class' test images that is answered rightly, the hardest classes first."""
  name = run.record["data"]["id"]
  found = summary_lib.recalls(run, name)
  names = document_lib.methods(run.titles)
  rows = [
    [run.record["data"]["class_names"][c], f"{count:,}", *map(document_lib.accuracy, own)]
    for c, count, own in found[:_MOST_CLASSES]
  ]
  header = ["Class", "Images", *(names[m].text for m in run.methods)]
  more = len(found) - len(rows)
  notes = [Text(f"{more} classes of higher recall are left out.", tone="quiet")] if more else []
  parts = [Table(header, rows), *notes] if rows else []
  return Section("Recall by class, in distribution, %", parts, folded=True, page_only=True)


def _balanced(run: record_lib.Run) -> bool:
  """Whether no class has more than twice its share of the training images."""
  counts = run.record["data"].get("train_counts")
  return not counts or max(counts) <= 2 * sum(counts) / len(counts)


def run_facts(run: record_lib.Run) -> Section:
  """How the run was made: command, versions, devices, backbone, sizes of the data, stages."""
  data = run.record["data"]
  images = f"{data['num_train']:,} of {data['train']}, {data['num_validation']:,} for validation, "
  rows = [
    *sections.run_rows(run.record),
    ("Seeds", ", ".join(str(seed) for seed in run.seeds)),
    *sections.backbone_rows(run.record["backbone"]),
    ("Training images", f"{images}{len(data['class_names'])} classes"),
    ("Test images", ", ".join(f"{name} {n:,}" for name, n in data["num_test"].items())),
  ]
  stages = Section("Stages", [Facts(_stage_rows(run))], level=3)
  return Section("The run", [Facts(rows), stages], page_only=True)


def _stage_rows(run: record_lib.Run) -> list[tuple[str, str]]:
  rows = []
  for method in run.record["methods"]:
    for number, stage in enumerate(method["stages"], start=1):
      title = f"{method['title']}, stage {number}" if len(method["stages"]) > 1 else method["title"]
      epochs = words.count(stage["epochs"], "epoch")
      text = f"{stage['title']}: {stage['solver']}, {epochs}, "
      rows.append((title, f"{text}{stage['trained_params']:,} parameters"))
  return rows


def figures(run: record_lib.Run, summary: Summary) -> dict[str, document_lib.Figure]:
  """All figures of a run by name; those that its record has nothing for are left out."""
  titles, chosen_by = ", ".join(run.titles.values()), criteria.of(run.record["config"]).title
  drawn = [
    (
      "accuracy", "Accuracy by domain", compare_figures.accuracy_bars(run, summary),
      f"Bar chart of the test accuracy of {titles} on every domain; the numbers are in the table.",
      "Bars: mean over seeds. Lines: 95 % intervals. Dots: single seeds. Whether two methods "
      "differ is in the table of differences, not in whether their lines overlap.",
    ),
    (
      "blocks", "What was trained", compare_figures.trained_blocks(run),
      "Blocks of the network from input to head, a row per method and stage, coloured if trained.",
      "The network from input (left) to head (right). Coloured and ticked: trained in that stage. "
      "Boxes are wider where there are more parameters.",
    ),
    *_sources(run),
    (
      "settings", "Choice of the setting", compare_figures.setting_grids(run),
      f"Validation {chosen_by} against the settings tried, a panel per method, the chosen one "
      "ringed.",
      f"Ringed: the setting chosen on the validation split, by {chosen_by}. At the edge of a grid, "
      "a better one may lie outside of it.",
    ),
    (
      "curves", "Learning curves", compare_figures.learning_curves(run),
      "Validation accuracy and training loss by epoch, a column per method.",
      "Thin: single seeds. Thick: their mean. Dashed: the start of the next stage; stages are "
      "named below, under The run.",
    ),
    *_examples(run),
  ]  # fmt: skip
  return {figure.name: figure for figure in document_lib.rendered(drawn)}


def _sources(run: record_lib.Run) -> list[document_lib.Drawn]:
  """Where the features of a head on all units come from."""
  return [
    (
      f"sources_{method['name']}", f"Which units {method['title']} reads",
      source_figures.sources(run, method),
      "Bars by unit from input to head: the features that are kept, and their share of the unit's.",
      f"{method['title']}: {source_figures.chosen_text(method['selection'])} Above: how many "
      "features of each unit are kept. Below: their share of all that the unit has.",
    )
    for method in run.record["methods"] if "selection" in method
  ]  # fmt: skip


def _examples(run: record_lib.Run) -> list[document_lib.Drawn]:
  """A few test images of each set with the answers of the methods."""
  short = record_lib.short_names(list(run.tests))
  return [
    (
      f"examples_{words.file_name(short[name])}", f"Test images: {short[name]}",
      compare_figures.example_images(run, name, images),
      f"Test images of {short[name]} with their true class and the prediction of each method.",
      "True class above, predictions of each method's first seed below: "
      f"{style.RIGHT_SYMBOL} right, {style.WRONG_SYMBOL} wrong.",
    )
    for name, images in record_lib.load_images(run.workdir).items()
    if name in run.tests and len(images.ids)
  ]  # fmt: skip


def subtitle(run: record_lib.Run, summary: Summary) -> str:
  sizes = f"{summary_lib.seeds_text(summary)}, {summary_lib.sizes_text(summary)}."
  return f"{run.record['name']}, {run.record['created']}. {sizes}"


def answer(summary: Summary) -> Section:
  """Which method to take, what it costs and what is not known."""
  return Section("Answer", [Text(line) for line in verdict.sentences(summary)])


def numbers(summary: Summary) -> list[document_lib.Part]:
  """The tables of a comparison and what they mean: what a terminal shows of it."""
  sizes = f"{summary_lib.seeds_text(summary)}; {summary_lib.sizes_text(summary)}."
  return [
    results(summary),
    *differences(summary),
    sections.what_intervals_mean(f"{sizes} {summary_lib.interval_text(summary)}"),
  ]


def report(run: record_lib.Run, summary: Summary) -> document_lib.Document:
  """The whole report."""
  record = run.record
  parts = [
    answer(summary),
    *numbers(summary),
    measures(run, summary),
    *figures(run, summary).values(),
    *errors_page.parts(run),
    recalls(run),
    run_facts(run),
    sections.settings(record["config"]),
    sections.attribution(record["data"].get("attribution")),
  ]
  return document_lib.Document(record["title"], subtitle(run, summary), parts)


def document(workdir: str | os.PathLike) -> document_lib.Document:
  """The report of a finished run, from what it left in `workdir`; see `record.load`."""
  run = record_lib.load(workdir)
  return report(run, summary_lib.summarize(run))
