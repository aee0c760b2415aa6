"""The network as a row of boxes from input to head, coloured where it is trained."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from subtune_jax.report import charts, style, words

if TYPE_CHECKING:
  from matplotlib.figure import Figure


HEAD = "head"  # a block of every network


@dataclasses.dataclass(frozen=True)
class BlockRow:
  """A row of `network`: its label, the blocks that are coloured, the colour, a note at its end.

  A row with `gap` stands a little apart from the one above.
  """

  label: str
  blocks: frozenset[str]
  color: str
  note: str
  gap: bool = False


def network(backbone: Mapping[str, Any], rows: Sequence[BlockRow]) -> "Figure":
  """The network from input to head as rows of boxes.

  A box is as wide as the square root of its parameters (within limits); the numbers stand above.

  Args:
    backbone: of the record.
    rows: what is coloured; "head" is a block as well.
  """
  blocks = [*backbone["block_names"], HEAD]
  params = {**backbone["block_params"], HEAD: backbone["head_params"]}
  widths = _box_widths([params[block] for block in blocks])
  edges = np.concatenate([[0.0], np.cumsum(widths)])
  names = max(len(f"{words.shorten(b, 30)}  {words.parameters(params[b])}") for b in blocks)
  height = max(1.5, 0.08 * names + 0.25) + 0.42 * len(rows)
  figure = charts.new_figure(min(max(11, 0.42 * len(blocks) + 3.5), 24), height)
  axes = figure.add_subplot()
  tops, top = [], 0.0
  for i, row in enumerate(rows):
    top += 0.35 if i and row.gap else 0.0
    _draw_block_row(row, axes, blocks, edges, top)
    tops.append(top)
    top += 1.0
  _label_boxes(axes, blocks, params, edges)
  axes.set_yticks(
    [t + 0.41 for t in tops], [charts.plain(row.label) for row in rows], fontsize=charts.SIZE
  )
  axes.set_xlim(-0.1, edges[-1] + 0.1)
  axes.set_ylim(top, -0.15)
  axes.set_xticks([])
  axes.tick_params(axis="y", length=0)
  axes.spines[:].set_visible(False)
  return figure


def _box_widths(counts: Sequence[int]) -> np.ndarray:
  """Square roots of parameter counts, none below 0.6 or above 3 of their mean, mean 1."""
  roots = np.sqrt(np.maximum(counts, 1))
  return np.clip(roots / roots.mean(), 0.6, 3.0)


def _draw_block_row(row: BlockRow, axes, blocks, edges, top: float) -> None:
  from matplotlib import patches

  for block, left, right in zip(blocks, edges[:-1], edges[1:], strict=True):
    on = block in row.blocks
    axes.add_patch(
      patches.Rectangle(
        (left + 0.04, top),
        right - left - 0.08,
        0.82,
        linewidth=0.8,
        facecolor=row.color if on else style.FROZEN,
        edgecolor=row.color if on else "#BBBBBB",
      )
    )
    if on:
      axes.text(
        (left + right) / 2,
        top + 0.41,
        style.RIGHT_SYMBOL,
        ha="center",
        va="center",
        fontsize=charts.SMALL,
        color=style.text_color(row.color),
      )
  axes.annotate(
    charts.plain(row.note),
    (edges[-1], top + 0.41),
    (8, 0),
    textcoords="offset points",
    va="center",
    fontsize=charts.SMALL + 0.5,
    color=style.INK,
    annotation_clip=False,
  )


def _label_boxes(axes, blocks, params, edges) -> None:
  """Names and parameter counts of the blocks, upright above the first row."""
  for block, left, right in zip(blocks, edges[:-1], edges[1:], strict=True):
    axes.annotate(
      f"{charts.plain(words.shorten(block, 30))}  {words.parameters(params[block])}",
      ((left + right) / 2, -0.15),
      (0, 3),
      textcoords="offset points",
      rotation=90,
      ha="center",
      va="bottom",
      fontsize=charts.SMALL,
      color=style.INK,
      annotation_clip=False,
    )
