"""A report as data: what a page and a terminal show, described once.

A study's page.py returns a `Document`; `html` and `terminal` render it. Adding a table is a
function that returns a `Table`.

  Section("Results", [Table(["Accuracy, %", "noto"], [["LP", accuracy(value)]]), Text("A note.")])
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import textwrap
from typing import TYPE_CHECKING, Literal

from subtune_jax.report import estimate, style, words

if TYPE_CHECKING:
  from matplotlib import figure as matplotlib_figure

_LONGEST_LIST = 34  # characters in a line of a terminal
Tone = Literal["", "best", "quiet", "undecided", "edge", "names"]


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell of a table, or a value of facts.

  Attributes:
    text: what it says; lines are parted by newlines.
    notes: smaller lines below it.
    tone: of the text; "names": a list, which may take several lines.
    note_tone: of the notes.
    color: of a small square before the text, "#RRGGBB".
    link: address relative to the page.
    code: whether the text is a command, a field or a digest.
    plain: what a terminal shows; None: the text with its notes below.
    page_only: in a header: a terminal leaves the column out.
  """

  text: str
  notes: tuple[str, ...] = ()
  tone: Tone = ""
  note_tone: Tone = ""
  color: str = ""
  link: str = ""
  code: bool = False
  plain: str | None = None
  page_only: bool = False


@dataclasses.dataclass(frozen=True)
class Text:
  """A paragraph; `lead` is set bold, in front."""

  text: str
  tone: Tone = ""
  lead: str = ""
  page_only: bool = False
  terminal_only: bool = False


@dataclasses.dataclass(frozen=True)
class Bullets:
  """A list of sentences."""

  items: Sequence[str]
  page_only: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows under a header; the first cell of a row names it.

  Attributes:
    header: a cell for each column.
    rows: of cells, as long as the header.
    page_only: not for the terminal.
    most: rows that a terminal shows.
  """

  header: Sequence[Cell | str]
  rows: Sequence[Sequence[Cell | str]]
  page_only: bool = False
  most: int | None = None

  def __post_init__(self):
    for row in self.rows:
      if len(row) != len(self.header):
        raise ValueError(f"a row of {len(row)} cells under a header of {len(self.header)}: {row}")


@dataclasses.dataclass(frozen=True)
class Facts:
  """Names and values, such as how a run was made; a value of several cells has a line for each."""

  rows: Sequence[tuple[Cell | str, Cell | str | Sequence[Cell | str]]]
  page_only: bool = True


@dataclasses.dataclass(frozen=True)
class Figure:
  """A picture that a page shows: file name without ending, heading, alt text, caption, PNG.

  Its `parts` stand below it, under the same heading.
  """

  name: str
  title: str
  alt: str
  caption: str
  data: bytes
  parts: "Sequence[Part]" = ()


@dataclasses.dataclass(frozen=True)
class Section:
  """Parts under a heading; one without parts is left out, with its heading.

  Attributes:
    title: the heading.
    parts: what it holds.
    level: 2 for a section, 3 for a part of one.
    warning: framed, for numbers that are no result.
    folded: closed until a reader opens it.
    page_only: not for the terminal.
    terminal_only: not for the page.
  """

  title: str
  parts: "Sequence[Part]"
  level: Literal[2, 3] = 2
  warning: bool = False
  folded: bool = False
  page_only: bool = False
  terminal_only: bool = False


Part = Text | Bullets | Table | Facts | Figure | Section


@dataclasses.dataclass(frozen=True)
class Document:
  """A report: its title, a line below that, and its parts."""

  title: str
  subtitle: str
  parts: Sequence[Part]

  @property
  def figures(self) -> list[Figure]:
    """All figures, in order."""
    return list(_figures(self.parts))


def _figures(parts: Iterable[Part]) -> Iterable[Figure]:
  for part in parts:
    if isinstance(part, Figure):
      yield part
    elif isinstance(part, Section):
      yield from _figures(part.parts)


def cell(value: Cell | str) -> Cell:
  """A text as a cell; cells stay."""
  return value if isinstance(value, Cell) else Cell(str(value))


def cells(value: Cell | str | Sequence[Cell | str]) -> list[Cell]:
  """One value, or several, as cells."""
  return [cell(v) for v in ([value] if isinstance(value, Cell | str) else value)]


def accuracy(value: estimate.Estimate | None, *, best: bool = False) -> Cell:
  """An accuracy in per cent with its interval in small; empty for None."""
  if value is None:
    return Cell("")
  notes = (f"{words.percent(value.low)}\N{EN DASH}{words.percent(value.high)}",)
  return Cell(
    words.percent(value.mean),
    notes if value.known else (),
    tone="best" if best else "",
    plain=words.plus_minus(value),
  )


def interval(value: estimate.Estimate | None) -> Cell:
  """An accuracy as `accuracy` has it; a terminal shows both ends of its interval."""
  if value is None:
    return Cell("")
  return dataclasses.replace(accuracy(value), plain=words.accuracy(value))


def difference(value: estimate.Estimate | None) -> Cell:
  """A difference in points with its interval and what that says; empty for None."""
  if value is None:
    return Cell("")
  if not value.known:
    return Cell(words.difference(value))
  tone: Tone = "undecided" if value.verdict == estimate.UNDECIDED else "best"
  return Cell(words.difference(value), (value.verdict,), note_tone=tone)


def names(listed: Sequence[str], notes: Sequence[str] = ()) -> Cell:
  """A list, which takes several lines where it is long; "none" if it is empty."""
  text = ", ".join(listed) or "none"
  lines = [
    line
    for own in (text, *notes)
    for line in textwrap.wrap(own, _LONGEST_LIST, max_lines=3, break_on_hyphens=False)
  ]
  return Cell(text, tuple(notes), tone="names", plain="\n".join(lines))


def setting(name: str, value: float, *, at_edge: bool = False) -> Cell:
  """A learning rate or strength that was chosen, marked where it ends its grid."""
  text = words.setting(name, value)
  notes = ("! edge of grid",) if at_edge else ()
  return Cell(text, notes, note_tone="edge", plain=f"{text} {'!' if at_edge else ' '}")


def methods(titles: Mapping[str, str]) -> dict[str, Cell]:
  """Titles of methods behind their colours, by name."""
  colors = style.colors(list(titles))
  return {name: Cell(title, color=colors[name]) for name, title in titles.items()}


# Name, title, matplotlib's figure or None, alt text, caption.
Drawn = tuple[str, str, "matplotlib_figure.Figure | None", str, str]


def rendered(drawn: Iterable[Drawn]) -> list[Figure]:
  """The figures that there are, as PNG; None stands for one that a record has nothing for."""
  from subtune_jax.report import charts

  return [
    Figure(name, title, alt, caption, charts.png(figure))
    for name, title, figure, alt, caption in drawn
    if figure is not None
  ]
