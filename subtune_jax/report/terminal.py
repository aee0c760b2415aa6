"""A document as plain text, for a terminal of a given width."""

from collections.abc import Iterable, Sequence
import textwrap

from subtune_jax.report import document as document_lib

WIDTH = 118
_TEXT_WIDTH = 100  # of sentences, which wide terminals make hard to read
_GAP = "  "
_JOINED = "\N{NO-BREAK SPACE}"
_NAMES = (
  36,
  21,
)  # characters of a row's name in a line: where the table fits, and where it does not


def render(document: document_lib.Document, *, width: int = WIDTH) -> str:
  """The parts of a document that a terminal shows, without figures and facts."""
  return "\n\n".join(_all(document.parts, width)) + "\n"


def _all(parts: Iterable[document_lib.Part], width: int) -> list[str]:
  return [text for part in parts for text in _part(part, width) if text]


def _part(part: document_lib.Part, width: int) -> list[str]:
  if getattr(part, "page_only", False):
    return []
  if isinstance(part, document_lib.Section | document_lib.Figure):
    inner = _all(part.parts, width)
    return [part.title, *inner] if inner else []
  if isinstance(part, document_lib.Text):
    return [wrapped(f"{part.lead} {part.text}".strip(), width)]
  if isinstance(part, document_lib.Bullets):
    return ["\n".join(wrapped(f"- {item}", width) for item in part.items)]
  if isinstance(part, document_lib.Facts):
    rows = [[name, _joined(value)] for name, value in part.rows]
    return ["\n".join(wrapped(f"{_plain(name)}: {value}", width) for name, value in rows)]
  shown = [i for i, c in enumerate(part.header) if not document_lib.cell(c).page_only]
  header = [_plain(part.header[i]) for i in shown]
  cells = [[_plain(row[i]) for i in shown] for row in part.rows[: part.most]]
  for longest in _NAMES:
    folded = [[_folded(row[0], longest), *row[1:]] for row in cells]
    if sum(_widths([header, *folded])) + len(_GAP) * (len(header) - 1) <= width:
      break
  return [grid(header, folded, width)]


def _joined(value: "document_lib.Cell | str | Sequence[document_lib.Cell | str]") -> str:
  return "; ".join(_plain(cell) for cell in document_lib.cells(value))


def _folded(name: str, longest: int) -> str:
  lines = [
    line
    for text in name.split("\n")
    for line in textwrap.wrap(text, longest, max_lines=4, break_on_hyphens=False) or [""]
  ]
  return "\n  ".join(lines)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
  """Characters of the longest line of each column."""
  return [
    max(len(line) for cell in column for line in cell.split("\n"))
    for column in zip(*rows, strict=True)
  ]


def _plain(value: document_lib.Cell | str) -> str:
  cell = document_lib.cell(value)
  return cell.plain if cell.plain is not None else "\n".join([cell.text, *cell.notes])


def wrapped(text: str, width: int) -> str:
  """Lines of text; a number stays with its sign, from which a no-break space parts it."""
  text = text.replace(" %", f"{_JOINED}%")
  filled = textwrap.fill(
    text, min(width, _TEXT_WIDTH), subsequent_indent="  ", break_on_hyphens=False
  )
  return filled.replace(_JOINED, " ")


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
  """Columns of text, the first to the left; those past `width` go to a further table below.

  A cell may hold several lines.
  """
  widths = _widths([header, *rows])
  cells = [[cell.split("\n") for cell in row] for row in [header, *rows]]
  tables, room = [[0]], width - widths[0]
  for i in range(1, len(header)):
    if room < widths[i] + len(_GAP) and len(tables[-1]) > 1:
      tables.append([0])
      room = width - widths[0]
    tables[-1].append(i)
    room -= widths[i] + len(_GAP)
  return "\n\n".join(_grid_text(cells, widths, chosen) for chosen in tables)


def _grid_text(
  cells: Sequence[Sequence[Sequence[str]]], widths: Sequence[int], chosen: Sequence[int]
) -> str:
  lines = []
  for number, row in enumerate(cells):
    for i in range(max(len(row[c]) for c in chosen)):
      texts = [row[c][i] if i < len(row[c]) else "" for c in chosen]
      first, *rest = (
        t.rjust(widths[c]) if c else t.ljust(widths[c]) for c, t in zip(chosen, texts, strict=True)
      )
      lines.append(_GAP.join([first, *rest]).rstrip())
    if number == 0:
      lines.append("-" * (sum(widths[c] for c in chosen) + len(_GAP) * (len(chosen) - 1)))
  return "\n".join(lines)
