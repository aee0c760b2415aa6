"""The documentation's commands name what exists, its links lead somewhere, its Python runs."""

import re

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from subtune_jax import export
from subtune_jax.deploy import folder
from tests import command, config_files, deploy_network, documented, tiny

PREPARE = "subtune_jax.data.prepare"
SAVE = "subtune_jax.save_model"
MERGE = "subtune_jax.merge"
LONG = {("subtune_jax.models",), ("subtune_jax.robustness.theory_table",)}  # half a minute each


@pytest.mark.parametrize("given", documented.commands(), ids=str)
def test_a_command_names_a_config_its_arguments_and_its_fields(given):
  config = config_files.get_config(given.config, given.argument)
  for field in given.fields:
    node = config
    for part in field.split("."):
      assert part in node, f"{field} is no field of {given.config}"
      node = node[part]


def test_there_are_commands_to_test():
  assert len(list(documented.commands())) > 30


def without_downloads():
  for line in documented.others():
    if line[:2] == (PREPARE, "cifar10") or line[0] == SAVE:  # needs a run: tests/test_main.py
      continue
    if line[0] == MERGE:  # needs an adapter: tests/deploy/test_peft_folder.py
      continue
    if "--layout=timm" in line:  # a network that timm has: tests/deploy/test_export_command.py
      continue
    slow = line in LONG or "--format=saved_model" in line or "--format=onnx" in line
    yield pytest.param(line, id=" ".join(line), marks=[pytest.mark.slow] * slow)


def network_and_photos(path):
  """What the pages call runs/quickstart/best, photos and more."""
  (path / "runs/quickstart").mkdir(parents=True)
  made = deploy_network.make(figures={})
  folder.save(path / "runs/quickstart/best", deploy_network.NETWORK, made)
  for name in ("photos/1.jpg", "photos/2.jpg", "more/late/3.jpg"):
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), "red").save(path / name)


@pytest.mark.parametrize("line", without_downloads())
def test_another_command_runs(line, tmp_path):
  rng = np.random.default_rng(0)
  for name, classes in (("train", 2), ("test", 4)):
    labels = np.arange(60) % classes
    logits = rng.normal(size=(60, 4)) + 3 * np.eye(4)[labels]
    np.savez(tmp_path / f"{name}.npz", logits=logits, labels=labels)
  network_and_photos(tmp_path)
  done = command.run_forked(*line[1:], module=line[0], cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  short = ("subtune_jax.predict", "subtune_jax.export")
  assert len(done.stdout.splitlines()) > 3 or line[0] in short
  if "FOLDER" in " ".join(line):
    assert {path.name for path in (tmp_path / "FOLDER").iterdir()} == {"curve.png", "results.json"}


def test_one_command_of_each_module_is_on_the_pages():
  modules = {line[0].removeprefix("subtune_jax.") for line in documented.others()}
  assert modules == {
    "calibrate", "data.prepare", "export", "merge", "models", "predict",
    "robustness.theory_table", "save_model",
  }  # fmt: skip


@pytest.mark.parametrize("path", documented.PAGES, ids=lambda p: p.name)
def test_links_inside_lead_to_files(path):
  targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text())
  inside = [target for target in targets if "://" not in target]
  assert [target for target in inside if not (path.parent / target).exists()] == []


def python_blocks(name):
  text = (config_files.ROOT / "docs" / name).read_text()
  return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_robustness_in_python(capsys):
  (block,) = python_blocks("robustness.md")
  exec(block, {})
  assert "{0: 1}" in capsys.readouterr().out


@pytest.mark.slow
def test_search_in_python(tmp_path, monkeypatch, capsys):
  """At 32 px and with less training, as the time of a test allows."""
  monkeypatch.chdir(tmp_path)
  (block,) = python_blocks("search.md")
  smaller = {
    '"train", 64)': '"train", 32)',
    "image_size=64": "image_size=32",
    "epochs=4": "epochs=1",
    ", 5, seed": ", 2, seed",
    "early: block1 block2; middle: block8 block9; late: block14 block15": "late: block15; end: top",
  }
  for old, new in smaller.items():
    assert old in block
    block = block.replace(old, new)
  exec(block, {})
  assert "best" in capsys.readouterr().out


def test_selection_in_python(capsys):
  (block,) = python_blocks("selection.md")
  model, variables = tiny.make()
  train = tiny.examples(18)
  rows = np.arange(18)
  space = {
    "params": variables["params"], "images": train.images.astype(np.float32) / 64,
    "features": lambda params, x: model.apply({**variables, "params": params}, x, stop="head"),
    "classes": train.labels, "groups": rows // 3,
    "folds": [(rows[rows // 3 % 2 != k], rows[rows // 3 % 2 == k]) for k in range(2)],
  }  # fmt: skip
  exec(block, space)
  assert "('early', 'late')" in capsys.readouterr().out


def test_calibration_in_python():
  (block, *_) = python_blocks("calibration.md")
  rng = np.random.default_rng(0)

  class Model:
    def apply(self, variables, x):
      return x @ variables

  space = {
    "model": Model(), "variables": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32),
    "train_images": rng.normal(size=(30, 5)).astype(np.float32),
    "train_labels": np.arange(30) % 2, "test_images": rng.normal(size=(40, 5)).astype(np.float32),
    "test_labels": np.arange(40) % 4, "absent": np.array([False, False, True, True]),
  }  # fmt: skip
  exec(block, space)
  assert np.isfinite(space["gamma"])


def test_a_model_folder_in_python(tmp_path, monkeypatch):
  network_and_photos(tmp_path)
  monkeypatch.chdir(tmp_path)
  block, *_ = python_blocks("deploy.md")
  space = {}
  exec(block, space)
  assert space["answers"].probabilities.shape == (2, 3)


@pytest.mark.parametrize("form", ["onnx", "stablehlo"])
def test_an_exported_network_in_python(form, tmp_path, monkeypatch, capsys):
  """What a client runs; that nothing of this library is needed: tests/deploy."""
  pytest.importorskip({"onnx": "jax2onnx", "stablehlo": "jax"}[form])
  network_and_photos(tmp_path)
  monkeypatch.chdir(tmp_path)
  out = {"onnx": "network.onnx", "stablehlo": "stablehlo"}[form]
  export.main(["runs/quickstart/best", f"--format={form}", f"--out={out}"])
  (block,) = (each for each in python_blocks("deploy.md") if f'"{out}' in each)
  capsys.readouterr()
  exec(block, {})
  assert capsys.readouterr().out.strip("[]\n'\"") in deploy_network.CLASSES
