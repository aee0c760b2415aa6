"""One page for a person: WORKDIR/report.html, which opens anywhere without a network.

  html.write_report(workdir)

Images are in the page; there are no scripts, fonts or links to load. The figures are also written
to WORKDIR/figures/.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import html
import os
import pathlib
from typing import TYPE_CHECKING, Any

from subtune_jax.report import plots, records, style, table

if TYPE_CHECKING:
  from matplotlib import figure as matplotlib_figure

PAGE = "report.html"
FIGURES = "figures"

_CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1160px; padding: 24px 20px 60px; background: #fff; color: #222;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.25rem; margin: 44px 0 8px; padding-top: 14px; border-top: 1px solid #e2e2e2; }
h3 { font-size: 1rem; margin: 24px 0 6px; }
p { margin: 8px 0; max-width: 78ch; }
.quiet { color: #5a5a5a; font-size: .92rem; }
.scroll { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: 6px 8px; text-align: right; vertical-align: top; white-space: nowrap;
  font-variant-numeric: tabular-nums; border-bottom: 1px solid #ececec; }
thead th { border-bottom: 2px solid #222; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.results th:first-child { position: sticky; left: 0; background: #fff; }
.results tbody th, .results .names { white-space: normal; max-width: 15em; }
tbody th { font-weight: 500; }
small { display: block; color: #5a5a5a; font-size: .8rem; }
.best { font-weight: 700; }
.undecided { color: #5a5a5a; }
.edge { color: #a34700; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em;
  border-radius: 2px; }
.facts td, .facts th { white-space: normal; text-align: left; overflow-wrap: anywhere; }
.facts th { font-weight: 500; color: #5a5a5a; min-width: 9em; }
figure { margin: 12px 0 28px; }
figure img { display: block; width: 100%; height: auto; }
figcaption { color: #5a5a5a; font-size: .92rem; max-width: 78ch; }
code, pre { font: .88em/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
@media (max-width: 720px) {
  body { padding: 16px 14px 40px; }
  figure img { width: 860px; max-width: none; }
  th, td { padding: 5px 8px; }
}
"""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclasses.dataclass(frozen=True)
class Figure:
  """A figure of the page: file name without ending, heading, alt text, caption, PNG."""

  name: str
  title: str
  alt: str
  caption: str
  data: bytes


# Name, title, matplotlib's figure or None, alt text, caption.
Drawn = tuple[str, str, "matplotlib_figure.Figure | None", str, str]


def rendered(drawn: Iterable[Drawn]) -> list[Figure]:
  """The figures that there are, as PNG; None stands for one that a record has nothing for."""
  return [
    Figure(name, title, alt, caption, plots.png(figure))
    for name, title, figure, alt, caption in drawn
    if figure is not None
  ]


def escape(value: Any) -> str:
  """A value as text of the page."""
  return html.escape(str(value), quote=True)


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], css: str) -> str:
  """A table of cells that are HTML already; the first of a row is its heading."""
  head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
  body = "".join(
    f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
    for row in rows
  )
  head = f"<thead><tr>{head}</tr></thead>" if header else ""
  return f'<div class="scroll"><table class="{css}">{head}<tbody>{body}</tbody></table></div>'


def swatch(color: str) -> str:
  """A small square of a colour, before a name."""
  return f'<span class="swatch" style="background:{color}"></span>'


def swatched(titles: Mapping[str, str], names: Iterable[str] | None = None) -> list[str]:
  """Titles of methods behind their colours; of `names`, by default of all."""
  colors = style.colors(list(titles))
  return [swatch(colors[n]) + escape(titles[n]) for n in (titles if names is None else names)]


def _method_cell(summary: table.Summary, name: str) -> str:
  color = style.colors([row.name for row in summary.rows])[name]
  return swatch(color) + escape(summary.titles[name])


def _accuracy_cell(summary: table.Summary, row: table.Row, column: str) -> str:
  score = row.accuracy[column]
  best = len(summary.rows) > 1 and summary.winner(column) == row.name
  css = ' class="best"' if best else ""
  low, high = table.percent(score.low), table.percent(score.high)
  return f"<span{css}>{table.percent(score.mean)}</span><small>{low}\N{EN DASH}{high}</small>"


