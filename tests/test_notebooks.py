"""Every notebook runs from top to bottom."""

import os
import pathlib

import nbclient
import nbformat
import pytest

from tests import xla_flags

ROOT = pathlib.Path(__file__).parents[1]


# What only they cover: the notebooks' own cells; what these call has tests of its own.
SLOW = {
  "calibration", "many_tasks", "masks_in_your_code", "quickstart", "robustness", "which_layers",
}  # fmt: skip


@pytest.mark.parametrize(
  "path",
  [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW))
    for path in sorted((ROOT / "colabs").glob("*.ipynb"))
  ],
)
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
