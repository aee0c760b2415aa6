"""Holistic transfer end to end on a small network, and what may reach its choices."""

import dataclasses
import io
import json
import types

import numpy as np
import pytest

import subtune_jax
from subtune_jax import calibration, data
from subtune_jax.calibration import class_splits
from subtune_jax.data import registry
from subtune_jax.report import terminal
from subtune_jax.studies.holistic_transfer import config as holistic_config
from subtune_jax.studies.holistic_transfer import numbers as holistic_numbers
from subtune_jax.studies.holistic_transfer import page as holistic_page
from subtune_jax.studies.holistic_transfer import record as holistic_records
from subtune_jax.studies.holistic_transfer import run as holistic
from subtune_jax.studies.holistic_transfer import target as holistic_data
from subtune_jax.studies.holistic_transfer import trainings as holistic_study
from subtune_jax.training import checkpoint

SIZES = {"train": 48, "validation": 24, "test": 30}
NAMES = tuple("abcdef")
COLORS = np.array([[60, 0, 0], [0, 60, 0], [0, 0, 60], [60, 60, 0], [0, 60, 60], [60, 0, 60]])


def load(split, image_size, *, interpolation="bicubic", domain=0, poison=frozenset()):
  """Six classes by colour; the target is darker. `poison` moves labels of absent classes along."""
  del image_size, interpolation
  n = SIZES[split]
  rng = np.random.default_rng([len(split), domain])
  labels = (np.arange(n) % 6).astype(np.int32)
  images = rng.integers(0, 120 - 40 * domain, (n, 16, 16, 3)) + COLORS[labels][:, None, None]
  ids = np.array([f"{split}{i:03}" for i in range(n)])
  if poison:
    absent = np.array(sorted(poison))
    wrong = np.isin(labels, absent)
    if split == "test":
      labels = ((labels + 1) % 6).astype(np.int32)  # every label
    else:
      labels[wrong] = absent[(np.searchsorted(absent, labels[wrong]) + 1) % len(absent)]
      images[wrong] = images[wrong][::-1] // 2
  name = f"holistic/{domain}"
  return data.Dataset(images.astype(np.uint8), labels, ids, ids, NAMES, name, split)


@pytest.fixture
def target():
  """Registers the two domains; yields what poisons labels of the second."""
  poison = []

  def load_target(split, size, *, interpolation="bicubic"):
    return load(split, size, domain=1, poison=frozenset(poison))

  register(load_target)
  return poison


def register(load_target):
  registry._REGISTERED["holistic/0"] = registry.Entry(load)
  registry._REGISTERED["holistic/1"] = registry.Entry(load_target)


def config(**fields):
  """`fields` are those of the section `holistic`."""
  made = holistic_config.default()
  made.tensorboard, made.batch_size, made.seeds = False, 8, (0,)
  made.source.data, made.data.train, made.data.image_size = "holistic/0", "holistic/1", 16
  made.backbone.name, made.backbone.weights = "resnet14", "random"
  made.backbone.options = "stage_sizes=(1,1,2),width=8"  # compiles in half the time
  made.backbone.preprocessing = "half"
  made.source.method, made.source.learning_rates, made.source.epochs = "ft", (1e-2,), 2
  made.source.norm_mode = "batch"
  made.optimizer.steps_per_epoch = 2
  made.subtuning.units = ""
  made.methods = ("ft",)
  made.holistic.num_seen, made.holistic.pcv_methods = (4,), ()
  for name in (*holistic_config.TITLES, "subtuning"):
    if name in made:
      made[name].epochs, made[name].learning_rates = 2, (1e-2,)
      made[name].norm_mode = "batch"
  made.swa.first_epoch = 1
  for name, value in fields.items():
    made.holistic[name] = value
  return made


def run(made, folder):
  stream = io.StringIO()
  return holistic.run(made, folder, command="test", stream=stream), stream.getvalue()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  """Everything at once: all methods, two seeds, sizes, blocks, a sweep."""
  register(lambda split, size, *, interpolation="bicubic": load(split, size, domain=1))
  made = config(num_seen=(4, 2), hows=("random",), pcv_methods=("ft",), pcv_splits=2)
  made.methods, made.seeds = tuple(holistic_config.TITLES), (0, 1)
  made.ft.learning_rates = (1e-3, 1e-2)
  made.subtuning.units = "late: block3/unit1 block3/unit2; early: stem"
  made.sweep.optimizers, made.sweep.learning_rates = ("rmsprop",), (1e-3, 1e-2)
  made.sweep.weight_decays = (0.0,)
  folder = tmp_path_factory.mktemp("holistic") / "run"
  return (made, folder, *run(made, folder))