def results_section(summary: table.Summary, title: str = "Results") -> str:
  """The table of accuracies and costs, and what may be said about who is ahead."""
  header = ["Test accuracy, %", *(escape(c.title) for c in summary.columns)]
  header += ["Parameters trained", "Seconds a training", "Setting chosen", "Weights moved"]
  rows = []
  for row in summary.rows:
    setting = escape(f"{table.setting_name(row.setting)} {table.setting_value(row.value)}")
    if row.at_edge:
      setting += '<small class="edge">! edge of grid</small>'
    cells = [_method_cell(summary, row.name)]
    cells += [_accuracy_cell(summary, row, column.key) for column in summary.columns]
    cells += [table.parameters(row.trained_params)]
    compiling = f"<small>compile {table.seconds(row.compile_seconds)}</small>"
    cells += [table.seconds(row.seconds) + compiling]
    rows.append([*cells, setting, f"{table.percent(row.moved, 2)} %"])
  note = ""
  if len(rows) > 1:
    rows.append(["Highest", *(_leader_cell(summary, c.key) for c in summary.columns), *[""] * 4])
    note = (
      "<p>Bold: above every other method by a difference whose interval excludes 0. Undecided: "
      "the methods named cannot be told apart by these data. Small: 95 % intervals.</p>"
    )
  note += "".join(f'<p class="edge">{escape(line)}</p>' for line in summary.unstable)
  return f"<h2>{escape(title)}</h2>{grid(header, rows, 'results')}{note}"


def _leader_cell(summary: table.Summary, column: str) -> str:
  names = [escape(summary.titles[name]) for name in summary.leaders[column]]
  if len(names) == 1:
    return f'<span class="best">{names[0]}</span>'
  return (
    f'<span class="undecided">undecided</span><small class="names">{"<br>".join(names)}</small>'
  )


def differences_section(summary: table.Summary) -> str:
  """The table of differences from the reference; empty without one."""
  if not summary.differences:
    return ""
  rows = []
  for name, differences in summary.differences.items():
    cells = [_method_cell(summary, name)]
    for column in summary.columns:
      difference = differences[column.key]
      css = "undecided" if difference.verdict == table.UNDECIDED else "best"
      text = escape(table.difference_text(difference))
      cells.append(f'{text}<small class="{css}">{difference.verdict}</small>')
    rows.append(cells)
  header = ["Difference, points", *(escape(c.title) for c in summary.columns)]
  reference = escape(summary.titles[summary.reference])
  return (
    f"<h2>Against {reference}</h2>{grid(header, rows, 'results')}"
    f"<p>Accuracy minus that of {reference} on the same images, with its 95 % interval. "
    "<em>Undecided</em>: the interval includes 0.</p>"
  )


def fact_list(rows: Sequence[tuple[str, str]]) -> str:
  """A table of names and values, HTML already."""
  return grid([], rows, "facts")


def run_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
  """How a run was made, for `fact_list`: command, date, versions, devices."""
  return [
    ("Command", f"<code>{escape(record['command'])}</code>"),
    ("Written", escape(record["created"])),
    ("Versions", escape(", ".join(f"{k} {v}" for k, v in record["versions"].items()))),
    ("Devices", escape(record["devices"])),
  ]


def backbone_rows(backbone: Mapping[str, Any]) -> list[tuple[str, str]]:
  """The backbone and its weights, for `fact_list`."""
  size = f"{backbone['num_params']:,} parameters, {backbone['image_size']} px"
  return [
    ("Backbone", escape(f"{backbone['name']}, {size}")),
    (
      "Weights",
      f"{escape(backbone['weights'])}<br>SHA-256 <code>{escape(backbone['sha256'])}</code>",
    ),
  ]


def run_facts(run: records.Run) -> str:
  """How the run was made: command, versions, devices, backbone, sizes of the data."""
  data = run.record["data"]
  rows = [
    *run_rows(run.record),
    ("Seeds", escape(", ".join(str(seed) for seed in run.seeds))),
    *backbone_rows(run.record["backbone"]),
    (
      "Training images",
      escape(
        f"{data['num_train']:,} of {data['train']}, "
        f"{data['num_validation']:,} for validation, "
        f"{len(data['class_names'])} classes"
      ),
    ),
    ("Test images", escape(", ".join(f"{name} {n:,}" for name, n in data["num_test"].items()))),
  ]
  return f"<h2>The run</h2>{fact_list(rows)}"


def stages(run: records.Run) -> str:
  rows = []
  for method in run.record["methods"]:
    for number, stage in enumerate(method["stages"], start=1):
      title = f"{method['title']}, stage {number}" if len(method["stages"]) > 1 else method["title"]
      epochs = "1 epoch" if stage["epochs"] == 1 else f"{stage['epochs']} epochs"
      text = f"{stage['title']}: {stage['solver']}, {epochs}, "
      text += f"{stage['trained_params']:,} parameters"
      rows.append((escape(title), escape(text)))
  return f"<h3>Stages</h3>{fact_list(rows)}"


def attribution(value: Any) -> str:
  """Licences and sources of the data: a text, a list of texts, or one text per name."""
  if not value:
    return ""
  if isinstance(value, Mapping):
    value = [f"{name}: {text}" for name, text in value.items()]
  texts = [value] if isinstance(value, str) else value
  return "<h2>Data and licences</h2>" + "".join(f"<p>{escape(text)}</p>" for text in texts)


