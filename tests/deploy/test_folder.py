"""A model folder: written and read back, and 150 ways in which it is not what it says."""

import copy
import hashlib
import json
import os
import pathlib
import pickle
import shutil

import numpy as np
import pytest
import safetensors.numpy

import subtune_jax
from subtune_jax import models, weights
from subtune_jax.deploy import description, folder
from tests import deploy_network

CONFIG, WEIGHTS = description.CONFIG, description.WEIGHTS


def copy_of(saved, tmp_path):
  return pathlib.Path(shutil.copytree(saved, tmp_path / "copy"))


def rewrite(path, config, *, sign):
  """Writes a config; `sign`ed as `save` does, so that only what it says can be wrong."""
  if sign:
    config["sha256"][CONFIG] = description.digest(config)
  (path / CONFIG).write_text(json.dumps(config))


def refused(path):
  """The one line that loading gives."""
  with pytest.raises(folder.FolderError) as found:
    subtune_jax.load(path)
  text = str(found.value)
  assert "\n" not in text
  assert len(text) < 1000
  return text


def test_what_is_loaded_is_what_was_saved(trained, saved):
  again = subtune_jax.load(saved)
  assert (again.class_names, again.image_size, again.batch_size) == (deploy_network.CLASSES, 16, 8)
  assert again.preprocessing == trained.preprocessing
  before, after = folder.flatten(trained.variables), folder.flatten(again.variables)
  assert list(before) == list(after)
  for name, leaf in before.items():
    np.testing.assert_array_equal(np.asarray(leaf), after[name])
  images = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), np.uint8)
  np.testing.assert_array_equal(trained.logits(images), again.logits(images))


def test_another_library_reads_the_weights(trained, saved):
  arrays = safetensors.numpy.load_file(saved / WEIGHTS)
  kernel = trained.variables["params"]["head"]["kernel"]
  np.testing.assert_array_equal(arrays["params/head/kernel"], kernel)


def test_a_next_training_starts_from_the_folder(trained, saved):
  model = models.create("resnet14", 3, width=4, stage_sizes=(1, 1), image_size=16)
  again = weights.load_pretrained(saved / WEIGHTS, model)
  assert again.preprocessing == trained.preprocessing
  assert again.not_loaded == ()
  assert again.not_checked == ()
  other = models.create("resnet14", 3, width=4, stage_sizes=(1, 1), norm_momentum=0.5)
  with pytest.raises(weights.WeightsError, match=r"norm_momentum: 0.9 in the file, 0.5 in the"):
    weights.load_pretrained(saved / WEIGHTS, other)


def test_the_card_has_the_figures(tmp_path):
  figures = {"set|a": {"images": 7, "accuracy": 0.5, "low": 0.25, "high": None}}
  figures["b"] = {"images": 7, "accuracy": 0.5, "low": 0.25, "high": 0.75}
  figures["set|a"]["low"] = None
  made = deploy_network.make(figures=figures)
  text = (folder.save(tmp_path / "m", deploy_network.NETWORK, made) / "README.md").read_text()
  assert "| b | 7 | 50.0 | [25.0, 75.0] |" in text
  assert "resnet14, 3 classes" in text


def test_a_folder_is_replaced_and_nothing_else_is(trained, saved, tmp_path):
  path = copy_of(saved, tmp_path)
  (path / "left_over").touch()
  folder.save(path, deploy_network.NETWORK, trained)
  assert not (path / "left_over").exists()
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.tex").touch()
  with pytest.raises(ValueError, match="no model folder; give another path"):
    folder.save(tmp_path / "mine", deploy_network.NETWORK, trained)
  assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_network_that_is_not_built_so_is_not_written(trained, tmp_path):
  other = description.Network("resnet14", {"width": 8, "stage_sizes": (1, 1)})
  with pytest.raises(ValueError, match="variables are not those of resnet14"):
    folder.save(tmp_path / "m", other, trained)
  assert not list(tmp_path.iterdir())


