"""The table of the registered models: `python -m subtune_jax.models`.

GFLOPs are two times the multiply-adds of convolutions and matrix products, for one image at the
model's own resolution and 1000 classes.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import sys
from typing import NamedTuple, TextIO

from subtune_jax import models, weights
from subtune_jax.data import choices
from subtune_jax.models import flops

NUM_CLASSES = 1000
_NOTE = (
  "GFLOPs: 2 x multiply-adds of one image's forward pass at that resolution; "
  f"parameters with {NUM_CLASSES} classes"
)


class Row(NamedTuple):
  """One model of the table.

  Attributes:
    name: in the registry.
    blocks: their number, without the head.
    parameters: with 1000 classes.
    image_size: the model's resolution, in pixels.
    gflops: of the forward pass of one image; two for a multiply-add.
    weights: known names of weights, without "<model>/".
  """

  name: str
  blocks: int
  parameters: int
  image_size: int
  gflops: float
  weights: tuple[str, ...]


class BlockRow(NamedTuple):
  """One block of a model, or its head.

  Attributes:
    name: of the block.
    parameters: of the block.
    before: share of the model's forward pass that runs before it, 0 to 1.
  """

  name: str
  parameters: int
  before: float


def row(name: str) -> Row:
  """Counts one registered model.

  Raises:
    ValueError: the name is not registered.
  """
  model = models.create(name, NUM_CLASSES)
  units = tuple(flops.units(model))
  known = (n.partition("/") for n in weights.names())
  return Row(
    name,
    len(model.block_names),
    sum(unit.parameters for unit in units),
    model.image_size,
    2e-9 * sum(unit.macs for unit in units),
    tuple(which for model_name, _, which in known if model_name == name),
  )


def block_rows(name: str) -> list[BlockRow]:
  """Counts the blocks of one registered model, input to output, the head last.

  Raises:
    ValueError: the name is not registered.
  """
  units = tuple(flops.units(models.create(name, NUM_CLASSES)))
  total, before, rows = sum(unit.macs for unit in units), 0, []
  for unit in units:
    rows.append(BlockRow(unit.name, unit.parameters, before / total))
    before += unit.macs
  return rows


def table(names: Sequence[str] | None = None, markdown: bool = False) -> Iterator[str]:
  """Yields the lines of the table of models; each as soon as its model is counted.

  Args:
    names: registered names; None is all of them.
    markdown: pipes between the columns rather than spaces.
  """
  names = models.names() if names is None else names
  titles = ("model", "blocks", "parameters", "pixels", "GFLOPs", "weights")
  widths = (max(map(len, (*names, titles[0]))), 6, 11, 6, 7)
  line = _markdown_line if markdown else _text_line
  yield line(titles, widths)
  if markdown:
    yield "| :--- | ---: | ---: | ---: | ---: | :--- |"
  for name in names:
    r = row(name)
    figures = (str(r.blocks), f"{r.parameters:,}", str(r.image_size), f"{r.gflops:.2f}")
    yield line((r.name, *figures, ", ".join(r.weights)), widths)
  yield f"\n{_NOTE}."


def block_table(name: str, markdown: bool = False) -> Iterator[str]:
  """Yields the lines of the table of one model's blocks.

  Args:
    name: a registered name.
    markdown: see `table`.
  """
  rows = block_rows(name)
  widths = (max(len(r.name) for r in rows), 11, 14)
  line = _markdown_line if markdown else _text_line
  yield line(("block", "parameters", "forward before"), widths)
  if markdown:
    yield "| :--- | ---: | ---: |"
  for r in rows:
    yield line((r.name, f"{r.parameters:,}", f"{100 * r.before:.1f} %"), widths)


def _text_line(cells: Sequence[str], widths: Sequence[int]) -> str:
  """The first cell to the left, figures to the right, what has no width as it is."""
  first, *figures = (cell.rjust(w) for cell, w in zip(cells, widths, strict=False))
  return "  ".join([cells[0].ljust(len(first)), *figures, *cells[len(widths) :]]).rstrip()


def _markdown_line(cells: Sequence[str], widths: Sequence[int]) -> str:
  del widths
  return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None, out: TextIO | None = None) -> int:
  """Writes the table that the command line asks for.

  Args:
    arguments: of the command line; None is `sys.argv`'s.
    out: where to; None is stdout.

  Returns:
    The exit code: 0, or 2 with one line on stderr for an unknown model.
  """
  parser = argparse.ArgumentParser(
    "python -m subtune_jax.models", description="Lists the models.", epilog=f"{_NOTE}."
  )
  parser.add_argument("names", nargs="*", metavar="NAME", help="only these models")
  parser.add_argument("--blocks", metavar="NAME", help="the blocks of this model")
  parser.add_argument("--markdown", action="store_true", help="as a table in Markdown")
  given = parser.parse_args(arguments)
  write: Callable[[str], object] = (out or sys.stdout).write
  try:
    for name in (*given.names, *([given.blocks] if given.blocks else [])):
      choices.check("model", name, models.names())
  except ValueError as e:
    sys.stderr.write(f"error: {e}\n")
    return 2
  lines = (
    block_table(given.blocks, given.markdown)
    if given.blocks
    else table(given.names or None, given.markdown)
  )
  for line in lines:
    write(f"{line}\n")
    (out or sys.stdout).flush()
  return 0
