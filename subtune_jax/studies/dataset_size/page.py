"""The report of a study of the number of training images: a page, and a table for the terminal.

record = search_records.load(workdir, "dataset_size")
size_page.write_page(record, workdir)
"""

from collections.abc import Sequence
import os
import pathlib

from subtune_jax.report import document, html, terminal, words
from subtune_jax.studies.dataset_size import figures as size_plots
from subtune_jax.studies.search import page as search_page
from subtune_jax.studies.search import record as search_lib

Row = search_lib.Row
_INTERVALS = (
  "95 % intervals as in the comparison of each size. A difference is taken image by image on the "
  "same test set, so it is surer than two intervals that overlap suggest; its interval leaves out "
  "another draw of the training images."
)


def headline(record: Row) -> str:
  """Where SubTuning and full fine-tuning cross, in a sentence."""
  if record["crossover"] is None:
    return "Where SubTuning and full fine-tuning cross was not asked."
  return record["crossover"]["text"]


def _method(size: Row, name: str) -> Row | None:
  return next((method for method in size["methods"] if method["name"] == name), None)


def _images(size: Row) -> str:
  """The number of images; with the number asked for where it is another."""
  text = f"{size['size']:,}"
  return text if size["asked"] == size["size"] else f"{text} (asked: {size['asked']:,})"


def best_units(record: Row) -> list[tuple[Row, Row, list[str]]]:
  """Per size of the map: the head alone, the best unit, and those not told apart from it."""
  if record["map"] is None:
    return []
  found = []
  for head in sorted(record["map"]["head"], key=lambda head: head["size"]):
    rows = [row for row in record["map"]["rows"] if row["size"] == head["size"]]
    if rows:
      best = max(rows, key=lambda row: row["mean"])
      near = [r["unit"] for r in rows if r is not best and search_lib.undecided(r, best)]
      found.append((head, best, near))
  return found


def format_text(record: Row, width: int = terminal.WIDTH) -> str:
  """The report as plain text for a terminal of `width` columns."""
  titles = size_plots.methods(record)
  header = ["test accuracy, %", *titles.values()]
  rows = []
  for size in record["sizes"]:
    cells = [search_page.test_text(_method(size, name)) for name in titles]
    rows.append([f"{_images(size)} images", *cells])
  parts = [
    search_page.wrapped(headline(record), min(width, 100)),
    terminal.grid(header, rows, width),
  ]
  against = {name for size in record["sizes"] for name in size["against_ft"]}
  against = [name for name in titles if name in against]
  if against:
    header = ["against full fine-tuning, points", *(titles[name] for name in against)]
    rows = [
      [f"{_images(size)} images", *(_difference_text(size["against_ft"].get(n)) for n in against)]
      for size in record["sizes"]
    ]
    parts.append(terminal.grid(header, rows, width))
  best = best_units(record)
  if best:
    header = ["one unit alone, held-out %", "head alone", "best unit", "its accuracy", "undecided"]
    rows = [
      [f"{head['size']:,} images", words.percent(head["mean"]), row["unit"],
       words.percent(row["mean"]), f"{len(near)} more"] for head, row, near in best
    ]  # fmt: skip
    parts.append(terminal.grid(header, rows, width))
  chosen = [f"{_images(size)} images: {_chosen_text(size)}" for size in record["sizes"]
            if "chosen" in size]  # fmt: skip
  if chosen:
    lines = [search_page.wrapped(line, min(width, 100)) for line in chosen]
    parts.append("\n".join(["Units that SubTuning trains", *lines]))
  data = record["data"]
  notes = f"{data['num_test']:,} test images of {data['test']}. {_INTERVALS}"
  parts.append(search_page.wrapped(notes, min(width, 100)))
  return "\n\n".join(parts) + "\n"


def _difference_text(entry: Row | None) -> str:
  if entry is None:
    return ""
  value = search_lib.estimate(entry)
  if not search_lib.has_interval(value):
    return search_page.points_text(value)
  return f"{search_page.points_text(value)}\n{value.verdict}"


def figures(record: Row) -> list[document.Figure]:
  """The figures of a study, rendered; those that its record has nothing for are left out."""
  drawn = [
    (
      "against_ft", "Against full fine-tuning", size_plots.differences(record),
      "Difference in test accuracy from full fine-tuning against the number of training images.",
      "Above the line: better than full fine-tuning with as many images. Lines: 95 % intervals of "
      "the paired difference; hollow where they include 0.",
    ),
    (
      "sizes", "Accuracy by number of images", size_plots.curves(record),
      "Test accuracy of every method against the number of training images.",
      "Points: means over seeds, a little apart so that all are seen. Lines: 95 % intervals. "
      "Dashes: single seeds.",
    ),
    (
      "map", "Which unit, by number of images", size_plots.unit_map(record),
      "Heat map of the gain of each unit over the head alone, a row per number of images.",
      "Held-out accuracy of each unit trained alone with the head, minus that of the head alone. "
      "Framed: the best unit of the row. A dot: the interval of the paired difference from it, "
      "over the folds, includes 0.",
    ),
  ]  # fmt: skip
  return document.rendered(drawn)