@pytest.fixture(scope="module")
def single(tmp_path_factory):
  """Fine-tuning with one seed, and nothing else."""
  register(lambda split, size, *, interpolation="bicubic": load(split, size, domain=1))
  folder = tmp_path_factory.mktemp("holistic") / "run"
  return folder, run(config(), folder)[0]


def test_record_has_every_method_with_and_without_calibration(done):
  made, folder, record, text = done
  assert (record["kind"], record["record_version"]) == ("holistic_transfer", 1)
  assert record == json.loads((folder / "results.json").read_text())
  table = record["holistic"]["table"]
  methods = {row["method"] for row in table}
  assert methods == {"pretrained", *holistic_config.TITLES}
  for method in methods:
    kinds = [row["calibration"] for row in table if row["method"] == method]
    assert kinds == ["none", "alg"] + ["pcv"] * (method == "ft") + ["star"]
  for row in table:
    assert row["oracle"] == (row["method"] == "oracle" or row["calibration"] == "star")
    assert len(row["numbers"]["ausuc"]["by_seed"]) == 2
  assert "Fine-tuning + gamma* (oracle)" in text
  report = holistic_page.report(holistic_records.of(record, folder))
  assert terminal.render(report) in text
  assert made.seeds == (0, 1)


def test_the_model_folder_has_the_gamma_that_repairs_it(done):
  _, folder, record, text = done
  classifier = subtune_jax.load(folder / "best")
  trained, kept = classifier.config["trained"], classifier.config["calibration"]
  assert f"model folder: {folder / 'best'} ({trained['title']}, seed" in text
  assert trained["method"] != "oracle"
  (row,) = [
    n for n in record["holistic"]["networks"]
    if n["use"] == "main" and (n["key"], n["method"]) == (trained["key"], trained["method"])
  ]  # fmt: skip
  assert kept["gamma"] == row["epochs"][-1]["gamma"]["alg"]
  assert kept["absent"] == record["holistic"]["partitions"][row["partition"]]["absent"]
  test = load("test", 16, domain=1)
  with np.load(folder / row["epochs"][-1]["file"]) as file:
    labels, logits = file["test/labels"], file["test/logits"]
  np.testing.assert_allclose(classifier.logits(test.images), logits, atol=1e-4)
  right = classifier.predict(test.images, calibrate=True).logits.argmax(-1) == labels
  assert np.mean(right) == row["epochs"][-1]["accuracy"]["alg"]["micro"]["Y/Y"]


def test_numbers_follow_from_the_files(done):
  _, folder, record, _ = done
  body = record["holistic"]
  for network in body["networks"]:
    absent = np.isin(np.arange(6), body["partitions"][network["partition"]]["absent"])
    last = network["epochs"][-1]
    with np.load(folder / last["file"]) as file:
      arrays = dict(file)
    curve = calibration.seen_unseen_curve(arrays["test/logits"], arrays["test/labels"], absent)
    assert last["ausuc"] == curve.ausuc()
    found = holistic_numbers.numbers(arrays, absent, pcv=last["gamma"].get("pcv"))
    assert {k: last[k] for k in found} == found
    assert ("ncm" in last) == (network["use"] != "sweep")
    own = last["accuracy"]["star"]["micro"]["Y/Y"]
    assert own >= max(last["accuracy"][k]["micro"]["Y/Y"] for k in last["accuracy"]) - 1e-9
    if network["use"] != "pretrained":
      assert -1 <= network["directions"]["similarity"]["between"] <= 1


def test_rows_have_intervals_and_differences(done):
  *_, record, text = done
  body = record["holistic"]
  for row in (*body["table"], *body["blocks"]):
    numbers = row["numbers"]
    shown = [
      numbers["accuracy"][average][pair]
      for average in ("micro", "balanced") for pair in ("Y/Y", "S/Y", "U/Y")
    ]  # fmt: skip
    for number in (*shown, numbers["ausuc"]):
      low, high = number["95"]
      assert low <= number["mean"] <= high
    assert ("ft" in row["against"]) == ((row["method"], row["calibration"]) != ("ft", "none"))
  by_kind = {r["calibration"]: r for r in body["table"] if r["method"] == "ft"}
  difference, low, high = by_kind["alg"]["against"]["ft"]["U/Y"]
  means = [by_kind[k]["numbers"]["accuracy"]["micro"]["U/Y"]["mean"] for k in ("alg", "none")]
  assert difference == pytest.approx(means[0] - means[1])
  assert low <= difference <= high
  assert by_kind["alg"]["against"]["ft"]["AUSUC"] == [0, 0, 0]
  assert "paired 95 % intervals" in text


