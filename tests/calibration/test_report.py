"""The command, the hand-worked examples and the code of the documentation."""

import doctest
import importlib
import json
import pathlib
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import calibrate, calibration
from subtune_jax.calibration import report

ROOT = pathlib.Path(__file__).parents[2]
MODULES = (
  "accuracy", "confidence", "curve", "decomposition", "gamma", "nearest_mean", "resampling",
  "scaling",
)  # fmt: skip
NAMES = ["dog", "cat", "horse", "cow"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
  result = doctest.testmod(importlib.import_module(f"subtune_jax.calibration.{name}"))
  assert result.attempted >= 2
  assert result.failed == 0


@pytest.fixture
def files(tmp_path):
  generator = np.random.default_rng(0)
  paths = {}
  for name, classes in (("train", [2, 3]), ("test", [0, 1, 2, 3])):
    labels = generator.choice(classes, 200)
    logits = 2 * np.eye(4)[labels] + generator.normal(size=(200, 4)) + [0, 0, 3, 3]
    paths[name] = tmp_path / f"{name}.npz"
    np.savez(paths[name], logits=logits.astype(np.float32), labels=labels, class_names=NAMES)
  return paths


def test_command(files, tmp_path, capsys):
  out = tmp_path / "deep" / "out"
  calibrate.main([f"--logits={files['train']}", f"--test={files['test']}", f"--out={out}"])
  text = capsys.readouterr().out
  record = json.loads((out / "results.json").read_text())
  train, test = np.load(files["train"]), np.load(files["test"])
  absent = np.array([True, True, False, False])
  gamma = calibration.average_logit_gap(train["logits"], train["labels"], absent)
  assert record["gamma"] == gamma
  assert record["absent_names"] == ["dog", "cat"]
  assert f"gamma {gamma:.6g} (alg)" in text
  assert "oracle: gamma*" in text
  assert all(column in text for column in report.COLUMNS)
  after = calibration.accuracy_table(
    calibration.calibrate(test["logits"], absent, gamma), test["labels"], absent
  )
  area = calibration.ausuc(test["logits"], test["labels"], absent)
  assert record["rows"]["after"] == after | {"AUSUC": area}
  assert record["rows"]["after"]["U/Y"] > record["rows"]["before"]["U/Y"] + 0.3
  assert record["rows"]["oracle"]["Y/Y"] >= after["Y/Y"]
  assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_intervals_of_the_command(files, tmp_path, capsys):
  train, test = report.load(files["train"]), report.load(files["test"])
  made = report.summarize(train, test)
  absent = np.array([True, True, False, False])
  for name, gamma in (("before", 0.0), ("after", made.gamma), ("oracle", made.gamma_star)):
    wanted = calibration.bootstrap(test.logits, test.labels, absent, gamma)
    assert set(wanted) == set(made.intervals[name]) == {"Y/Y", "S/Y", "U/Y", "AUSUC"}
    for column, interval in wanted.items():
      assert made.intervals[name][column] == (interval.low, interval.high)
      assert made.rows[name][column] == pytest.approx(interval.value, abs=1e-12)
  low, high = made.intervals["after"]["U/Y"]
  assert f"{100 * low:.1f}-{100 * high:.1f}" in report.format_table(made)
  pairs = np.repeat(np.arange(100), 2)
  np.savez(tmp_path / "g.npz", logits=test.logits[pairs], labels=test.labels[pairs], groups=pairs)
  wide = report.summarize(train, report.load(tmp_path / "g.npz")).intervals["after"]["Y/Y"]
  narrow = calibration.bootstrap(test.logits[pairs], test.labels[pairs], absent, made.gamma)["Y/Y"]
  assert wide[1] - wide[0] > 1.2 * (narrow.high - narrow.low)
  calibrate.main([f"--logits={files['train']}", f"--test={files['test']}", "--resamples=0"])
  assert "interval" not in capsys.readouterr().out


def test_gamma_and_absent_classes_given(files, capsys):
  calibrate.main([f"--test={files['test']}", "--gamma=-1.5", "--absent=dog,1"])
  assert capsys.readouterr().out.startswith("gamma -1.5 (given)\n2 absent classes")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--test=TEST"], "--gamma=alg needs --logits"),
    (["--logits=TRAIN"], "required: --test"),
    (["--logits=TRAIN", "--test=TEST", "--gamma=nan"], "'nan'"),
    (["--logits=TRAIN", "--test=TEST", "--gamma=one"], "'one'"),
    (["--logits=TRAIN", "--test=TEST", "--absent=cow"], "label 3 of an absent class"),
    (["--logits=TRAIN", "--test=TEST", "--absent=hen"], "'hen' is unknown"),
    (["--logits=TRAIN", "--test=TEST", "--absent=4"], "index in 0..3"),
    (["--logits=TEST", "--test=TEST"], "none is absent"),
    (["--logits=TRAIN", "--test=TRAIN"], "no example has the label of an absent class"),
    (["--test=TEST", "--gamma=1"], "absent classes are unknown"),
    (["--logits=TRAIN", "--test=missing.npz"], "missing.npz"),
    (["--logits=TRAIN", "--test=TEXT"], "no npz"),
    (["--logits=TRAIN", "--test=EMPTY"], "no logits and no labels"),
    (["--logits=TRAIN", "--test=NAN"], "NaN"),
    (["--logits=TRAIN", "--test=WIDE"], "4 classes, the test logits 5"),
    (["--logits=TRAIN", "--test=TEST", "--resamples=1"], "num_resamples is 1"),
    (["--logits=TRAIN", "--test=TEST", "--resamples=-1"], "num_resamples is -1"),
    (["--logits=TRAIN", "--test=GROUPS"], "groups has the shape (2,), labels (5,)"),
    (["--nothing"], "required"),
  ],
)
def test_bad_input_is_one_line(files, tmp_path, capsys, arguments, message):
  (tmp_path / "text").write_text("logits")
  np.savez(tmp_path / "empty.npz", other=np.zeros(3))
  np.savez(tmp_path / "nan.npz", logits=np.full((2, 4), np.nan), labels=np.arange(2))
  np.savez(tmp_path / "wide.npz", logits=np.zeros((5, 5)), labels=np.arange(5))
  np.savez(tmp_path / "groups.npz", logits=np.zeros((5, 4)), labels=np.zeros(5, int), groups=[1, 2])
  paths = {"TRAIN": files["train"], "TEST": files["test"], "TEXT": tmp_path / "text",
           "EMPTY": tmp_path / "empty.npz", "NAN": tmp_path / "nan.npz",
           "WIDE": tmp_path / "wide.npz", "GROUPS": tmp_path / "groups.npz"}  # fmt: skip
  arguments = [re.sub("[A-Z]+$", lambda m: str(paths[m[0]]), a) for a in arguments]
  with pytest.raises(SystemExit) as stopped:
    calibrate.main(arguments)
  captured = capsys.readouterr()
  assert stopped.value.code == 2
  assert captured.out == ""
  assert captured.err.startswith("error: ")
  assert captured.err.count("\n") == 1
  assert message in captured.err


