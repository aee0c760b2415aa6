"""The robustness study end to end on a small network, against its own parts."""

import io
import json
import math

import jax
import numpy as np
import pytest

from subtune_jax import data
from subtune_jax.data import registry
from subtune_jax.studies.compare import run as compare
from subtune_jax.studies.robustness import config as robustness_config
from subtune_jax.studies.robustness import record as robustness_records
from subtune_jax.studies.robustness import run as robustness
from tests.search import small

SIZES = {"train": 24, "validation": 12, "test": 15}
NAMES = ("robust/a", "robust/b", "robust/c")


def loader(number):
  def load(split, image_size, *, interpolation="bicubic"):
    del image_size, interpolation
    made = small.dataset(SIZES[split], f"{split}{'x' * number}")
    return data.Dataset(**{**vars(made), "name": NAMES[number], "split": split})

  return load


def config(**fields):
  for number, name in enumerate(NAMES):
    if name not in registry._REGISTERED:
      data.register(name, loader(number))
  made = robustness_config.default()
  made.name, made.tensorboard, made.batch_size, made.seeds = "small", False, 8, (0, 1)
  made.data.train, made.data.ood, made.data.image_size = NAMES[0], NAMES[1:], 16
  made.backbone.name, made.backbone.weights = "resnet14", "random"
  made.backbone.options = "stage_sizes=(1,1,2),width=8"
  made.backbone.preprocessing = "half"
  made.methods = ("lp", "ft", "lp_ft")
  made.lp.l2 = (1.0, 0.1)
  for name in ("ft", "lp_ft"):
    made[name].epochs, made[name].learning_rates = 2, (1e-4, 1e-2)
  made.robustness.num_alphas = 3
  made.robustness.probe_steps = (1, 3)
  for name, value in fields.items():
    made.robustness[name] = value
  return made


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  folder = tmp_path_factory.mktemp("robust") / "run"
  stream = io.StringIO()
  record = robustness.run(config(), folder, command="test", stream=stream)
  return folder, record, stream.getvalue()


def test_every_epoch_of_every_training_is_read_on_every_set(done):
  folder, record, _ = done
  assert (record["kind"], record["record_version"]) == ("robustness", 1)
  study = record["robustness"]
  trainings = study["trainings"]
  count = {name: sum(t["method"] == name for t in trainings) for name in ("lp", "ft", "lp_ft")}
  assert count == {"lp": 1, "ft": 4, "lp_ft": 4}
  for training in trainings:
    epochs = {"lp": 1, "ft": 2, "lp_ft": 3}[training["method"]]
    assert len(training["epochs"]) == epochs
    for epoch in training["epochs"]:
      assert list(epoch["accuracy"]) == ["validation", *NAMES]
      path = folder / f"epochs/{training['key']}/{epoch['stage']}-{epoch['epoch']}.npz"
      with np.load(path) as arrays:
        logits = arrays[f"logits/{NAMES[1]}"]
        labels = data.load(NAMES[1], "test", 16).labels
        assert epoch["accuracy"][NAMES[1]] == np.mean(logits.argmax(-1) == labels)
        assert arrays[f"absolute/{NAMES[0]}"].shape == (len(study["units"]), 15)


def test_a_draw_of_the_test_images_is_fixed_and_has_every_class():
  test = data.load(NAMES[0], "test", 16)
  drawn = [robustness._drawn(test, 6) for _ in range(2)]
  assert sorted(drawn[0].labels) == [0, 0, 1, 1, 2, 2]
  np.testing.assert_array_equal(drawn[0].ids, drawn[1].ids)


def test_a_probe_moves_nothing_and_fine_tuning_does(done):
  _, record, _ = done
  for training in record["robustness"]["trainings"]:
    first, last = training["epochs"][0], training["epochs"][-1]
    for name in ("validation", *NAMES):
      moved = last["distortion"][name]["absolute"]
      assert moved == 0 if training["method"] == "lp" else moved > 0
      if training["method"] == "lp_ft":
        assert first["distortion"][name]["absolute"] == 0
  slow, fast = (
    np.mean([t["moved"] for t in record["robustness"]["trainings"]
             if t["method"] == "lp_ft" and t["learning_rate"] == rate])
    for rate in (1e-4, 1e-2)
  )  # fmt: skip
  assert slow < fast


