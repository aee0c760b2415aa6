"""Shift benchmarks end to end, on small sets made here; pretraining from random weights."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import data, models, weights
from subtune_jax.data import errors, registry, shifts
from subtune_jax.models import registry as models_registry
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.compare import run as compare
from subtune_jax.training import export, loop
from tests import command, config_files

ROOT = config_files.ROOT
ID, MAPPED, MASKED = "fake/id", "fake/mapped", "fake/masked"
LABEL_MAP = (2, -1, 0)  # "c", "monkey", "a" in the classes of the head
MAPPED_LABELS = np.array([0, 1, 2, 1, 0, 2, 2, 1])
SIZE = 32


def fake(name, class_names, labels, split):
  """Images of noise whose brightest channel tells the class, not too clearly."""
  rng = np.random.default_rng([len(name), len(split)])
  labels = np.asarray(labels, np.int32)
  images = rng.integers(0, 200, (len(labels), SIZE, SIZE, 3))
  images[np.arange(len(labels)), :, :, labels % 3] += 40
  ids = np.array([f"{split}{i}" for i in range(len(labels))])
  return data.Dataset(images.astype(np.uint8), labels, ids, ids, class_names, name, split)


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("SUBTUNE_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(registry, "_REGISTERED", {})
    columns = {
      ID: (("a", "b", "c"), np.arange(24) % 3),
      MAPPED: (("c", "monkey", "a"), MAPPED_LABELS),
      MASKED: (("a", "b", "c"), np.arange(12) % 2),  # no image of "c"
    }
    for name, (classes, labels) in columns.items():
      data.register(
        name, lambda split, image_size, *, interpolation, arguments=(name, classes, labels):
        fake(*arguments, split),
      )  # fmt: skip
    benchmark = shifts.Shift(
      "fake", ID, (MAPPED, MASKED), {MAPPED: LABEL_MAP}, {MASKED: shifts.OCCURRING}, 2
    )
    patch.setitem(shifts.SHIFTS, "fake", benchmark)
    yield patch


def small(config):
  config.batch_size, config.seeds, config.tensorboard = 8, (0,), False
  config.lp.l2 = (1.0,)
  return config


@pytest.fixture(scope="module")
def finished(patched, tmp_path_factory):
  config = small(
    config_files.get_config("configs/shift.py", f"shift=fake,method=lp,image_size={SIZE}")
  )
  config.data.ood += (f"{ID}+fog/3", f"{MAPPED}+fog/3", f"{MASKED}+contrast/5")
  workdir = tmp_path_factory.mktemp("shift") / "run"
  return workdir, compare.run(config, workdir, stream=io.StringIO())


def predict(workdir, record, images):
  """Logits of the run's one task, without anything of the experiment."""
  model = models.create("efficientnet_lite0", num_classes=3, image_size=SIZE)
  pretrained = weights.load_pretrained("efficientnet_lite0/imagenet", model)
  key = record["trainings"][0]["key"]
  variables, _ = export.load_task(workdir / "tasks" / key, pretrained.variables)
  return loop.Engine(model, pretrained.preprocessing, batch_size=8).predict(variables, images)


def test_accuracies_are_those_computed_by_hand(finished):
  workdir, record = finished
  tests = record["trainings"][0]["test"]
  suffixes = {MAPPED: ("", "+fog/3"), MASKED: ("", "+contrast/5"), ID: ("", "+fog/3")}
  assert set(tests) == {name + suffix for name in suffixes for suffix in suffixes[name]}
  for name in suffixes:
    for suffix in suffixes[name]:
      test = data.load(name + suffix, "test", SIZE)
      labels, kept = test.labels, np.ones(len(test), bool)
      if name == MAPPED:
        labels = np.array(LABEL_MAP)[test.labels]
        kept = labels != -1
        assert kept.sum() == 5
      logits = predict(workdir, record, test.images)[kept]
      if name == MASKED:
        logits = logits[:, :2]  # "c" may not be predicted
      expected = np.mean(logits.argmax(-1) == labels[kept])
      assert tests[name + suffix]["accuracy"] == pytest.approx(expected), name + suffix
      assert record["data"]["num_test"][name + suffix] == kept.sum()


def test_the_mask_changed_something(finished):
  workdir, record = finished
  sets = [data.load(name, "test", SIZE).images for name in (MASKED, f"{MASKED}+contrast/5")]
  assert any((predict(workdir, record, images).argmax(-1) == 2).any() for images in sets)
  path = record["trainings"][0]["test"][MASKED]["logits"]
  assert (np.load(workdir / path)["logits"].argmax(-1) != 2).all()


