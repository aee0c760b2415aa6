"""Pictures of the errors of one network: confusion matrices and galleries."""

from collections.abc import Sequence
import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import charts, heat_map, style, words
from subtune_jax.studies.compare import chosen
from subtune_jax.studies.compare import figures as compare_figures

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_MOST_CLASSES = 48  # rows of a matrix; of more classes the most confused ones are drawn
NUMBERED = 16  # classes up to which the counts are written into the cells
_ROOM = 11.5  # inches across


@dataclasses.dataclass(frozen=True)
class Confusion:
  """Counts [class, answer] of a test set, or of several together.

  Attributes:
    title: of the sets.
    counts: int [classes, classes].
    names: of the classes.
    rest: whether the last class stands for all that are not drawn.
  """

  title: str
  counts: np.ndarray
  names: Sequence[str]
  rest: bool = False


def condensed(confusion: Confusion, most: int = _MOST_CLASSES) -> Confusion:
  """The `most` classes with the most errors, as class or answer, and all others as one."""
  counts = confusion.counts
  if len(counts) <= most:
    return confusion
  wrong = counts.sum(0) + counts.sum(1) - 2 * np.diag(counts)
  kept = np.sort(np.argsort(-wrong, kind="stable")[:most])
  place = np.full(len(counts), most)
  place[kept] = np.arange(most)
  small = np.zeros((most + 1, most + 1), counts.dtype)
  np.add.at(small, (place[:, None], place[None, :]), counts)
  others = f"{len(counts) - most} other classes"
  return Confusion(confusion.title, small, [*(confusion.names[k] for k in kept), others], rest=True)


def confusions(drawn: Sequence[Confusion]) -> "Figure":
  """A matrix a panel: the true class a row, the answer a column."""
  drawn = [condensed(own) for own in drawn]
  size = len(drawn[0].names)
  cell = 0.75 if size <= 3 else 0.5 if size <= 8 else 0.38 if size <= NUMBERED else 0.2
  longest = max(len(_short(name)) for own in drawn for name in own.names)
  side, margin = size * cell, 0.07 * longest + 0.75
  above = 0.5 if _is_flat(drawn[0]) else 0.058 * longest + 0.5
  per_row = max(1, min(len(drawn), int(_ROOM // (side + margin))))
  rows, width = math.ceil(len(drawn) / per_row), max(_ROOM, side + margin + 0.2)
  height = side + above + 0.25
  figure = charts.new_figure(width, height * rows, layout="none")
  for index, own in enumerate(drawn):
    row, column = divmod(index, per_row)
    left, bottom = (column + 0.5) * width / per_row - side / 2, (rows - 1 - row) * height + 0.1
    left += (margin - 0.2) / 2
    box = (left / width, bottom / (height * rows), side / width, side / (height * rows))
    _draw_confusion(figure.add_axes(box), own)
  return figure


def _is_flat(own: Confusion) -> bool:
  """Whether the answers' names fit above their columns without being turned."""
  return len(own.names) <= 3 and max(map(len, own.names)) <= 9


def _short(name: str) -> str:
  return words.shorten(name, 22)


def _draw_confusion(axes: "Axes", own: Confusion) -> None:
  from matplotlib import colors

  size, totals = len(own.names), own.counts.sum(1)
  share = own.counts / np.maximum(totals[:, None], 1)
  paint = np.ones((size, size, 4))
  paint[..., :3] = colors.to_rgb(style.WRONG)
  paint[np.arange(size), np.arange(size), :3] = colors.to_rgb(style.RIGHT)
  paint[..., 3] = np.sqrt(share)
  if own.rest:  # right answers and errors among them
    paint[-1, -1, :3] = colors.to_rgb(style.MUTED)
  axes.imshow(paint, interpolation="nearest", aspect="equal")
  names = [charts.plain(_short(name)) for name in own.names]
  rows = [f"{name} ({count:,})" for name, count in zip(names, totals, strict=True)]
  heat_map.gaps(axes, size, size, style.GRID, 0.6)
  axes.xaxis.tick_top()
  small = charts.SMALL if size <= NUMBERED else charts.SMALL - 1
  axes.set_xticks(range(size), names, rotation=0 if _is_flat(own) else 90, fontsize=small)
  axes.set_yticks(range(size), rows, fontsize=small)
  axes.set_title(charts.plain(own.title), fontsize=charts.SIZE, fontweight="bold", loc="left")
  if size > NUMBERED:
    return
  for i, j in np.ndindex(size, size):
    if own.counts[i, j] or size <= 6:
      color = "white" if paint[i, j, 3] > 0.7 else style.INK
      text = f"{own.counts[i, j]:,}"
      axes.text(j, i, text, ha="center", va="center", fontsize=charts.SMALL, color=color)


def gallery(
  images: np.ndarray, answers: chosen.Answers, places: Sequence[int], class_names: Sequence[str]
) -> "Figure":
  """Wrongly answered images: their class above, the answer and how sure it was below.

  Args:
    images: uint8 [n, height, width, 3].
    answers: of the whole set.
    places: where in it the n images are.
    class_names: of the classes.
  """
  figure, tiles = compare_figures.image_tiles(images, 2)
  predicted = answers.predicted
  for axes, place in zip(tiles, places, strict=True):
    truth, guess = int(answers.labels[place]), int(predicted[place])
    lines = [
      (f"{style.WRONG_SYMBOL} {_said(answers, place, guess, class_names)}", style.WRONG),
      (f"    {_said(answers, place, truth, class_names)}", style.MUTED),
    ]
    compare_figures.label_tile(axes, class_names[truth], lines)
  return figure


def _said(answers: chosen.Answers, place: int, of: int, class_names: Sequence[str]) -> str:
  """A class and the probability that the network gave it."""
  return f"{words.shorten(class_names[of], 17)} {probability(answers, place, of)}"


def probability(answers: chosen.Answers, place: int, of: int) -> str:
  """In per cent, one that rounds to nothing as "<0.1 %"."""
  value = answers.probability(place, of)
  return "<0.1 %" if value < 0.0005 else f"{words.percent(value)} %"
