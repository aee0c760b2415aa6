"""The commands of docs/your_pictures.md in a row, on small pictures and with little training."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from tests import config_files, photos

PAGE = (config_files.ROOT / "docs/your_pictures.md").read_text()
COMMANDS = re.findall(r"^subtune .*$", PAGE, re.MULTILINE)
SMALL = [
  "--config.data.image_size=32", "--config.methods=('lp','subtuning')", "--config.search.epochs=1",
  "--config.search.units=2", "--config.subtuning.epochs=1", "--config.lp.l2=(0.1,)",
  "--config.subtuning.learning_rates=(1e-3,)",
]  # fmt: skip


def test_the_page_has_them():
  assert [command.split()[1] for command in COMMANDS] == [
    "data", "train", "train", "predict", "export",
  ]  # fmt: skip


@pytest.mark.slow
def test_from_a_folder_of_photographs_to_an_onnx_file(tmp_path):
  onnxruntime = pytest.importorskip("onnxruntime")
  parts, night = photos.write(tmp_path, number=30, defects=15, size=40)
  night.rename(tmp_path / "new_photos")
  (tmp_path / "night").symlink_to(tmp_path / "new_photos")
  inherited = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  for command in COMMANDS:
    given = shlex.split(command.replace("/path/to", str(parts.parent)))[1:]
    more = SMALL if given[0] == "train" else []
    done = subprocess.run(
      [sys.executable, "-m", "subtune_jax.cli", *given, *more],
      cwd=tmp_path, env=inherited | {"PYTHONPATH": str(config_files.ROOT)}, capture_output=True,
      text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
  assert (tmp_path / "runs/parts/final/report.html").is_file()
  rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
  assert len(rows) == 45
  session = onnxruntime.InferenceSession(tmp_path / "parts.onnx")
  names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
  size = session.get_inputs()[0].shape[1]
  images = [
    Image.open(tmp_path / row["file"]).resize((size, size), Image.Resampling.BICUBIC)
    for row in rows
  ]
  (found,) = session.run(["probabilities"], {"images": np.stack([np.asarray(i) for i in images])})
  assert [names[k] for k in found.argmax(-1)] == [row["prediction"] for row in rows]
  written = np.array([float(row["probability"]) for row in rows])
  np.testing.assert_allclose(found.max(-1), written, atol=1e-4)
