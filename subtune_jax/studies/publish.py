"""Where a report goes at the end of a run: a page in the workdir, its text on the terminal."""

import importlib
import os
import pathlib
from typing import TextIO

from subtune_jax.report import document as document_lib
from subtune_jax.report import html, terminal
from subtune_jax.studies import fields

_HERE = pathlib.Path(__file__).parent
STUDIES = sorted(path.parent.name for path in _HERE.glob("*/page.py"))


def publish(
  document: document_lib.Document, workdir: str | os.PathLike, stream: TextIO
) -> pathlib.Path:
  """Writes report.html and figures/*.png, prints the text, and returns the page's path."""
  page = html.write(workdir, document)
  stream.write(f"{terminal.render(document)}\nreport: {page}\n")
  return page


def document_of(workdir: str | os.PathLike) -> document_lib.Document:
  """The report of a finished run of any study, from what it left in `workdir`.

  Raises:
    FileNotFoundError: there is no record, or a file that it names is missing.
    ValueError: the record is damaged, of no study of this library, or contradicts itself.
  """
  kind = fields.kind_of(fields.read(workdir))
  where = f"{pathlib.Path(workdir) / fields.RESULTS}: kind"
  fields.check_one_of(kind, STUDIES, where)
  return importlib.import_module(f"subtune_jax.studies.{kind}.page").document(workdir)
