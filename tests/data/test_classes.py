"""Classes of a second set are matched by name."""

import numpy as np
import pytest

from subtune_jax import data, models
from subtune_jax.data import classes, folder
from subtune_jax.studies import workdir
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.compare import run as compare
from tests.data.test_folder import write


def test_names_not_positions():
  assert classes.indices("s", ("ok",), ("defect", "ok")) == (1,)
  assert classes.indices("s", ("x", "y", "z"), ("a", "b"), ("x=b", "y=b", "z=")) == (1, 1, -1)


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match=r"nearest: 'Hot Dog'.*label_map"):
    classes.indices("s", ("hot_dog",), ("cat", "Hot Dog"))
  with pytest.raises(ValueError, match=r"no class is 'kat'.*'cat'"):
    classes.indices("s", ("x",), ("cat",), ("x=kat",))


def test_compare_maps_a_folder_by_name(tmp_path, monkeypatch):
  monkeypatch.setenv("SUBTUNE_JAX_CACHE", str(tmp_path / "cache"))
  for name, labels in (("id", ("defect", "ok")), ("ood", ("ok",))):
    for label in labels:
      for i in range(20):
        write(tmp_path / name / label / f"{i}.png", i)
  config = compare_config.default()
  config.data.train, config.data.ood = f"folder:{tmp_path}/id", (f"folder:{tmp_path}/ood",)
  config.data.image_size = 8
  _, ood = compare.test_sets(config, ("defect", "ok"))
  assert set(ood.labels.tolist()) == {1}
  assert ood.class_names == ("defect", "ok")
  (tmp_path / "ood" / "ok").rename(tmp_path / "ood" / "OK")
  with pytest.raises(ValueError, match="nearest: 'ok'"):
    compare._load_data(config)


def test_folder_of_only_a_test_split(tmp_path, monkeypatch):
  monkeypatch.setenv("SUBTUNE_JAX_CACHE", str(tmp_path / "cache"))
  write(tmp_path / "a/test/ok/1.png")
  assert data.load(f"folder:{tmp_path}/a", "test", 8).class_names == ("ok",)
  write(tmp_path / "b/test/1.png")
  with pytest.raises(ValueError, match=r"split.*class"):
    folder.load(f"{tmp_path}/b", "test", 8)


def test_numpy_integer_of_classes():
  assert models.create(models.names()[0], np.int32(3)).num_classes == 3
  with pytest.raises(ValueError, match="integer"):
    models.create(models.names()[0], True)


def test_old_workdirs_lack_the_label_map():
  assert not workdir.differences(
    {"data": {"train": "x"}}, {"data": {"train": "x", "label_map": []}}
  )
  assert workdir.differences(
    {"data": {"train": "x"}}, {"data": {"train": "x", "label_map": ["a=b"]}}
  )