def figures(run: records.Run, summary: table.Summary) -> list[Figure]:
  """All figures of a run, rendered; those that its record has nothing for are left out."""
  titles = ", ".join(run.titles.values())
  drawn = [
    (
      "accuracy", "Accuracy by domain", plots.accuracy_bars(run, summary),
      f"Bar chart of the test accuracy of {titles} on every domain; the numbers are in the table.",
      "Bars: mean over seeds. Lines: 95 % intervals. Dots: single seeds. Whether two methods "
      "differ is in the table of differences, not in whether their lines overlap.",
    ),
    (
      "blocks", "What was trained", plots.trained_blocks(run),
      "Blocks of the network from input to head, a row per method and stage, coloured if trained.",
      "The network from input (left) to head (right). Coloured and ticked: trained in that stage. "
      "Boxes are wider where there are more parameters.",
    ),
    (
      "settings", "Choice of the setting", plots.setting_grids(run),
      "Validation accuracy against the settings tried, a panel per method, the chosen one ringed.",
      "Ringed: the setting chosen on the validation split. At the edge of a grid, a better one "
      "may lie outside of it.",
    ),
    (
      "curves", "Learning curves", plots.learning_curves(run),
      "Validation accuracy and training loss by epoch, a column per method.",
      "Thin: single seeds. Thick: their mean. Dashed: the start of the next stage; stages are "
      "named below, under The run.",
    ),
  ]  # fmt: skip
  short = records.short_names(list(run.tests))
  for name, images in records.load_images(run.workdir).items():
    if name in run.tests and len(images.ids):
      drawn.append((
        f"examples_{_file_name(short[name])}", f"Test images: {short[name]}",
        plots.example_images(run, name, images),
        f"Test images of {short[name]} with their true class and the prediction of each method.",
        "True class above, predictions of each method's first seed below: "
        f"{style.RIGHT_SYMBOL} right, {style.WRONG_SYMBOL} wrong.",
      ))  # fmt: skip
  return rendered(drawn)


def _file_name(text: str) -> str:
  return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in text)


def figure_section(figure: Figure) -> str:
  """A figure under its heading, the image in the page."""
  data = base64.b64encode(figure.data).decode("ascii")
  return (
    f'<h2>{escape(figure.title)}</h2><figure><div class="scroll">'
    f'<img alt="{escape(figure.alt)}" src="data:image/png;base64,{data}"></div>'
    f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
  )


def settings(config: Mapping[str, Any]) -> str:
  """The fields of a config."""
  rows = [
    (f"<code>{escape(key)}</code>", f"<code>{escape(value)}</code>")
    for key, value in records.flatten(config).items()
  ]
  return f"<h2>Settings</h2>{fact_list(rows)}"


def document(title: str, body: Sequence[str]) -> str:
  """A whole page of the parts in `body`, HTML already; empty ones are left out."""
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n<body>\n"
    + "\n".join(part for part in body if part)
    + "\n</body></html>\n"
  )


def page(run: records.Run, summary: table.Summary, drawn: Sequence[Figure]) -> str:
  """The whole page as text."""
  record = run.record
  body = [
    f"<h1>{escape(record['title'])}</h1>",
    f'<p class="quiet">{escape(record["name"])}, {escape(record["created"])}. '
    f"{escape(table.seeds_text(summary))}, {escape(table.sizes_text(summary))}.</p>",
    results_section(summary),
    differences_section(summary),
    f"<h3>What the intervals mean</h3><p>{escape(table.interval_text(summary))}</p>",
    *(figure_section(figure) for figure in drawn),
    run_facts(run),
    stages(run),
    settings(record["config"]),
    attribution(record["data"].get("attribution")),
  ]
  return document(record["title"], body)


def write(workdir: str | os.PathLike, text: str, drawn: Sequence[Figure]) -> pathlib.Path:
  """Writes a page as report.html and its figures as figures/*.png; returns the page's path."""
  workdir = pathlib.Path(workdir)
  for figure in drawn:
    records.write_atomically(workdir / FIGURES / f"{figure.name}.png", figure.data)
  path = workdir / PAGE
  records.write_atomically(path, text.encode("utf-8"))
  return path


def write_page(run: records.Run, summary: table.Summary) -> pathlib.Path:
  """Writes report.html and figures/*.png into the run's workdir; returns the page's path."""
  drawn = figures(run, summary)
  return write(run.workdir, page(run, summary, drawn), drawn)


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
  """Reads the records in `workdir` and writes report.html and figures/*.png beside them.

  Returns:
    The path of the page.

  Raises:
    FileNotFoundError, ValueError: see `records.load`.
  """
  run = records.load(workdir)
  return write_page(run, table.summarize(run))