def test_intervals_of_one_seed_are_those_of_bootstrap(single):
  folder, record = single
  body = record["holistic"]
  network = next(n for n in body["networks"] if n["use"] == "main")
  absent = np.isin(np.arange(6), body["partitions"][network["partition"]]["absent"])
  last = network["epochs"][-1]
  with np.load(folder / last["file"]) as file:
    logits, labels = file["test/logits"], file["test/labels"]
  for row in (r for r in body["table"] if r["method"] == "ft"):
    gamma = last["gamma"][row["calibration"]]
    found = calibration.bootstrap(logits, labels, absent, gamma)
    for pair in ("Y/Y", "S/Y", "U/Y"):
      assert row["numbers"]["accuracy"]["micro"][pair]["95"] == [found[pair].low, found[pair].high]
    assert row["numbers"]["ausuc"]["95"] == [found["AUSUC"].low, found["AUSUC"].high]


def test_what_each_method_leaves_alone(done):
  _, folder, record, _ = done
  files = {}
  for network in record["holistic"]["networks"]:
    if network["seed"] == 0 and network["use"] in ("pretrained", "main"):
      with np.load(folder / network["epochs"][-1]["file"]) as file:
        files[network["method"]] = dict(file)
  source = files["pretrained"]
  for name in ("frozen_classifier", "batch_norm_only"):
    np.testing.assert_array_equal(files[name]["head/kernel"], source["head/kernel"])
    assert np.abs(files[name]["test/features"] - source["test/features"]).max() > 1e-6
  np.testing.assert_allclose(
    files["lp"]["test/features"], source["test/features"], rtol=1e-5, atol=1e-6
  )
  assert np.abs(files["lp"]["head/kernel"] - source["head/kernel"]).max() > 1e-6
  for name in ("l2_sp", "swa", "ema", "lolsgd", "distillation", "feature_rank"):
    assert np.abs(files[name]["test/logits"] - files["ft"]["test/logits"]).max() > 1e-6


def test_epochs_along_training_and_the_rest_at_the_end(done):
  _, folder, record, _ = done
  count = {
    n["method"]: len(n["epochs"]) for n in record["holistic"]["networks"] if n["use"] == "main"
  }
  assert count.pop("ft") == 2
  assert set(count.values()) == {1}
  kept = {path.name for path in (folder / "epochs").iterdir() if path.is_dir()}
  named = {n["key"] for n in record["holistic"]["networks"]} - {None}
  assert kept == named | {s["key"] for p in record["holistic"]["pcv"] for s in p["splits"]}


def test_sizes_blocks_sweep_and_pseudo_splits(done):
  _, folder, record, _ = done
  body = record["holistic"]
  sizes = [n for n in body["networks"] if n["use"] == "size"]
  places = [body["partitions"][n["partition"]] for n in sizes]
  assert [(p["num_seen"], p["how"], p["seed"]) for p in places] == [
    (2, "random", 0), (2, "random", 1)
  ]  # fmt: skip
  main = next(n for n in body["networks"] if n["method"] == "ft" and n["seed"] == 0)
  assert set(main["common"]) == set(sizes[0]["common"]) == {"head", "ncm"}
  assert {row["unit"] for row in body["blocks"]} == {"early", "late"}
  assert [n["learning_rate"] for n in body["networks"] if n["use"] == "sweep"] == [1e-3, 1e-2]
  assert len(body["pcv"]) == 2
  for row in body["pcv"]:
    place = body["partitions"][main["partition"]] if row["seed"] == 0 else None
    for split in row["splits"]:
      with np.load(folder / split["file"]) as file:
        assert set(file) == {"held_out/logits", "held_out/labels"}
        if place:
          assert set(file["held_out/labels"]) == set(place["seen"])
          assert set(split["pseudo_absent"]) < set(place["seen"])


def test_a_pseudo_split_takes_steps_in_proportion_to_its_images():
  made = config()
  made.optimizer.steps_per_epoch = 8
  labels = np.repeat(np.arange(6), 10)
  study = types.SimpleNamespace(
    run=types.SimpleNamespace(config=made),
    target=types.SimpleNamespace(train=types.SimpleNamespace(labels=labels)),
  )
  masks = {
    "seen": np.arange(6) < 2, "pseudo_absent": (np.arange(6) >= 2) & (np.arange(6) < 4),
    "absent": np.arange(6) >= 4,
  }  # fmt: skip
  images = types.SimpleNamespace(labels=labels[labels < 2])
  steps = lambda p: holistic_study._with_steps(study, images, p).optimizer.steps_per_epoch  # noqa: E731
  assert steps(class_splits.Partition(**masks)) == 4  # 20 of 40 images
  whole = masks | {"seen": np.arange(6) < 4, "pseudo_absent": np.zeros(6, bool)}
  assert steps(class_splits.Partition(**whole)) == 8
  assert made.optimizer.steps_per_epoch == 8


