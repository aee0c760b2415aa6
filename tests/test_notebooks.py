"""Every notebook runs from top to bottom."""

import os
import pathlib

import nbclient
import nbformat
import pytest

from tests import xla_flags

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "colabs").glob("*.ipynb")), ids=lambda p: p.stem)
def test_runs(path, monkeypatch, tmp_path):
  monkeypatch.setitem(os.environ, "XLA_FLAGS", xla_flags.PLAIN)  # devices as a reader has them
  monkeypatch.setitem(os.environ, "TMPDIR", str(tmp_path))
  notebook = nbformat.read(path, as_version=4)
  assert len(notebook.cells) < 40
  nbformat.validate(notebook)
  client = nbclient.NotebookClient(
    notebook, timeout=400, resources={"metadata": {"path": str(ROOT / "colabs")}}
  )
  client.execute()
