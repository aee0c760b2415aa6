"""Every notebook runs from top to bottom."""

import os
import pathlib

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "colabs").glob("*.ipynb")), ids=lambda p: p.stem)
def test_runs(path, monkeypatch):
  monkeypatch.setitem(os.environ, "XLA_FLAGS", "")  # programs and devices as a reader has them
  notebook = nbformat.read(path, as_version=4)
  assert len(notebook.cells) < 40
  nbformat.validate(notebook)
  client = nbclient.NotebookClient(
    notebook, timeout=400, resources={"metadata": {"path": str(ROOT / "colabs")}}
  )
  client.execute()