def test_an_unknown_shifted_set_is_refused(patched, tmp_path):
  config = small(config_files.get_config("configs/shift.py", "shift=fake,method=lp"))
  config.data.ood = ("emoji_domains/noto",)
  with pytest.raises(ValueError, match="Unknown shifted set of fake 'emoji_domains/noto'"):
    compare.run(config, tmp_path / "run")
  with pytest.raises(ValueError, match=r"Unknown shift 'fakes'. Did you mean 'fake'"):
    config_files.get_config("configs/shift.py", "shift=fakes")


def test_ood_takes_some():
  config = config_files.get_config(
    "configs/shift.py",
    "shift=cifar10_to_cifar10_c,ood=cifar10_c/fog/5+cifar10_c/snow/5,method=subtuning,"
    "backbone=resnet26,weights=w.msgpack,preprocessing=half,image_size=32,blocks=stem,epochs=2",
  )  # fmt: skip
  assert config.data.ood == ("cifar10_c/fog/5", "cifar10_c/snow/5")
  assert (config.backbone.weights, config.backbone.preprocessing) == ("w.msgpack", "half")
  assert (config.subtuning.blocks, config.subtuning.epochs) == (("stem",), 2)
  with pytest.raises(ValueError, match="Unknown shifted set of cifar10_to_cifar10_c 'stl10'"):
    config_files.get_config("configs/shift.py", "shift=cifar10_to_cifar10_c,ood=stl10")


@pytest.mark.parametrize("name", shifts.SHIFTS)
def test_every_benchmark_has_a_line_in_the_config(name):
  text = (ROOT / "configs/shift.py").read_text().split('"""')[1]
  assert name in text
  config = config_files.get_config("configs/shift.py", f"shift={name}")
  assert config.data.train == shifts.SHIFTS[name].id_data


def test_without_the_data_one_message_and_nothing_written(tmp_path):
  variables = {
    "TFDS_DATA_DIR": str(tmp_path / "none"), "SUBTUNE_JAX_CACHE": str(tmp_path / "cache"),
  }  # fmt: skip
  done = command.run_forked(
    "--config=configs/shift.py:shift=cifar10_to_stl10", f"--workdir={tmp_path / 'run'}", **variables
  )
  assert done.returncode == 2
  assert done.stderr.startswith("error: The data set 'cifar10 (TFDS cifar10 3.0.2)' (170 MB to")
  assert "python -m subtune_jax.data.prepare cifar10" in done.stderr
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("ood", "message"),
  [
    ("stl10", "python -m subtune_jax.data.prepare stl10"),
    ("stl10+fog/1", "python -m subtune_jax.data.prepare stl10"),
    ("office_home/art", "OfficeHomeDataset_10072016.zip"),
    ("living17/target", "living17.csv"),
    ("folder:/no/such/place", "Give the path of a folder"),
  ],
)
def test_a_missing_test_set_is_told_before_anything_is_trained(
  patched, tmp_path, monkeypatch, ood, message
):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
  monkeypatch.setenv("SUBTUNE_JAX_DATA", str(tmp_path / "none"))
  config = small(compare_config.default())
  config.data.train, config.data.ood = ID, (ood,)
  with pytest.raises(errors.MissingDataError, match=message):
    compare.run(config, tmp_path / "run")
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_pretraining_makes_a_backbone(patched, monkeypatch, tmp_path):
  entry = models_registry._ENTRIES["resnet26"]
  monkeypatch.setitem(entry.fields, "stage_sizes", (1, 1, 1))  # compiles in a fourth of the time
  config = config_files.get_config("configs/pretrain_cifar10.py")
  assert (config.ft.epochs, config.optimizer.weight_decay, config.batch_size) == (200, 5e-4, 128)
  config.data.train, config.data.image_size, config.tensorboard = ID, SIZE, False
  config.ft.epochs, config.batch_size = 1, 8
  record = compare.run(config, tmp_path / "run", stream=io.StringIO())
  key = record["trainings"][0]["key"]
  assert record["methods"][0]["trained_params"] == record["backbone"]["num_params"]

  model = models.create("resnet26", num_classes=3)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
  other = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)  # the task holds every leaf
  variables, _ = export.load_task(tmp_path / "run/tasks" / key, other)
  path = tmp_path / "resnet26.msgpack"
  export.save_variables(path, variables)
  test = data.load(ID, "test", SIZE)
  logits = np.load(tmp_path / "run" / record["trainings"][0]["test"][ID]["logits"])["logits"]
  loaded = weights.load_pretrained(path, model, preprocessing="half")
  assert loaded.not_loaded == ()
  engine = loop.Engine(model, loaded.preprocessing, batch_size=8)
  np.testing.assert_allclose(engine.predict(loaded.variables, test.images), logits, atol=1e-4)
  wider = models.create("resnet26", num_classes=7)
  found = weights.load_pretrained(path, wider, preprocessing="half")
  assert set(found.not_loaded) == {"head/bias", "head/kernel"}