def test_a_kill_while_writing_leaves_the_old_folder(trained, saved, tmp_path, monkeypatch):
  path = copy_of(saved, tmp_path)
  monkeypatch.setattr(folder.card, "text", lambda config: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    folder.save(path, deploy_network.NETWORK, trained)
  assert subtune_jax.load(path).class_names == deploy_network.CLASSES
  assert [p.name for p in tmp_path.iterdir()] == ["copy"]


# ------------------------------------------------------------------ not a folder of this library


def test_what_is_no_folder(tmp_path, saved):
  assert "there is no folder" in refused(tmp_path / "nothing")
  assert "there is no folder" in refused(saved / CONFIG)
  assert "config.json cannot be read" in refused(tmp_path)
  run = tmp_path / "run"
  shutil.copytree(saved, run / "best")
  (run / CONFIG).write_text("{}")
  assert f"its model is in {run / 'best'}" in refused(run)


@pytest.mark.parametrize(
  "config",
  [{}, {"architecture": "resnet50", "num_classes": 10}, {"model_type": "vit"}, {"format": None},
   {"format": "subtune_jax.model/2"}, {"format": ["subtune_jax.model/1"]}, {"format": "onnx"}],
)  # fmt: skip
def test_another_librarys_folder(saved, tmp_path, config):
  path = copy_of(saved, tmp_path)
  (path / CONFIG).write_text(json.dumps(config))
  text = refused(path)
  assert "not a model folder of this library" in text or "its format is" in text


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("how", ["absent", "folder", "fifo", "empty", "device", "text", "pickle"])
def test_a_file_that_is_none(saved, tmp_path, name, how):
  path = copy_of(saved, tmp_path)
  file = path / name
  file.unlink()
  if how == "folder":
    file.mkdir()
  elif how == "fifo":
    os.mkfifo(file)
  elif how == "device":
    file.symlink_to("/dev/zero")
  elif how != "absent":
    ran = tmp_path / "ran"
    data = {"empty": b"", "text": b"hello", "pickle": pickle.dumps(_Touch(ran))}[how]
    file.write_bytes(data)
  assert name in refused(path)
  assert not (tmp_path / "ran").exists()


class _Touch:
  """Unpickled, it would leave a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


# ------------------------------------------------------------------ edited


def _edits():
  """(what, edit of a config in place): every field away, of another type, and out of range."""
  wrong = (None, 7, "x", [], {}, [[]], True)
  sections = ((), ("network",), ("input",), ("input", "preprocessing"), ("sha256",))
  fields = {
    (): ("network", "input", "class_names", "calibration", "sha256"),
    ("network",): ("name", "options", "dtype", "method"),
    ("input",): ("image_size", "interpolation", "batch_size", "preprocessing"),
    ("input", "preprocessing"): ("mean", "std", "interpolation", "resize"),
    ("sha256",): (WEIGHTS,),
  }  # fmt: skip

  def at(config, section):
    for name in section:
      config = config[name]
    return config

  for section in sections:
    for field in fields[section]:
      yield f"no {field}", lambda c, s=section, f=field: at(c, s).pop(f)
      for value in wrong:
        if (field, value) in (("resize", None), ("calibration", {}), ("image_size", 7),
                              ("batch_size", 7), ("options", {})):  # fmt: skip
          continue
        yield (
          f"{field}={value!r}",
          lambda c, s=section, f=field, v=value: at(c, s).__setitem__(f, copy.deepcopy(v)),
        )


SAID = {
  ("network", "name"): ["../../etc/passwd", "resnet15", "os.system", "vit_b16"],
  ("network", "options"): [
    {"width": 10**9}, {"width": -4}, {"width": "4"}, {"no_such": 1}, {"stage_sizes": [1] * 300},
    {"parent": None}, {"name": "x"}, {"num_classes": 4}, {"dtype": "float64"}, {"width": 1e308},
    {"stem": "evil"}, {"stage_sizes": []}, {"width": 0},
  ],
  ("network", "dtype"): ["float64", "object", "int8"],
  ("network", "method"): ["side_tuning", "lp", "__import__"],
  ("input", "image_size"): [0, -1, 10**12, 1.5, 5000],
  ("input", "batch_size"): [0, -1, 10**12, 1e3],
  ("input", "interpolation"): ["nearest", "../x"],
  ("class_names",): [["ok"], ["ok", "ok", "no"], [1, 2, 3], "abc", [f"c{i}" for i in range(5)]],
  ("calibration",): [{"temperature": 0}, {"temperature": -1}, {"temperature": "1"},
                     {"gamma": 1.0}, {"gamma": 1.0, "absent": [9]}, {"gamma": "1", "absent": [0]},
                     {"gamma": 1.0, "absent": [0.5]}],
}  # fmt: skip
CASES = [
  *_edits(),
  *(
    (f"{'.'.join(path)}={str(value)[:40]}", path, value)
    for path, values in SAID.items() for value in values
  ),
]  # fmt: skip


def test_there_are_enough_of_them():
  assert len(CASES) >= 150


@pytest.fixture(scope="module")
def working(saved, tmp_path_factory):
  return pathlib.Path(shutil.copytree(saved, tmp_path_factory.mktemp("edited") / "copy"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_an_edited_config(saved, working, case):
  config = json.loads((saved / CONFIG).read_text())
  if callable(case[1]):
    case[1](config)
  else:
    *sections, field = case[1]
    at = config
    for section in sections:
      at = at[section]
    at[field] = case[2]
  unsigned = copy.deepcopy(config)
  rewrite(working, unsigned, sign=False)
  refused(working)
  if isinstance(config.get("sha256"), dict):
    rewrite(working, config, sign=True)
    refused(working)


@pytest.mark.parametrize(
  "text", ["", "{", "[]", "null", '{"format": NaN}', "[" * 100_000, "\udcff", '{"a":1,"a":2}']
)
def test_a_config_that_is_not_json(saved, working, text):
  (working / CONFIG).write_bytes(text.encode("utf-8", "surrogateescape"))
  refused(working)


def test_a_class_renamed_is_noticed(saved, working):
  config = json.loads((saved / CONFIG).read_text())
  config["class_names"][0] = "fine"
  rewrite(working, config, sign=False)
  assert "changed after it was written" in refused(working)


# ------------------------------------------------------------------ weights


def resigned(path, data):
  """Other weights with a config that says their digest."""
  (path / WEIGHTS).write_bytes(data)
  config = json.loads((path / CONFIG).read_text())
  config["sha256"][WEIGHTS] = hashlib.sha256(data).hexdigest()
  rewrite(path, config, sign=True)


def test_swapped_weights(saved, tmp_path):
  path = copy_of(saved, tmp_path)
  arrays = safetensors.numpy.load_file(saved / WEIGHTS)
  arrays["params/head/bias"] = arrays["params/head/bias"] + 1
  (path / WEIGHTS).write_bytes(safetensors.numpy.save(arrays))
  assert "is not the one that config.json describes" in refused(path)


def _broken(arrays):
  head = "params/head/bias"
  yield "not finite", arrays | {head: arrays[head] * np.float32(np.nan)}
  yield (
    "3 variables are missing|1 variables are missing",
    {name: leaf for name, leaf in arrays.items() if name != head},
  )
  yield "are too many", arrays | {"../../x": arrays[head]}
  yield "float64", arrays | {head: arrays[head].astype(np.float64)}
  yield r"\(4,\)", arrays | {head: np.zeros(4, np.float32)}


@pytest.mark.parametrize("number", range(5))
def test_weights_of_another_network(saved, tmp_path, number):
  path = copy_of(saved, tmp_path)
  wanted, arrays = list(_broken(safetensors.numpy.load_file(saved / WEIGHTS)))[number]
  resigned(path, safetensors.numpy.save(arrays))
  with pytest.raises(folder.FolderError, match=wanted):
    subtune_jax.load(path)


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("signed", [False, True])
def test_truncated_weights(saved, tmp_path, share, signed):
  path = copy_of(saved, tmp_path)
  data = (saved / WEIGHTS).read_bytes()
  data = data[: int(share * len(data))]
  resigned(path, data) if signed else (path / WEIGHTS).write_bytes(data)
  assert WEIGHTS in refused(path)


def test_a_pickle_in_torchs_form_runs_nothing(saved, tmp_path):
  torch = pytest.importorskip("torch")
  path, ran = copy_of(saved, tmp_path), tmp_path / "ran"
  torch.save({"params/head/bias": _Touch(ran)}, tmp_path / "evil.pt")
  resigned(path, (tmp_path / "evil.pt").read_bytes())
  refused(path)
  assert not ran.exists()
