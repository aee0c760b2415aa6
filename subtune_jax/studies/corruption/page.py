"""The report of a study of corruptions: a page, and a table for the terminal.

record = search_records.load(workdir, "corruption")
corruption_page.write_page(record, workdir)
"""

from collections.abc import Sequence
import os
import pathlib
import textwrap

from subtune_jax.report import document, html, terminal, words
from subtune_jax.studies.corruption import figures as corruption_plots
from subtune_jax.studies.search import page as search_page
from subtune_jax.studies.search import record as search_lib

Row = search_lib.Row
DECIDED = "none: decided"
_TEST_NOTE = (
  "95 % intervals of each accuracy. Corruptions of one set of images err together, so their mean "
  "has no interval here; whether two methods differ is in the report of each corruption."
)


def headline(record: Row) -> list[str]:
  """Which units were chosen most often, and how many certificates leave nothing open."""
  rows, names = record["rows"], search_lib.unit_names(record)
  counts = {name: sum(name in row["chosen"] for row in rows) for name in names}
  most = sorted((name for name in names if counts[name]), key=lambda name: -counts[name])[:3]
  listed = ", ".join(f"{name} ({counts[name]} of {len(rows)})" for name in most)
  lines = [f"Chosen most often: {listed}." if most else "The head alone was chosen every time."]
  certificates = [row["certificate"] for row in rows if row["certificate"]]
  if certificates:
    decided = sum(not search_lib.in_doubt(certificate) for certificate in certificates)
    text = f"Decided: {decided} of {len(certificates)} choices"
    if decided < len(certificates):
      text += "; in the others, further sets may be the best as well"
    lines.append(f"{text}.")
  means, titles = corruption_plots.mean_test(record), corruption_plots.method_titles(record)
  if means:
    listed = ", ".join(
      f"{titles[name]} {words.percent(value.mean)} %" for name, value in means.items()
    )
    lines.append(f"Mean test accuracy over the corruptions: {listed}.")
  return lines


def format_text(record: Row, width: int = terminal.WIDTH) -> str:
  """The report as plain text for a terminal of `width` columns."""
  wide = min(width, 100)
  parts = ["\n".join(search_page.wrapped(line, wide) for line in headline(record))]
  parts.append(_choice_text(record, width))
  if corruption_plots.method_titles(record):
    parts.append(_test_text(record, width))
    parts.append(search_page.wrapped(_TEST_NOTE, wide))
  return "\n\n".join(parts) + "\n"


def _choice_text(record: Row, width: int) -> str:
  header = ["held-out accuracy, %", "head", "all units", "best unit", "alone", "greedy order"]
  header += ["best", "undecided"]
  rows = []
  for title, row in zip(corruption_plots.labels(record), record["rows"], strict=True):
    best = max(row["profile"], key=lambda point: point["mean"], default=None)
    order = textwrap.wrap(order_text(row), 34, max_lines=3, break_on_hyphens=False)
    certificate = row["certificate"]
    rows.append([
      title, _percent(row["head"]), _percent(row["all"]), best["unit"] if best else "",
      _percent(best), "\n".join(order),
      search_lib.chance_text(certificate["probability_best"]) if certificate else "",
      str(len(search_lib.in_doubt(certificate))) if certificate else "",
    ])  # fmt: skip
  return terminal.grid(header, rows, width)


def _percent(entry: Row | None) -> str:
  return words.percent(entry["mean"]) if entry else ""


def order_text(row: Row) -> str:
  """The units that the greedy search took, in order; "none" where it took none."""
  taken = [step["unit"] for step in row["order"] if step["taken"]]
  return ", ".join(taken) or "none"


def _test_text(record: Row, width: int) -> str:
  methods = corruption_plots.method_titles(record)
  header = ["test accuracy, %", *methods.values()]
  rows = []
  for title, row in zip(corruption_plots.labels(record), record["rows"], strict=True):
    if row["test"]:
      rows.append([title, *(search_page.test_text(row["test"].get(name)) for name in methods)])
  means = corruption_plots.mean_test(record)
  rows.append(["mean", *(words.percent(means[n].mean) if n in means else "" for n in methods)])
  return terminal.grid(header, rows, width)


def figures(record: Row) -> dict[str, document.Figure]:
  """The figures of a study by name, rendered; those that its record has nothing for are absent."""
  drawn = [
    (
      "gains", "Which unit, by corruption", corruption_plots.gain_map(record),
      "Heat map of the gain of each unit over the head alone, a row per corruption.",
      "Held-out accuracy of each unit trained alone with the head, minus that of the head alone. "
      "Framed: the best unit of the row. A dot: the interval of the paired difference from it, "
      "over the folds, includes 0. At the right: all units (full fine-tuning).",
    ),
    (
      "order", "Greedy order", corruption_plots.greedy_order(record),
      "The steps of the greedy search by unit, a row per corruption.",
      "1: the unit that the greedy search took first, and so on; paler: later. Dashed: the step "
      "that it tried and did not take.",
    ),
    (
      "profiles", "Finetuning profiles", corruption_plots.profiles(record),
      "Held-out accuracy of each unit trained alone, a small panel per corruption.",
      "All panels have one scale, which may not start at 0. Points: means, with 95 % intervals; "
      "filled: units of the chosen set. Lines: the head alone and all units, with the bands of "
      "their intervals.",
    ),
    (
      "test", "Test accuracy", corruption_plots.test_accuracy(record),
      "Test accuracy of every method under every corruption, with intervals.",
      "Points: accuracies. Lines: 95 % intervals.",
    ),
  ]  # fmt: skip
  return {figure.name: figure for figure in document.rendered(drawn)}