def test_a_second_start_trains_nothing_and_another_config_is_refused(done):
  made, folder, record, _ = done
  lines = len((folder / "ledger.jsonl").read_text().splitlines())
  register(lambda split, size, *, interpolation="bicubic": load(split, size, domain=1))
  again, text = run(made, folder)
  assert "trainings are finished and will not be repeated" in text
  assert again["holistic"] == record["holistic"]
  assert len((folder / "ledger.jsonl").read_text().splitlines()) == lines
  other = made.copy_and_resolve_references()
  other.holistic.pcv_splits = 3
  with pytest.raises(ValueError, match=r"holistic\.pcv_splits: 2 -> 3"):
    run(other, folder)


def test_labels_of_absent_classes_and_of_the_test_reach_no_choice(target, tmp_path):
  made = config(pcv_methods=("ft",), pcv_splits=1)
  made.methods = ("ft", "distillation")
  made.ft.learning_rates = (1e-3, 1e-2)
  clean, _ = run(made, tmp_path / "clean")
  target.extend(clean["holistic"]["partitions"][0]["absent"])
  poisoned, _ = run(made, tmp_path / "poisoned")
  a, b = clean["holistic"], poisoned["holistic"]
  assert a["partitions"] == b["partitions"]
  assert a["pcv"] == b["pcv"]
  for one, other in zip(a["methods"], b["methods"], strict=True):
    assert one == other
  for one, other in zip(a["networks"], b["networks"], strict=True):
    assert one["key"] == other["key"]
    if one["method"] == "pretrained":
      continue
    last = [n["epochs"][-1] for n in (one, other)]
    assert last[0]["gamma"]["alg"] == last[1]["gamma"]["alg"]
    with (
      np.load(tmp_path / "clean" / last[0]["file"]) as x,
      np.load(tmp_path / "poisoned" / last[1]["file"]) as y,
    ):
      np.testing.assert_array_equal(x["test/logits"], y["test/logits"])
      np.testing.assert_array_equal(x["head/kernel"], y["head/kernel"])
  assert a["table"] != b["table"]  # the poison was there


@pytest.mark.slow
def test_a_killed_run_goes_on(target, tmp_path, monkeypatch):
  made = config()
  made.methods = ("ft", "lp")
  whole, _ = run(made, tmp_path / "whole")
  original, count = holistic_study.train, []

  def killed(*arguments):
    count.append(1)
    if len(count) > 1:
      raise KeyboardInterrupt
    return original(*arguments)

  monkeypatch.setattr(holistic_study, "train", killed)
  with pytest.raises(KeyboardInterrupt):
    run(made, tmp_path / "killed")
  monkeypatch.setattr(holistic_study, "train", original)
  again, _ = run(made, tmp_path / "killed")
  assert again["holistic"]["table"] == whole["holistic"]["table"]


def test_a_source_model_from_a_file_is_the_one_that_was_trained(single, target, tmp_path):
  folder, first = single
  made = config()
  made.backbone.weights = str(folder / "source.msgpack")
  made.backbone.keep_head = True
  second, _ = run(made, tmp_path / "second")
  assert first["holistic"]["source"]["sha256"] == second["holistic"]["source"]["sha256"]
  assert second["holistic"]["source"]["method"] == "loaded"
  assert first["holistic"]["table"] == second["holistic"]["table"]


def test_a_target_with_one_split_and_classes_that_do_not_occur():
  def one_split(split, size, *, interpolation="bicubic"):
    made = load("train", size, domain=1)
    kept = made.subset(np.flatnonzero(made.labels != 2))
    return dataclasses.replace(kept, split=split)

  registry._REGISTERED["holistic/one"] = registry.Entry(one_split, ("test",))
  made = config()
  made.data.train = "holistic/one"
  found = holistic_data.load_target(made)
  assert found.columns.tolist() == [0, 1, 3, 4, 5]
  assert found.all_names == NAMES
  assert found.train.class_names == tuple("abdef")
  parts = (found.train, found.validation, found.test)
  assert sum(map(len, parts)) == 40
  assert len({i for part in parts for i in part.ids.tolist()}) == 40
  assert all(set(part.labels) == set(range(5)) for part in parts)


