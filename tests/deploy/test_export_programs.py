"""Exported programs: what they answer, without this library, at any batch size."""

import dataclasses
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from subtune_jax.deploy.exporting import onnx_file, program, saved_model, stablehlo
from tests import marks
from tests.deploy import export_networks

FAMILIES = [*export_networks.NETWORKS, "side"]
MAIN = ("vit", "resnet", "convnext")
BATCHES = (1, 3, 7)
EVERY = [pytest.param(f, marks=[pytest.mark.slow] * (f not in MAIN)) for f in FAMILIES]


def agree(made, run, dtype="uint8"):
  for n in BATCHES:
    images = export_networks.images(made, n, seed=n)
    found = run(images.astype(dtype))
    wanted = made.logits(images)
    assert np.ptp(wanted) > 0.1
    np.testing.assert_allclose(found["logits"], wanted, atol=1e-4)
    np.testing.assert_allclose(found["probabilities"], scipy.special.softmax(wanted, -1), atol=1e-5)


# ------------------------------------------------------------------ ONNX


def session(path):
  onnxruntime = pytest.importorskip("onnxruntime")
  opened = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

  def run(images):
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(None, {"images": images}), strict=True))

  return opened, run


@pytest.fixture
def jax2onnx():
  pytest.importorskip("jax2onnx")


@pytest.mark.usefixtures("jax2onnx")
@pytest.mark.parametrize("family", EVERY)
def test_onnx_answers_as_the_network(family, tmp_path):
  made = export_networks.of_family(family)
  opened, run = session(onnx_file.write(made, tmp_path / "x.onnx"))
  agree(made, run)
  (images,) = opened.get_inputs()
  assert (images.name, images.type) == ("images", "tensor(uint8)")
  assert isinstance(images.shape[0], str)
  assert images.shape[1:] == [made.image_size, made.image_size, 3]


@pytest.mark.usefixtures("jax2onnx")
def test_onnx_says_what_a_client_needs(tmp_path):
  made = export_networks.of_family("resnet14")
  made = dataclasses.replace(made, config={"calibration": {"temperature": 1.5}})
  opened, run = session(onnx_file.write(made, tmp_path / "x.onnx", dtype="float32"))
  agree(made, run, "float32")
  said = opened.get_modelmeta().custom_metadata_map
  assert json.loads(said["class_names"]) == list(export_networks.CLASSES)
  assert json.loads(said["image_size"]) == 32
  assert json.loads(said["temperature"]) == 1.5
  assert json.loads(said["preprocessing"])["mean"] == [120.0, 115.0, 100.0]
  assert said["interpolation"] == "bicubic"
  assert opened.get_inputs()[0].type == "tensor(float)"


@pytest.mark.usefixtures("jax2onnx")
@pytest.mark.slow
def test_onnx_names_the_class_that_the_network_names(tmp_path):
  made, images = export_networks.with_imagenet_weights()
  _, run = session(onnx_file.write(made, tmp_path / "x.onnx"))
  assert len(images) >= 150
  wanted = made.logits(images)
  for n in (*BATCHES, len(images)):
    found = run(images[:n])["logits"]
    np.testing.assert_array_equal(found.argmax(-1), wanted[:n].argmax(-1))
    np.testing.assert_allclose(found, wanted[:n], atol=1e-5 * np.abs(wanted).max())


@pytest.mark.usefixtures("jax2onnx")
def test_a_wrong_program_is_not_written(tmp_path, monkeypatch):
  made = export_networks.of_family("resnet14")
  other = dataclasses.replace(
    made, variables=jax.tree.map(lambda leaf: leaf * np.float32(1.01), made.variables)
  )
  real = program.function
  monkeypatch.setattr(program, "function", lambda own, target: real(other, target))
  for write, name in ((onnx_file.write, "x.onnx"), (stablehlo.write, "x")):
    with pytest.raises(program.ExportError, match="differ from the network's by"):
      write(made, tmp_path / name)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("jax2onnx")
def test_without_onnxruntime_the_graph_is_checked(tmp_path, monkeypatch):
  import onnx

  made, checked = export_networks.of_family("resnet14"), []
  real, find = onnx.checker.check_model, importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
  )
  monkeypatch.setattr(onnx.checker, "check_model", lambda *a, **k: checked.append(real(*a, **k)))
  onnx_file.write(made, tmp_path / "x.onnx")
  assert len(checked) == 1


def test_without_jax2onnx_the_error_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "jax2onnx", None)
  with pytest.raises(ImportError, match=re.escape("pip install 'subtune-jax[onnx]'")):
    onnx_file.write(export_networks.of_family("resnet14"), tmp_path / "x.onnx")


# ------------------------------------------------------------------ StableHLO


def _loaded(folder):
  return export.deserialize(bytearray((folder / stablehlo.PROGRAM).read_bytes()))


