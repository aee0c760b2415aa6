"""Studies of several searches: data-set sizes and corruptions, end to end."""

import io
import json

import numpy as np
import pytest

from subtune_jax import data
from subtune_jax.data import registry
from subtune_jax.studies import nested_search as studies
from subtune_jax.studies.corruption import config as corruption_config
from subtune_jax.studies.corruption import record as corruption_record
from subtune_jax.studies.corruption import run as corruption
from subtune_jax.studies.dataset_size import config as dataset_size_config
from subtune_jax.studies.dataset_size import record as size_record
from subtune_jax.studies.dataset_size import run as dataset_size
from tests.studies import small_search


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(registry, "_REGISTERED", {})
    patch.setenv("SUBTUNE_JAX_COMPILE_CACHE", "")
    patch.setenv("SUBTUNE_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
    small_search.register()
    yield


def shrunk(study, **fields):
  """The study's config with the settings of the small search."""
  small = small_search.config(kinds=("profile",))
  with small.unlocked():
    del small.experiment, small.name, small.title
  study.update(small)
  study.methods = ("lp", "ft", "subtuning")
  study.ft.epochs = 1
  study.seeds = (0, 1)
  for name, value in fields.items():
    study[name] = value
  return study


@pytest.mark.slow
def test_dataset_size(tmp_path):
  made = shrunk(dataset_size_config.default(), sizes=(12, 36))
  stream = io.StringIO()
  record = dataset_size.run(made, tmp_path, stream=stream)
  size_record.check(record)
  assert (record["kind"], record["record_version"]) == ("dataset_size", 1)
  assert [row["size"] for row in record["sizes"]] == [12, 36]
  for row in record["sizes"]:
    final = json.loads((tmp_path / row["folder"] / "final/results.json").read_text())
    assert final["data"]["num_train"] == row["size"]
    assert {m["name"] for m in row["methods"]} == {"lp", "ft", "subtuning"}
    assert set(row["against_ft"]) == {"lp", "subtuning"}
  units = record["map"]["units"]
  assert len(record["map"]["rows"]) == 2 * len(units)
  assert "images" in record["crossover"]["text"]
  assert (tmp_path / "report.html").exists()
  before = (tmp_path / "sizes/12/search/ledger.jsonl").read_bytes()
  again = dataset_size.run(made, tmp_path, stream=io.StringIO())
  assert (tmp_path / "sizes/12/search/ledger.jsonl").read_bytes() == before
  assert again["sizes"] == record["sizes"]


def difference(mean, low, high):
  return {"against_ft": {"subtuning": {"mean": mean, "low": low, "high": high}}}


def test_crossover_says_no_more_than_the_data():
  rows = [
    {"size": 100, **difference(0.1, 0.05, 0.15)},
    {"size": 400, **difference(0.01, -0.02, 0.04)},
    {"size": 800, **difference(-0.05, -0.08, -0.01)},
  ]
  text = dataset_size.crossover(rows)
  assert text == (
    "SubTuning is above full fine-tuning at 100 images; below it at 800 images; undecided at 400 "
    "images. The means change sign between 400 and 800 images."
  )
  assert dataset_size.crossover(rows[:2]).endswith("The means do not change sign.")


@pytest.mark.parametrize("sizes", [(), (20, 10), (0, 10)])
def test_bad_sizes(tmp_path, sizes):
  made = shrunk(dataset_size_config.default(), sizes=sizes)
  with pytest.raises(ValueError, match="sizes is"):
    dataset_size.run(made, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_corruption(tmp_path):
  made = shrunk(
    corruption_config.default(), corrupted="small+{}", shifts=("contrast/5", "flip_labels")
  )
  made.search.kinds = ("profile", "greedy")
  stream = io.StringIO()
  record = corruption.run(made, tmp_path, stream=stream)
  corruption_record.check(record)
  assert (record["kind"], record["record_version"]) == ("corruption", 1)
  assert [row["name"] for row in record["rows"]] == ["small+contrast/5", "small"]
  for row in record["rows"]:
    assert [step["taken"] for step in row["order"]] == [True, True]
    assert {step["unit"] for step in row["order"]} == set(row["chosen"])
    assert set(row["test"]) == {"lp", "ft", "subtuning"}
    assert len(row["profile"]) == 3
  assert (tmp_path / "report.html").exists()


def test_flipped_labels():
  examples = data.load(small_search.NAME, "train", 16)
  flipped = data.dataset.flip_labels(examples)
  assert np.array_equal(flipped.labels, 2 - examples.labels)
  assert flipped.fingerprint() != examples.fingerprint()


@pytest.mark.parametrize("shifts", [(), ("contrast/5", "contrast/5"), ("contras/5",)])
def test_bad_shifts(tmp_path, shifts):
  made = shrunk(corruption_config.default(), corrupted="small+{}", shifts=shifts)
  with pytest.raises(ValueError, match=r"shifts is|contrast"):
    corruption.run(made, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_study_refuses_results_of_another_config(tmp_path):
  made = small_search.config()
  (tmp_path / "results.json").write_text(json.dumps({"config": {"batch_size": 9}}))
  with pytest.raises(ValueError, match="batch_size: 9 -> 8"):
    studies.finished(tmp_path, made)
  (tmp_path / "results.json").write_text("{")
  with pytest.raises(ValueError, match="damaged"):
    studies.finished(tmp_path, made)
