"""The API reference is built from the docstrings without a warning."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_the_reference_is_built_without_a_warning(tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "pdoc", "--docformat", "google", "--no-show-source", "--no-search",
     "--output-dir", str(tmp_path), "subtune_jax"],  # half the time without source and search
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stderr.strip() == ""
  pages = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
  assert len(pages) > 100
  assert "subtune_jax/masks.html" in pages
