"""Where a report goes at the end of a run: a page in the workdir, its text on the terminal."""

import os
import pathlib
from typing import TextIO

from subtune_jax.report import document as document_lib
from subtune_jax.report import html, terminal


def publish(
  document: document_lib.Document, workdir: str | os.PathLike, stream: TextIO
) -> pathlib.Path:
  """Writes report.html and figures/*.png, prints the text, and returns the page's path."""
  page = html.write(workdir, document)
  stream.write(f"{terminal.render(document)}\nreport: {page}\n")
  return page