def _link(size: Row, workdir: pathlib.Path) -> str:
  """The number of images; a link to its own report where that is there."""
  text = html.escape(_images(size))
  if (workdir / size["folder"] / html.PAGE).is_file():
    return f'<a href="{html.escape(size["folder"])}/{html.PAGE}">{text}</a>'
  return text


def _tables(record: Row, workdir: pathlib.Path) -> list[str]:
  titles, rows, against_rows, setting_rows = size_plots.methods(record), [], [], []
  against = [n for n in titles if any(n in size["against_ft"] for size in record["sizes"])]
  for size in record["sizes"]:
    link, found = _link(size, workdir), {name: _method(size, name) for name in titles}
    rows.append([link, *(_accuracy_cell(method) for method in found.values())])
    against_rows.append([link, *(_difference_cell(size["against_ft"].get(n)) for n in against)])
    setting_rows.append([link, *(_setting_cell(method) for method in found.values())])
  heads = html.swatched(titles, list(titles))
  parts = ["<h2>Accuracies</h2>" + html.grid(["Test accuracy, %; images", *heads], rows, "results")]
  if against:
    header = ["Difference, points; images", *html.swatched(titles, against)]
    parts.append(
      f"<h3>Against full fine-tuning</h3>{html.grid(header, against_rows, 'results')}"
      f"<p>{html.escape(_INTERVALS)} <em>Undecided</em>: the interval includes 0.</p>"
    )
  header = ["Setting chosen; images", *heads]
  if any("chosen" in size for size in record["sizes"]):
    header.append("Units that SubTuning trains")
    for cells, size in zip(setting_rows, record["sizes"], strict=True):
      cells.append(f'<div class="names">{html.escape(_chosen_text(size))}</div>')
  parts.append(f"<h3>Settings chosen</h3>{html.grid(header, setting_rows, 'results')}")
  return parts


def _chosen_text(size: Row) -> str:
  return " + ".join(size["chosen"]) or "head alone" if "chosen" in size else ""


def _accuracy_cell(method: Row | None) -> str:
  return (
    "" if method is None else search_page.interval_cell(search_lib.estimate(method, "accuracy"))
  )


def _difference_cell(entry: Row | None) -> str:
  return "" if entry is None else search_page.difference_cell(search_lib.estimate(entry))


def _setting_cell(method: Row | None) -> str:
  if method is None or method.get("value") is None:
    return ""
  name, value = words.setting_name(method["setting"]), words.setting_value(method["value"])
  return html.escape(f"{name} {value}")


def _best_section(record: Row) -> str:
  rows = []
  for head, best, near in best_units(record):
    rows.append([
      f"{head['size']:,}", search_page.interval_cell(search_lib.estimate(head)),
      html.escape(best["unit"]), search_page.interval_cell(search_lib.estimate(best)),
      f'<small class="names">{html.escape(", ".join(near)) or "none"}</small>',
    ])  # fmt: skip
  header = ["Images", "Head alone, %", "Best unit", "Its accuracy, %", "Not told apart from it"]
  return f"<h3>The best single unit</h3>{html.grid(header, rows, 'results')}" if rows else ""


def page(record: Row, drawn: Sequence[document.Figure], workdir: str | os.PathLike) -> str:
  """The whole page as text; sizes whose own report is in `workdir` are links to it."""
  data, sizes = record["data"], [f"{size['size']:,}" for size in record["sizes"]]
  facts = [
    *html.run_rows(record),
    *html.backbone_rows(record["backbone"]),
    ("Training images", html.escape(f"{', '.join(sizes)} of {data['train']}")),
    ("Classes", f"{len(data['class_names']):,}"),
    ("Test images", html.escape(f"{data['num_test']:,} of {data['test']}")),
  ]
  body = [
    f"<h1>{html.escape(record['title'])}</h1>",
    f'<p class="quiet">{html.escape(record["name"])}, {html.escape(record["created"])}. '
    f"{html.escape(', '.join(sizes))} training images.</p>",
    f'<p class="best">{html.escape(headline(record))}</p>',
    *(html.figure_section(figure) for figure in drawn),
    _best_section(record),
    *_tables(record, pathlib.Path(workdir)),
    f"<h2>The run</h2>{html.fact_list(facts)}",
    html.settings(record["config"]),
    html.attribution(data.get("attribution")),
  ]
  return html.document(record["title"], body)


def write_page(record: Row, workdir: str | os.PathLike) -> pathlib.Path:
  """Writes report.html and figures/*.png into `workdir`; returns the page's path."""
  drawn = figures(record)
  return html.write(workdir, page(record, drawn, workdir), drawn)