@pytest.mark.parametrize("family", marks.first(1, EVERY))
def test_stablehlo_answers_as_the_network_on_three_platforms(family, tmp_path):
  made = export_networks.of_family(family)
  read = _loaded(stablehlo.write(made, tmp_path / "out"))
  assert read.platforms == ("cpu", "cuda", "tpu")
  assert str(read.in_avals[0].shape[0]) == "batch"
  agree(made, jax.jit(read.call))


def test_stablehlo_of_one_platform_holds_no_choice(tmp_path):
  made = export_networks.make("convnext_tiny", {"depths": (1,), "widths": (32,)}, 16)
  one = _loaded(stablehlo.write(made, tmp_path / "one", platforms=("cpu",)))
  agree(made, jax.jit(one.call))
  cuda = _loaded(stablehlo.write(made, tmp_path / "cuda", platforms=("cuda",)))
  depthwise = "feature_group_count = 32"
  assert "stablehlo.case" not in one.mlir_module()
  assert "stablehlo.case" not in cuda.mlir_module()
  assert depthwise in cuda.mlir_module()
  assert depthwise not in one.mlir_module()


BLOCKED = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] not in {allowed} and name.partition(".")[0] in {refused}:
      raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
"""


def test_stablehlo_runs_where_this_library_is_not(tmp_path):
  """The README's own loader, in a process in which only jax and numpy can be imported."""
  made = export_networks.of_family("resnet14")
  folder = stablehlo.write(made, tmp_path / "out")
  (loader,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
  images = export_networks.images(made, 5)
  np.save(tmp_path / "images.npy", images)
  refused = {"subtune_jax", "flax", "optax", "orbax", "tensorflow", "PIL", "absl", "safetensors"}
  script = BLOCKED.format(allowed=set(), refused=refused) + loader
  script += f"answers = program(np.load({str(tmp_path / 'images.npy')!r}))\n"
  script += "np.savez('answers.npz', **{name: np.asarray(a) for name, a in answers.items()})\n"
  script += "import importlib\n"
  script += "try:\n  importlib.import_module('subtune_jax')\nexcept ModuleNotFoundError:\n"
  script += "  print('alone')\n"
  done = subprocess.run(
    [sys.executable, "-I", "-c", script], cwd=folder, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == "alone"
  assert any(name in done.stdout for name in export_networks.CLASSES)
  found = np.load(folder / "answers.npz")
  np.testing.assert_allclose(found["logits"], made.logits(images), atol=1e-5)


def test_a_network_of_bfloat16_is_exported_in_float32(tmp_path):
  made = export_networks.of_family("vit")
  half = dataclasses.replace(made, model=made.model.clone(dtype=jnp.bfloat16, parent=None))
  run = jax.jit(_loaded(stablehlo.write(half, tmp_path / "out", platforms=("cpu",))).call)
  agree(made, run)
  images = export_networks.images(made, 3)
  assert np.abs(half.logits(images) - made.logits(images)).max() > 1e-4


def test_what_is_there_stays(tmp_path):
  made = export_networks.of_family("resnet14")
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "mine").touch()
  (tmp_path / "file").touch()
  for name in ("out", "file"):
    with pytest.raises(program.ExportError, match="is there"):
      stablehlo.write(made, tmp_path / name)
  assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "mine", "out"]


def test_weights_that_no_file_holds(monkeypatch):
  monkeypatch.setattr(program, "_MAX_BYTES", 1000)
  with pytest.raises(program.ExportError, match="such a file holds 2 GB"):
    program.function(export_networks.of_family("resnet14"), "onnx")


# ------------------------------------------------------------------ SavedModel


def test_a_saved_model_that_tensorflow_cannot_run_is_not_written(tmp_path, monkeypatch):
  tf = pytest.importorskip("tensorflow")

  def refused(*_):
    raise tf.errors.InvalidArgumentError(None, None, "Cannot deserialize computation")

  monkeypatch.setattr(saved_model, "_run", refused)
  with pytest.raises(program.ExportError, match=r"cannot run what jax .*Cannot deserialize"):
    saved_model.write(export_networks.of_family("resnet14"), tmp_path / "out")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", [
  "resnet14", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES if f != "resnet14")
])  # fmt: skip
def test_a_saved_model_answers_as_the_network(family, tmp_path):
  tf = pytest.importorskip("tensorflow")
  made = export_networks.of_family(family)
  try:
    folder = pathlib.Path(saved_model.write(made, tmp_path / "out"))
  except program.ExportError as e:
    if "cannot run what jax" not in str(e):
      raise
    pytest.skip(str(e))
  signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
  agree(made, lambda images: {k: v.numpy() for k, v in signature(images=images).items()})
  assert json.loads((folder / program.FACTS).read_text())["class_names"][-1] == "ünïcode"