def test_tables_of_the_last_epoch_are_those_of_the_comparison(done):
  _, record, _ = done
  rows = {r["method"]: r for r in record["robustness"]["selections"] if r["rule"] == "last"}
  for name in ("lp", "ft", "lp_ft"):
    own = [t for t in record["trainings"] if t["method"] == name and t["chosen"]]
    found = np.mean([t["test"][NAMES[2]]["accuracy"] for t in own])
    assert rows[name]["accuracy"][NAMES[2]]["mean"] == pytest.approx(found)
    assert rows[name]["learning_rate"] == own[0]["learning_rate"]
    for score in rows[name]["accuracy"].values():
      narrow, wide = score["90"], score["95"]
      assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]
  marked = {r["rule"]: r["oracle"] for r in record["robustness"]["selections"]}
  assert marked == {"last": False, "early_stopping": False, "oracle": True}


def test_interpolation_ends_at_the_probe_and_at_the_tuned_network(done):
  _, record, _ = done
  study = record["robustness"]
  rates = {method["name"]: method["learning_rate"] for method in record["methods"]}
  probe = next(t for t in study["trainings"] if t["method"] == "lp")["epochs"][-1]["accuracy"]
  for name in ("ft", "lp_ft"):
    rows = study["interpolation"][name]
    assert [row["alpha"] for row in rows] == [0.0, 0.5, 1.0] * 2
    for row in rows:
      if row["alpha"] == 0:
        assert row["accuracy"] == probe
      if row["alpha"] == 1:
        end = next(
          t for t in study["trainings"]
          if t["method"] == name and t["seed"] == row["seed"]
          and t["learning_rate"] == rates[name]
        )  # fmt: skip
        assert row["accuracy"] == end["epochs"][-1]["accuracy"]


def test_partly_converged_probes_were_fine_tuned(done):
  _, record, _ = done
  rows = record["robustness"]["probe_steps"]
  assert [row["steps"] for row in rows] == [1, 3]
  assert rows[0]["probe"] != rows[1]["probe"] or rows[0]["tuned"] != rows[1]["tuned"]
  scores = [row[kind][name] for row in rows for kind in ("probe", "tuned") for name in NAMES]
  for score in scores:
    low, high = score["95"]
    assert low <= score["mean"] <= high
    assert (high > low) == (0 < score["mean"] < 1)  # of one seed: the images count


def test_shift_and_recommendation(done):
  _, record, text = done
  study = record["robustness"]
  assert set(study["shift"]) == set(NAMES[1:])
  assert study["recommendation"]["method"] in ("lp", "ft", "lp_ft")
  assert study["recommendation"]["reasons"]
  assert "report:" in text


def test_a_second_start_trains_nothing_and_gives_the_same_record(done):
  folder, record, _ = done
  stream = io.StringIO()
  before = (folder / "ledger.jsonl").read_bytes()
  again = robustness.run(config(), folder, command="test", stream=stream)
  assert (folder / "ledger.jsonl").read_bytes() == before
  strip = lambda r: json.dumps(r["robustness"], sort_keys=True)  # noqa: E731
  assert strip(again) == strip(record)


def test_seeds_in_the_grid_choose_by_their_mean(done):
  _, record, _ = done
  for method in record["methods"][1:]:
    for row in method["grid"]:
      own = [
        t
        for t in record["trainings"]
        if t["method"] == method["name"] and t["learning_rate"] == row["learning_rate"]
      ]
      assert len(own) == 2
      mean = np.mean([t["validation_accuracy"] for t in own])
      assert row["validation_accuracy"] == pytest.approx(mean)


@pytest.mark.parametrize(
  ("fields", "text"),
  [
    ({"selection": "oracle"}, r"robustness\.selection is 'oracle'.*never chooses"),
    ({"interpolate": ("subtuning",)}, "holds 'subtuning'"),
    ({"test_images": -1}, "0 for all"),
    ({"num_alphas": 1}, "give at least 2"),
    ({"probe_steps": (4, 2)}, "rising numbers"),
  ],
)
def test_bad_fields(tmp_path, fields, text):
  with pytest.raises(ValueError, match=text):
    robustness.run(config(**fields), tmp_path / "run", stream=io.StringIO())
  assert not (tmp_path / "run").exists()


def test_a_network_that_has_collapsed_is_read_and_has_no_cka(done, tmp_path):
  """All its features are equal, for which CKA is not defined; the study goes on."""
  record = json.loads(json.dumps(done[1]))
  state = compare.start(config(), tmp_path / "run", io.StringIO())
  seen = robustness._Seen(state)
  variables = jax.tree.map(np.zeros_like, state.pretrained.variables)
  arrays = seen.look(variables)
  row = robustness._distortion(arrays, NAMES[0], -1)
  assert row["cka"] is None
  assert row["absolute"] > 0
  for training in record["robustness"]["trainings"]:
    for epoch in training["epochs"]:
      epoch["distortion"][NAMES[0]]["cka"] = None
  assert math.isnan(robustness_records.of(record).distortion(epoch["distortion"], "cka", ood=False))