def _links(record: Row, workdir: pathlib.Path) -> list[str]:
  """Titles of the corruptions; links where their own report is there."""
  found = []
  for title, row in zip(corruption_plots.labels(record), record["rows"], strict=True):
    text = html.escape(title)
    if (workdir / row["folder"] / html.PAGE).is_file():
      text = f'<a href="{html.escape(row["folder"])}/{html.PAGE}">{text}</a>'
    found.append(text)
  return found


def _choices(record: Row, links: Sequence[str]) -> str:
  names, rows = search_lib.unit_names(record), []
  for link, row in zip(links, record["rows"], strict=True):
    certificate = row["certificate"]
    cells = [
      link,
      _estimate_cell(row["head"]),
      _estimate_cell(row["all"]),
      _chosen_cell(row, names),
    ]
    if certificate:
      cells += [search_lib.chance_text(certificate["probability_best"])]
      cells += [f"{100 * certificate['expected_regret']:.2f}"]
      cells += [str(len(search_lib.in_doubt(certificate)) or DECIDED)]
    rows.append([*cells, *[""] * (7 - len(cells))])
  header = ["Held-out accuracy, %", "Head alone", "All units", "Chosen, in the order taken"]
  header += ["Best with probability", "Expected regret, points", "Undecided"]
  return (
    f"<h2>Choices and certificates</h2>{html.grid(header, rows, 'results')}"
    f"{_undecided_list(record, links)}"
  )


def _chosen_cell(row: Row, names: Sequence[str]) -> str:
  """The order of the greedy search; the chosen set where it is another."""
  text = html.escape(order_text(row))
  if {step["unit"] for step in row["order"] if step["taken"]} != set(row["chosen"]):
    text += f"<small>chosen: {html.escape(search_lib.set_name(row['chosen'], names))}</small>"
  return f'<div class="names">{text}</div>'


def _estimate_cell(entry: Row | None) -> str:
  return "" if entry is None else search_page.interval_cell(search_lib.estimate(entry))


def _undecided_list(record: Row, links: Sequence[str], most: int = 6) -> str:
  """Per corruption the sets that its certificate leaves undecided."""
  names, rows = search_lib.unit_names(record), []
  for link, row in zip(links, record["rows"], strict=True):
    others = search_lib.in_doubt(row["certificate"])
    texts = [
      f"{search_lib.set_name(other['units'], names)} "
      f"({search_lib.chance_text(other['probability'])})"
      for other in others[:most]
    ]
    texts += [f"and {len(others) - most} more"] if len(others) > most else []
    if texts:
      rows.append((link, html.escape("; ".join(texts))))
  if not rows:
    return ""
  note = "Sets that may be the best as well, with the probability of that."
  return f"<h3>Undecided</h3><p>{note}</p>{html.fact_list(rows)}"


def _tests(record: Row, links: Sequence[str]) -> str:
  methods, rows = corruption_plots.method_titles(record), []
  if not methods:
    return ""
  for link, row in zip(links, record["rows"], strict=True):
    if row["test"]:
      found = [row["test"].get(name) for name in methods]
      cells = [search_lib.estimate(entry, "accuracy") if entry else None for entry in found]
      rows.append([link, *("" if v is None else search_page.interval_cell(v) for v in cells)])
  means = corruption_plots.mean_test(record)
  cells = [search_page.interval_cell(means[name]) if name in means else "" for name in methods]
  rows.append(["Mean", *cells])
  grid = html.grid(["Test accuracy, %", *html.swatched(methods)], rows, "results")
  return f"<h2>Test accuracies</h2>{grid}<p>{html.escape(_TEST_NOTE)}</p>"


def page(record: Row, drawn: dict[str, document.Figure], workdir: str | os.PathLike) -> str:
  """The whole page as text; corruptions whose own report is in `workdir` are links to it."""
  data, links = record["data"], _links(record, pathlib.Path(workdir))
  first, *others = headline(record)
  facts = [
    *html.run_rows(record),
    *html.backbone_rows(record["backbone"]),
    *search_page.data_rows(data),
    ("Data sets", html.escape(", ".join(row["name"] for row in record["rows"]))),
    ("Units", html.escape(", ".join(search_lib.unit_names(record)))),
  ]
  sections = {name: html.figure_section(figure) for name, figure in drawn.items()}
  body = [
    f"<h1>{html.escape(record['title'])}</h1>",
    f'<p class="quiet">{html.escape(record["name"])}, {html.escape(record["created"])}. '
    f"{len(record['rows'])} corruptions of {html.escape(data['train'])}, "
    f"{data['num_examples']:,} training images each, {html.escape(search_page.folds_text(data))}."
    "</p>",
    f'<p class="best">{html.escape(first)}</p>',
    *(f"<p>{html.escape(line)}</p>" for line in others),
    sections.get("gains", ""),
    sections.get("order", ""),
    _choices(record, links),
    sections.get("test", ""),
    _tests(record, links),
    sections.get("profiles", ""),
    f"<h2>The run</h2>{html.fact_list(facts)}",
    html.settings(record["config"]),
    html.attribution(data.get("attribution")),
  ]
  return html.document(record["title"], body)


def write_page(record: Row, workdir: str | os.PathLike) -> pathlib.Path:
  """Writes report.html and figures/*.png into `workdir`; returns the page's path."""
  drawn = figures(record)
  return html.write(workdir, page(record, drawn, workdir), list(drawn.values()))
