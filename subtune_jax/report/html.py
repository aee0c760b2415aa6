"""A document as one page for a person: report.html, which opens anywhere without a network.

Images are in the page; there are no scripts, fonts or links to load. The figures are also written
to WORKDIR/figures/.
"""

import base64
import functools
import os
import pathlib

import jinja2

from subtune_jax import files
from subtune_jax.report import charts
from subtune_jax.report import document as document_lib

PAGE = "report.html"
FIGURES = "figures"
_PER_INCH = 118  # pixels of the page; a figure of 9.5 inches fills its width


@functools.cache
def _template() -> jinja2.Template:
  loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
  environment = jinja2.Environment(
    loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
  )
  environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
  environment.filters["width"] = _width
  environment.globals |= {
    "as_cell": document_lib.cell,
    "as_cells": document_lib.cells,
    "kind_of": lambda part: type(part).__name__,
  }
  return environment.get_template("page.html.j2")


def _width(png: bytes) -> int:
  """Pixels of the page beyond which a figure's letters would be larger than the text."""
  return round(int.from_bytes(png[16:20], "big") / charts.DPI * _PER_INCH)


def render(document: document_lib.Document) -> str:
  """The whole page as text."""
  return _template().render(document=document)


def write(workdir: str | os.PathLike, document: document_lib.Document) -> pathlib.Path:
  """Writes report.html and figures/*.png into `workdir`; returns the page's path."""
  workdir = pathlib.Path(workdir)
  for figure in document.figures:
    files.write_atomically(workdir / FIGURES / f"{figure.name}.png", figure.data)
  path = workdir / PAGE
  files.write_atomically(path, render(document).encode("utf-8"))
  return path
