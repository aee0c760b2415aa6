"""A multi-task network as StableHLO, read back by jax alone."""

import json

import jax
from jax import export
import numpy as np
import pytest

from subtune_jax import multitask
from subtune_jax.deploy.exporting import program
from subtune_jax.multitask import exporting
from tests.multitask import made


def test_a_program_answers_for_every_task(tmp_path, monkeypatch):
  base = made.backbone(made.RESNET)
  tasks = {"a": made.task(base, ("block3/unit1",), 1), "b": made.task(base, (), 2, num_classes=5)}
  network = multitask.MultiTask(tasks)
  folder = exporting.write_stablehlo(network, tmp_path / "out", platforms=("cpu",))
  data = (folder / "model.stablehlo").read_bytes()
  found = jax.jit(export.deserialize(bytearray(data)).call)(made.images(2))
  said = json.loads((folder / "model.json").read_text())
  for name, own in network.apply(made.images(2)).items():
    np.testing.assert_allclose(found[name]["logits"], own.logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[name]["probabilities"].sum(-1), 1, rtol=1e-5)
    assert len(said["tasks"][name]["class_names"]) == own.logits.shape[-1]
  with pytest.raises(program.ExportError, match="is there"):
    exporting.write_stablehlo(network, folder, platforms=("cpu",))
  other = multitask.MultiTask({"a": made.task(base, ("stem",), 3), "b": tasks["b"]})
  with pytest.raises(program.ExportError, match="'a': the program's logits differ"):
    exporting._check(other, jax.jit(export.deserialize(bytearray(data)).call), "uint8")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_program_for_another_machine_is_written_without_a_run(tmp_path):
  network = multitask.MultiTask({"a": made.task(made.backbone(made.RESNET), (), 1)})
  folder = exporting.write_stablehlo(network, tmp_path / "out", platforms=("tpu",))
  data = (folder / "model.stablehlo").read_bytes()
  assert export.deserialize(bytearray(data)).platforms == ("tpu",)


def test_onnx_has_the_answers_of_every_task(tmp_path):
  onnxruntime = pytest.importorskip("onnxruntime")
  pytest.importorskip("jax2onnx")
  base = made.backbone(made.RESNET)
  tasks = {"a": made.task(base, ("block3/unit1",), 1), "b": made.task(base, (), 2, num_classes=5)}
  network = multitask.MultiTask(tasks)
  path = exporting.write_onnx(network, tmp_path / "both.onnx")
  session = onnxruntime.InferenceSession(str(path))
  for n in (1, 5):
    found = session.run(None, {"images": made.images(n)})
    found = dict(zip((output.name for output in session.get_outputs()), found, strict=True))
    assert set(found) == {"a/logits", "a/probabilities", "b/logits", "b/probabilities"}
    for name, own in network.apply(made.images(n)).items():
      np.testing.assert_allclose(found[f"{name}/logits"], own.logits, rtol=1e-4, atol=1e-4)
      np.testing.assert_allclose(found[f"{name}/probabilities"].sum(-1), 1, rtol=1e-5)
  said = json.loads(session.get_modelmeta().custom_metadata_map["tasks"])
  assert [len(said[name]["class_names"]) for name in "ab"] == [3, 5]
  other = multitask.MultiTask({"a": made.task(base, ("stem",), 3), "b": tasks["b"]})
  monkey = exporting.function(network, "onnx")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(exporting, "function", lambda *_: monkey)
    with pytest.raises(program.ExportError, match="'a': the program's logits differ"):
      exporting.write_onnx(other, tmp_path / "other.onnx")
  assert [p.name for p in tmp_path.iterdir()] == ["both.onnx"]


def test_names_of_tasks():
  found = multitask.named(["runs/emoji/best", "sans=runs/x/best", "folders/serif"])
  assert found == {
    "emoji": "runs/emoji/best", "sans": "runs/x/best", "serif": "folders/serif"
  }  # fmt: skip
  for wrong in (["a=x", "a=y"], ["=x"], ["a/b=x"]):
    with pytest.raises(ValueError, match="NAME=FOLDER"):
      multitask.named(wrong)
