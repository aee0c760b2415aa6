"""Sets that are only tested on: which images are read, in which classes, and when it is checked."""

import io
import pathlib

import numpy as np
import pytest

from subtune_jax import data, weights
from subtune_jax.data import registry
from subtune_jax.runner import examples, trainings, workdir
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.compare import run as compare
from subtune_jax.studies.corruption import config as corruption_config
from subtune_jax.studies.corruption import run as corruption
from subtune_jax.studies.dataset_size import config as size_config
from subtune_jax.studies.dataset_size import run as dataset_size
from subtune_jax.studies.robustness import config as robustness_config
from subtune_jax.studies.robustness import run as robustness
from subtune_jax.studies.search import config as search_config
from subtune_jax.studies.search import run as search
from subtune_jax.studies.vtab import config as vtab_config
from tests import tiny
from tests.data.test_folder import write
from tests.search import small
from tests.studies import test_compare_key

TRAINED, OTHER = "fake/trained", "fake/other"


@pytest.fixture(autouse=True)
def _patched(tmp_path, monkeypatch):
  monkeypatch.setenv("SUBTUNE_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(registry, "_REGISTERED", {})


def folder(path: pathlib.Path, per_class: int = 20, names=("defect", "ok"), below: str = "") -> str:
  for c, name in enumerate(names):
    for i in range(per_class):
      write(path / below / name / f"{i}.png", 10 * i + c)
  return f"folder:{path}"


def read(trained: str, *ood: str):
  config = compare_config.default()
  config.data.train, config.data.ood, config.data.image_size = trained, ood, 16
  compare.check_fields(config)
  return examples.load_tests(config, data.load(trained, "train", 16).class_names)


def test_a_set_that_is_only_tested_on_is_read_whole(tmp_path):
  trained, other = folder(tmp_path / "id"), folder(tmp_path / "ood", 10)
  (own, whole, copy), _ = read(trained, other, f"{other}+contrast/1")
  assert (own.split, len(own)) == ("test", 6)
  assert (whole.split, len(whole)) == ("whole", 20)
  assert copy.ids.tolist() == whole.ids.tolist()
  assert set(whole.ids) == {f"{c}/{i}.png" for c in ("defect", "ok") for i in range(10)}
  assert np.array_equal(whole.labels, [i.startswith("ok") for i in whole.ids])


def test_a_set_with_a_split_of_its_own_is_read_there(tmp_path):
  trained, other = folder(tmp_path / "id"), folder(tmp_path / "ood", 7, below="train")
  folder(tmp_path / "ood", 3, below="test")
  (_, split), _ = read(trained, other)
  assert (split.split, len(split)) == ("test", 6)
  assert all(name.startswith("test/") for name in split.ids)


def test_corrupted_copies_of_the_trained_set_hold_no_trained_image(tmp_path):
  trained = folder(tmp_path / "id")
  seen = set(data.load(trained, "trainval", 16).ids)
  (tmp_path / "link").symlink_to(tmp_path / "id")
  for name in (trained, f"{trained}/", f"folder:{tmp_path}/link", f"{trained}?on_broken=skip"):
    (_, copy), _ = read(trained, f"{name}+contrast/1")
    assert (copy.split, len(copy)) == ("test", 6)
    assert not seen & set(copy.ids)
  (_, clean), _ = read(f"{trained}+contrast/1", trained)  # its images were trained on
  assert clean.split == "test"


@pytest.mark.parametrize("end", ["", "/", "?on_broken=skip"])
def test_the_trained_set_under_another_name_is_refused(tmp_path, end):
  trained = folder(tmp_path / "id")
  with pytest.raises(ValueError, match=r"data\.ood holds data\.train"):
    read(trained, trained + end)
  other = folder(tmp_path / "ood")
  with pytest.raises(ValueError, match="name each set once"):
    read(trained, other, other + "/")


@pytest.mark.parametrize("names", [("id", "id/train"), ("id/train", "id")])
def test_folders_inside_one_another_are_refused(tmp_path, names):
  folder(tmp_path / "id", below="train")
  folder(tmp_path / "id", below="test")
  folder(tmp_path / "id2")  # begins alike, and lies beside
  trained, other = (f"folder:{tmp_path}/{name}" for name in names)
  for copy in (other, f"{other}+contrast/1"):
    with pytest.raises(ValueError, match="one lies inside the other"):
      read(trained, copy)
  (_, beside), _ = read(trained if trained.endswith("train") else other, f"folder:{tmp_path}/id2")
  assert len(beside) == 40


def test_office_home_is_read_whole_where_it_is_only_tested_on(tmp_path, monkeypatch):
  monkeypatch.setenv("SUBTUNE_JAX_DATA", str(tmp_path))
  for path in ("Art", "Product"):
    folder(tmp_path / "office_home" / path)
  (own, other), _ = read("office_home/art", "office_home/product")
  assert (len(own), len(other)) == (6, 40)


# Each study refuses before it trains. `fake/other` is no folder: what classes it has is known when
# it is loaded.


def fake(names, labels, name):
  def load(split, image_size, *, interpolation="bicubic"):
    del interpolation
    number = np.asarray(labels, np.int32)
    ids = np.array([f"{split}{i}" for i in range(len(number))])
    images = np.full((len(number), image_size, image_size, 3), 40 * number[:, None, None, None])
    return data.Dataset(images.astype(np.uint8), number, ids, ids, names, name, split)

  data.register(name, load)


STUDIES = {
  "compare": (compare_config.default, compare.run),
  "robustness": (robustness_config.default, robustness.run),
  "search": (search_config.default, search.run),
  "dataset_size": (size_config.default, dataset_size.run),
  "corruption": (corruption_config.default, corruption.run),
}


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_refuses_a_class_that_the_head_lacks_before_it_trains(
  study, tmp_path, monkeypatch
):
  fake(("ok", "defect"), np.arange(24) % 2, TRAINED)
  fake(("ok", "defekt"), np.arange(12) % 2, OTHER)
  make, run = STUDIES[study]
  config = make()
  config.data.train, config.data.ood, config.data.image_size = TRAINED, (OTHER,), 32
  config.backbone.update(name="resnet14", weights="random", preprocessing="half")
  config.tensorboard = False
  if "sizes" in config:
    config.sizes = (8, 12)
  if "shifts" in config:
    config.shifts = (corruption_config.CLEAN,)
  monkeypatch.setattr(trainings.loop, "fit", None)
  monkeypatch.setattr(search.evaluator, "Evaluator", None)
  with pytest.raises(ValueError, match=r"fake/other has the class 'defekt'.*nearest: 'defect'"):
    run(config, tmp_path / "run", stream=io.StringIO())


def test_a_suite_of_tasks_has_no_second_set():
  config = vtab_config.default()
  assert not {"ood", "label_map"} & set(config.data)
  for own in (vtab_config.task_config(config, "dtd"), vtab_config.search_of(config, "dtd")):
    assert (own.data.ood, own.data.label_map) == ((), ())


def test_a_registered_set_is_matched_by_name_and_scored_so(tmp_path):
  """Positions are swapped: by position every prediction of a perfect network would be wrong."""
  fake(("ok", "defect"), np.arange(24) % 2, TRAINED)
  fake(("unclear", "defect", "OK"), [1, 2, 1, 0, 2, 1], OTHER)
  config = compare_config.default()
  config.methods, config.seeds, config.batch_size, config.tensorboard = ("lp",), (0,), 8, False
  config.data.train, config.data.ood, config.data.image_size = TRAINED, (OTHER,), 16
  config.data.label_map, config.lp.l2 = ("OK=ok", "unclear="), (0.1,)
  config.backbone.update(name="resnet14", weights="random", preprocessing="half")
  stream = io.StringIO()
  record = compare.run(config, tmp_path / "run", stream=stream)
  test = record["trainings"][0]["test"][OTHER]
  arrays = np.load(tmp_path / "run" / test["logits"])
  assert arrays["labels"].tolist() == [1, 0, 1, 0, 1]
  assert arrays["ids"].tolist() == ["test0", "test1", "test2", "test4", "test5"]
  assert test["accuracy"] == np.mean(arrays["logits"].argmax(-1) == [1, 0, 1, 0, 1])
  assert record["data"]["num_test"] == {TRAINED: 24, OTHER: 5}
  said = " ".join(stream.getvalue().split())
  assert "warning: fake/other: 1 of 6 images are left out, of the classes 'unclear'" in said


def test_a_missing_class_leaves_the_metrics_defined(tmp_path):
  fake(("a", "b", "c"), np.arange(24) % 3, TRAINED)
  fake(("c",), [0, 0, 0, 0], OTHER)
  config = compare_config.default()
  config.methods, config.seeds, config.batch_size, config.tensorboard = ("lp",), (0,), 8, False
  config.data.train, config.data.ood, config.data.image_size = TRAINED, (OTHER,), 16
  config.lp.l2 = (0.1,)
  config.backbone.update(name="resnet14", weights="random", preprocessing="half")
  stream = io.StringIO()
  record = compare.run(config, tmp_path / "run", stream=stream)
  test = record["trainings"][0]["test"][OTHER]
  logits = np.load(tmp_path / "run" / test["logits"])["logits"]
  assert test["accuracy"] == np.mean(logits.argmax(-1) == 2)
  assert "nan" not in stream.getvalue().lower()
  assert "no image of 2 of 3 classes ('a', 'b'); never tested there" in " ".join(
    stream.getvalue().split()
  )


def test_a_label_map_beside_a_benchmark_of_shifts_is_refused():
  config = compare_config.default()
  config.data.train, config.data.ood = "cifar10", ("stl10",)
  config.data.shift, config.data.label_map = "cifar10_to_stl10", ("monkey=",)
  with pytest.raises(ValueError, match=r"data\.label_map is \('monkey=',\) and data\.shift"):
    compare.check_fields(config)


def test_trainings_do_not_depend_on_the_label_map():
  """So they are found in ledgers written with another one, or before there was one."""
  config = compare_config.default()
  model, variables = tiny.make()
  pretrained = weights.Pretrained(variables, tiny.PREPROCESSING, "name", "sha", ())
  keys = []
  for label_map in ((), ("OK=ok",)):
    config.data.label_map = label_map
    keys.append(test_compare_key.key(config, pretrained, model, small.dataset()))
  with config.unlocked():
    del config.data.label_map
  keys.append(test_compare_key.key(config, pretrained, model, small.dataset()))
  assert len(set(keys)) == 1


def test_workdirs_without_the_label_map_are_entered():
  old = {"data": {"train": "x"}}
  assert not workdir.differences(old, {"data": {"train": "x", "label_map": []}})
  assert workdir.differences(old, {"data": {"train": "x", "label_map": ["a=b"]}})
