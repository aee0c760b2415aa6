"""The network as a row of boxes from input to head, coloured where it is trained."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from subtune_jax.report import charts, style, words

if TYPE_CHECKING:
  from matplotlib.figure import Figure


HEAD = "head"  # a block of every network
_NOTE = charts.SMALL + 0.5


@dataclasses.dataclass(frozen=True)
class BlockRow:
  """A row of `network`: its label, the blocks that are coloured, the colour, a note at its end.

  A row with `gap` stands a little apart from the one above. `marks` has what stands in a coloured
  block in place of a tick.
  """

  label: str
  blocks: frozenset[str]
  color: str
  note: str
  gap: bool = False
  marks: Mapping[str, str] = dataclasses.field(default_factory=dict)


def network(backbone: Mapping[str, Any], rows: Sequence[BlockRow]) -> "Figure":
  """The network from input to head as rows of boxes.

  A box is as wide as the square root of its parameters (within limits); the numbers stand above.

  Args:
    backbone: of the record.
    rows: what is coloured; "head" is a block as well.
  """
  blocks = [*backbone["block_names"], HEAD]
  params = {**backbone["block_params"], HEAD: backbone["head_params"]}
  names = [f"{words.shorten(b, 30)}  {words.parameters(params[b])}" for b in blocks]
  edges = np.concatenate([[0.0], np.cumsum(_box_widths([params[b] for b in blocks]))])
  height = max(1.5, 0.08 * max(map(len, names)) + 0.25) + 0.42 * len(rows)
  figure, (axes,) = charts.panels(1, min(max(11, 0.42 * len(blocks) + 3.5), 24), height)
  tops, top = [], 0.0
  for i, row in enumerate(rows):
    top += 0.35 if i and row.gap else 0.0
    for block, left, right in zip(blocks, edges[:-1], edges[1:], strict=True):
      mark = row.marks.get(block, style.RIGHT_SYMBOL) if block in row.blocks else ""
      _draw_box(axes, left, right, top, row.color, mark)
    charts.note(axes, row.note, (edges[-1], top + 0.41), (8, 0), size=_NOTE, va="center")
    tops.append(top + 0.41)
    top += 1.0
  for name, left, right in zip(names, edges[:-1], edges[1:], strict=True):
    charts.note(
      axes, name, ((left + right) / 2, -0.15), (0, 3), rotation=90, ha="center", va="bottom"
    )
  axes.set_yticks(tops, [charts.plain(row.label) for row in rows], fontsize=charts.SIZE)
  axes.set(xlim=(-0.1, edges[-1] + 0.1), ylim=(top, -0.15), xticks=[])
  axes.tick_params(axis="y", length=0)
  axes.spines[:].set_visible(False)
  return figure


def _box_widths(counts: Sequence[int]) -> np.ndarray:
  """Square roots of parameter counts, none below 0.6 or above 3 of their mean, mean 1."""
  roots = np.sqrt(np.maximum(counts, 1))
  return np.clip(roots / roots.mean(), 0.6, 3.0)


def _draw_box(axes, left: float, right: float, top: float, color: str, mark: str) -> None:
  """A block: its mark in the colour, or grey where there is none."""
  from matplotlib import patches

  box = patches.Rectangle((left + 0.04, top), right - left - 0.08, 0.82, linewidth=0.8)
  box.set(facecolor=color if mark else style.FROZEN, edgecolor=color if mark else "#BBBBBB")
  axes.add_patch(box)
  if mark:
    axes.text((left + right) / 2, top + 0.41, mark, ha="center", va="center",
              fontsize=charts.SMALL, color=style.text_color(color))  # fmt: skip