def test_absent_masks_of_the_files(files, tmp_path):
  train, test = report.load(files["train"]), report.load(files["test"])
  mask = np.array([True, False, False, False])
  np.savez(tmp_path / "m.npz", logits=test.logits, labels=test.labels, absent=mask)
  masked = report.load(tmp_path / "m.npz")
  assert report.find_absent(train, masked, None).tolist() == mask.tolist()
  assert report.find_absent(train, test, None).tolist() == [True, True, False, False]
  np.savez(tmp_path / "m.npz", logits=train.logits, labels=train.labels, absent=~mask)
  with pytest.raises(ValueError, match="absent masks of the training and the test file differ"):
    report.find_absent(report.load(tmp_path / "m.npz"), masked, None)


def test_the_room_imports_nothing_else_and_no_matplotlib(files):
  code = f"""
import sys
from subtune_jax import calibrate
calibrate.main(["--logits={files["train"]}", "--test={files["test"]}"])
ours = {{n.split(".")[1] for n in sys.modules if n.startswith("subtune_jax.")}}
assert ours == {{"calibrate", "calibration", "console", "statistics", "strict_json"}}, ours
heavy = {{"matplotlib", "scipy.optimize", "sklearn", "flax", "optax"}} & set(sys.modules)
assert not heavy, heavy
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr


def test_code_of_the_documentation():
  text = (ROOT / "docs" / "calibration.md").read_text()
  (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  assert len([line for line in block.splitlines() if line and "import" not in line]) <= 4
  generator = np.random.default_rng(1)
  model = nn.Dense(4)
  test_labels = np.tile(np.arange(4), 50)
  train_labels = np.tile([2, 3], 50)
  images = {labels.size: 2 * np.eye(4)[labels] + generator.normal(size=(labels.size, 4))
            for labels in (train_labels, test_labels)}  # fmt: skip
  variables = {"params": {"kernel": jnp.eye(4), "bias": jnp.array([0.0, 0.0, 3.0, 3.0])}}
  space = {
    "model": model, "variables": variables, "absent": np.array([True, True, False, False]),
    "train_images": images[100], "train_labels": train_labels,
    "test_images": images[200], "test_labels": test_labels, "jax": jax,
  }  # fmt: skip
  exec(block, space)
  assert space["gamma"] == pytest.approx(3, abs=0.5)
  assert space["after"]["U/Y"] > 0.5


def test_documentation_names_what_there_is():
  text = (ROOT / "docs" / "calibration.md").read_text()
  missing = [name for name in calibration.__all__ if f"`{name}" not in text]
  assert not missing
