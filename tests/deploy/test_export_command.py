"""`python -m subtune_jax.export`: each format, and what is refused in one line."""

import functools
import json
import pathlib

import numpy as np
import pytest

import subtune_jax
from subtune_jax import export
from subtune_jax.deploy import description, folder
from tests import deploy_network
from tests.deploy import export_networks

run = functools.partial(deploy_network.run, export.main)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A model folder of a small ViT, which every format holds."""
  name, options, _ = export_networks.NETWORKS["vit"]
  path = tmp_path_factory.mktemp("trained") / "best"
  made = export_networks.make(*export_networks.NETWORKS["vit"], config={"calibration": {}})
  return folder.save(path, description.Network(name, options), made)


def test_stablehlo_and_safetensors(saved, tmp_path, capsys):
  out = tmp_path / "hlo"
  code, said, _ = run(capsys, saved, "--format=stablehlo", f"--out={out}", "--platforms=cpu,tpu")
  assert (code, said.split(",")[0]) == (0, f"{out}: stablehlo")
  facts = json.loads((out / "model.json").read_text())
  assert facts["platforms"] == ["cpu", "tpu"]
  assert sorted(p.name for p in out.iterdir()) == ["README.md", "model.json", "model.stablehlo"]
  out = tmp_path / "timm"
  assert run(capsys, saved, "--format=safetensors", f"--out={out}")[0] == 0
  names = ["README.md", "config.json", "model.json", "model.safetensors"]
  assert sorted(p.name for p in out.iterdir()) == names
  assert json.loads((out / "config.json").read_text())["architecture"] == "vit_base_patch16_224"
  assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_onnx(saved, tmp_path, capsys):
  onnxruntime = pytest.importorskip("onnxruntime")
  pytest.importorskip("jax2onnx")
  out = tmp_path / "network.onnx"
  assert run(capsys, saved, "--format=onnx", f"--out={out}", "--input=float32")[0] == 0
  assert [p.name for p in tmp_path.iterdir()] == ["network.onnx"]
  made = subtune_jax.load(saved)
  images = export_networks.images(made, 2)
  found = onnxruntime.InferenceSession(str(out)).run(["logits"], {"images": np.float32(images)})
  np.testing.assert_allclose(found[0], made.logits(images), atol=1e-4)


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["other", "--format=saved_model", "--out=x"], "--format=saved_model holds one network"),
    (["--format=onnx"], "the following arguments are required: --out"),
    (["--format=tflite", "--out=x"], "invalid choice: 'tflite'"),
    (["--format=onnx", "--out=x"], "x is to be one file; give a name that ends in .onnx"),
    (["--format=onnx", "--out=x.onnx", "--layout=timm"],
     "--layout is for --format=safetensors, not onnx"),
    (["--format=safetensors", "--out=x", "--platforms=cpu"],
     "--platforms is for --format=stablehlo, not safetensors"),
    (["--format=stablehlo", "--out=x", "--platforms=gpu"], "Allowed: 'cpu', 'cuda', 'tpu', 'rocm'"),
    (["--format=stablehlo", "--out=x", "--platforms="], "is empty or has one twice"),
    (["--format=stablehlo", "--out=there"], "there is there; give the name of a new folder"),
    (["--format=stablehlo", "--out=there/file/x"], "Not a directory"),
  ],
)  # fmt: skip
def test_bad_input_is_one_line_and_code_2(saved, tmp_path, capsys, monkeypatch, arguments, said):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "there").mkdir()
  (tmp_path / "there" / "file").touch()
  code, out, error = run(capsys, saved, *arguments)
  assert (code, out) == (2, "")
  assert error.startswith("error: ")
  assert error.count("\n") == 1
  assert said in error
  assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "there"]


def test_no_folder_is_one_line(tmp_path, capsys):
  path = pathlib.Path(tmp_path / "nowhere")
  code, _, error = run(capsys, path, "--format=onnx", f"--out={tmp_path / 'x.onnx'}")
  assert (code, error.startswith(f"error: there is no folder {path}")) == (2, True)