@pytest.mark.parametrize(
  ("change", "text"),
  [
    (lambda c: c.update({"methods": ("lp",)}), "'ft' among them"),
    (lambda c: c.update({"methods": ("ft", "nothing")}), "nothing"),
    (lambda c: c.holistic.update({"num_seen": (1,)}), r"num_seen is \(1,\)"),
    (lambda c: c.holistic.update({"how": "alphabet"}), "alphabet"),
    (lambda c: c.holistic.update({"how": "given"}), "go with how='given'"),
    (lambda c: c.holistic.update({"along": ("oracle",)}), "holistic.along holds 'oracle'"),
    (lambda c: c.holistic.update({"wise_alphas": (1.0,)}), "each lies in"),
    (lambda c: c.holistic.update({"num_seen": (6,)}), "leave 0 of 6"),
    (lambda c: c.sweep.update({"optimizers": ("lion",)}), "lion"),
    (lambda c: c.source.update({"method": "lp"}), "source.method"),
    (lambda c: c.source.update({"class_embeddings": "x.npz"}), "keep_head to True"),
    (lambda c: c.optimizer.update({"steps_per_epoch": 0}), "swa counts steps"),
    (lambda c: c.ft.update({"learning_rates": ()}), "ft.learning_rates is"),
    (lambda c: c.update({"seeds": ()}), "seeds is"),
  ],
)
def test_bad_configs_are_refused_before_anything_is_written(target, tmp_path, change, text):
  made = config()
  made.methods = ("ft", "swa")
  with made.ignore_type():
    change(made)
  with pytest.raises(ValueError, match=text):
    run(made, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_rate_that_diverges_on_a_later_seed_is_no_choice(target, tmp_path):
  made = config()
  made.seeds, made.ft.learning_rates = (0, 1), (1e-3, 1e-2)
  original, wanted = holistic_study.train, []

  def train(study, name, rate, seed, partition):
    row = original(study, name, rate, seed, partition)
    wanted.append((rate, seed))
    better = {"validation_accuracy": rate, "validation_loss": 0.0}
    return row | ({"history": []} if (rate, seed) == (1e-2, 1) else better)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(holistic_study, "train", train)
    record, text = run(made, tmp_path / "run")
  assert wanted == [(1e-3, 0), (1e-2, 0), (1e-2, 1), (1e-3, 1)]
  assert record["holistic"]["methods"][0]["learning_rate"] == 1e-3
  assert "learning rate 0.01 diverged with seed 1" in text


def called(names, places):
  """The source domain with its classes called `names`, class c at places[c]."""

  def load_source(split, size, *, interpolation="bicubic"):
    made = load(split, size)
    labels = np.asarray(places, np.int32)[made.labels]
    return dataclasses.replace(made, labels=labels, class_names=names)

  registry._REGISTERED["holistic/0"] = registry.Entry(load_source)


def test_classes_of_source_and_target_are_matched_by_name(target, tmp_path):
  names = ("f", "e", "z", "d", "c", "b", "a")  # "z" is the source's alone
  called(names, [names.index(name) for name in NAMES])
  made = config()
  made.source.epochs = 1
  study = holistic_study.start(made, tmp_path / "run", io.StringIO())
  (task,) = (tmp_path / "run/source/tasks").iterdir()
  arrays, _ = checkpoint.load(task)
  (kernel,) = [value for name, value in arrays.items() if name.endswith("head/kernel")]
  assert kernel.shape[1] == 7
  found = study.source.pretrained.variables["params"]["head"]["kernel"]
  np.testing.assert_array_equal(found, kernel[:, [6, 5, 4, 3, 1, 0]])
  assert study.source.engine.model.num_classes == 6


def test_a_source_without_a_class_of_the_target_is_refused_before_it_is_trained(
  target, tmp_path, monkeypatch
):
  called(("a", "b", "c", "d", "e", "F"), range(6))
  monkeypatch.setattr(holistic_study.trainings.loop, "fit", None)
  with pytest.raises(ValueError, match=r"holistic/1 has the class 'f'.*lacks \(nearest: 'F'"):
    run(config(), tmp_path / "run")


def test_given_classes_and_whole_super_classes():
  made = config(how="given", given=("c", "a"))
  part = holistic_config.draw(made, NAMES, 4, 0, "given")
  assert np.flatnonzero(part.seen).tolist() == [0, 2]
  names = ("x-1", "x-2", "y-1", "y-2", "z")
  part = holistic_config.draw(made, names, 3, 0, "group")
  seen = {names[c] for c in np.flatnonzero(part.seen)}
  assert seen in ({"x-1", "x-2", "z"}, {"y-1", "y-2", "z"})
