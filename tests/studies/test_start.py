"""What a run says and refuses before it trains: the table of the data, sizes, full disks."""

import errno
import io
import pathlib

import numpy as np
import pytest

from subtune_jax import data, files
from subtune_jax.data import registry
from subtune_jax.report import terminal
from subtune_jax.runner import writers
from subtune_jax.search import units
from subtune_jax.studies import data_table
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.compare import run as compare
from subtune_jax.studies.holistic_transfer import config as holistic_config
from subtune_jax.studies.holistic_transfer import run as holistic
from subtune_jax.studies.search import config as search_config
from subtune_jax.studies.search import run as search
from subtune_jax.training import checkpoint, export, ledger
from tests.data.test_folder import write

TRAINED = "fake/trained"


def make(labels, names=("a", "b", "c"), name=TRAINED, split="train", size=16):
  labels = np.asarray(labels, np.int32)
  ids = np.array([f"{split}{i}" for i in range(len(labels))])
  images = np.full((len(labels), size, size, 3), 30 * labels[:, None, None, None], np.uint8)
  return data.Dataset(images, labels, ids, ids, names, name, split)


def shown(*arguments) -> str:
  return terminal.render(data_table.report(*arguments))


def row_of(text: str, *begin: str) -> str:
  """What follows `begin` in the line that begins so."""
  lines = [" ".join(line.split()) for line in text.splitlines()]
  start = " ".join(begin) + " "
  return next(line.removeprefix(start) for line in lines if line.startswith(start))


def test_the_table_counts_each_set():
  train, test = make([0, 0, 0, 1, 1, 2]), make([0, 1, 1, 2], split="test")
  text = shown((train,), (test,))
  assert row_of(text, TRAINED, "train") == "6 3 of 3 1 to 3 50.0 % c 16 x 16"
  assert row_of(text, TRAINED, "test") == "4 3 of 3 1 to 2 50.0 % a, c 16 x 16"
  assert "a single image of 1 of 3 classes ('c')" in text


def test_what_nothing_teaches_is_said_once():
  text = shown((make([0, 0, 1, 1]),), (make([0, 1], split="test"),))
  assert text.count("warning") == 1


def test_an_even_set_has_nothing_to_say():
  even = [0, 0, 1, 1, 2, 2]
  text = shown((make(even), make(even, split="validation")), (make(even, split="test"),))
  assert "warning" not in text
  assert row_of(text, TRAINED, "test") == "6 3 of 3 2 33.3 % none 16 x 16"


@pytest.mark.parametrize(
  ("train", "validation", "test", "message"),
  [
    ([0, 0, 1, 1], [0, 1], [0, 1], "train: no image of 1 of 3 classes ('c'); the head has"),
    ([0, 0, 1, 1, 2, 2], [0, 1], [0, 1, 2], "validation: no image of 1 of 3 classes ('c'); ch"),
    ([0, 0, 1, 1, 2, 2], [0, 1, 2], [0, 2], "test: no image of 1 of 3 classes ('b'); never tested"),
    ([0, 0, 1, 1], [0, 1], [0, 1, 2], "test: tests 1 of 3 classes ('c'), of which no image is"),
  ],
)
def test_silent_cases_are_warnings(train, validation, test, message):
  parts = zip((train, validation, test), ("train", "validation", "test"), strict=True)
  train, validation, test = (make(labels, split=split) for labels, split in parts)
  text = " ".join(shown((train, validation), (test,)).split())
  assert f"- warning: {TRAINED}, {message}" in text


def test_a_folder_shows_its_files_sizes_and_its_empty_folders(tmp_path, monkeypatch):
  monkeypatch.setenv("SUBTUNE_JAX_CACHE", str(tmp_path / "cache"))
  root = tmp_path / "i"
  for i, size in enumerate([(40, 30), (400, 300), (64, 48)]):
    write(root / "train/cat" / f"{i}.png", i, size)
  (root / "train/dog").mkdir()
  name = f"folder:{root}"
  for given in (name, f"{name}+contrast/1"):
    text = shown((data.load(given, "train", 16),), ())
    assert "40 x 30 to 400 x 300" in text
  assert "no image of 1 of 2 classes ('dog')" in " ".join(text.split())


def test_many_classes_and_long_names_fit_the_terminal():
  names = tuple(f"a class with a rather long name, number {i}" for i in range(200))
  text = shown((make(np.arange(200), names),), (make([0, 0], names, split="test"),))
  assert max(map(len, text.splitlines())) <= terminal.WIDTH
  assert len(text.splitlines()) < 40


def small(**fields):
  config = compare_config.default()
  config.methods, config.seeds, config.batch_size, config.tensorboard = ("lp",), (0,), 8, False
  config.data.train, config.data.ood, config.data.image_size = TRAINED, (), 16
  config.lp.l2 = (0.1,)
  config.backbone.update(name="resnet14", weights="random", preprocessing="half")
  config.update(fields)
  return config


@pytest.fixture
def changing(monkeypatch):
  """Registers a set whose images a test may change: those of `shift` are brighter."""
  shift = [0]

  def load(split, image_size, *, interpolation="bicubic"):
    del interpolation
    found = make(np.arange(12) % 3, split=split, size=image_size)
    return data.Dataset(
      found.images + np.uint8(shift[0]), found.labels, found.groups, found.ids, found.class_names,
      TRAINED, split,
    )  # fmt: skip

  monkeypatch.setattr(registry, "_REGISTERED", {TRAINED: registry.Entry(load)})
  return shift


@pytest.mark.slow
def test_a_run_that_goes_on_says_what_is_true_of_changed_data(changing, tmp_path):
  def started() -> str:
    stream = io.StringIO()
    compare.run(small(), tmp_path / "run", stream=stream)
    assert f"{TRAINED}" in stream.getvalue().splitlines()[3]  # the table
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("resuming")]
    assert len(lines) < 2
    return "".join(lines)

  rows = ledger.Ledger(tmp_path / "run/ledger.jsonl").rows
  assert started() == ""
  assert started() == "resuming: 1 training is finished and will not be repeated"
  assert len(rows()) == 1
  changing[0] = 7
  again = "0 trainings are finished and will not be repeated; 1 more in the ledger is of other"
  assert started() == f"resuming: {again} images or weights"
  assert len(rows()) == 2
  assert started().startswith("resuming: 1 training is finished and will not be repeated; 1 more")
  assert len(rows()) == 2


@pytest.mark.parametrize("size", [20_000, 4097, 0, -3])
@pytest.mark.parametrize(
  ("default", "run"),
  [
    (compare_config.default, compare.run), (search_config.default, search.run),
    (holistic_config.default, holistic.run),
  ],
)  # fmt: skip
def test_images_that_no_run_can_hold_are_refused_at_once(default, run, size, tmp_path, monkeypatch):
  config = default()
  config.data.image_size = size
  monkeypatch.setattr(registry, "load", None)
  monkeypatch.setattr(data, "load", None)
  with pytest.raises(ValueError, match=rf"image_size is {size}; allowed: 1 to 4096") as caught:
    run(config, tmp_path / "run")
  if size == 20_000:
    assert "A batch of 64 such images takes 307 GB" in str(caught.value)
  assert not (tmp_path / "run").exists()


def full(*_, **__):
  raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named_with_the_file(tmp_path, monkeypatch):
  monkeypatch.setattr(pathlib.Path, "write_bytes", full)
  monkeypatch.setattr(ledger.os, "fsync", full)
  orbax, checkpointer = checkpoint._checkpointer()
  monkeypatch.setattr(checkpointer, "save", full)
  monkeypatch.setattr(checkpoint, "_checkpointer", lambda: (orbax, checkpointer))
  for name, write_ in {
    "a.json": lambda path: files.write_atomically(path, b"x"),
    "b.npz": lambda path: files.write_npz(path, {"x": np.zeros(3)}),
    "c.jsonl": lambda path: ledger.Ledger(path).append({"key": "x"}),
    "d": lambda path: checkpoint.save(path, {"x": np.zeros(3)}, {}),
  }.items():
    with pytest.raises(OSError, match="No space left") as caught:
      write_(tmp_path / name)
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value).endswith(f"{tmp_path / name}'")
  monkeypatch.setattr(export.serialization, "msgpack_serialize", full)
  with pytest.raises(OSError, match=r"No space left on device: '.*/w\.msgpack'"):
    export.save_variables(tmp_path / "w.msgpack", {"params": {"x": np.zeros(3)}})


def test_full_metrics_are_named(tmp_path):
  (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
  writer = writers.MetricWriter(tmp_path, tensorboard=False)
  with pytest.raises(OSError, match=r"No space left on device: '.*/metrics\.jsonl'"):
    writer.write(1, "lp", {"loss": 1.0})
  writer.close()


@pytest.mark.slow
def test_a_disk_that_is_full_after_the_training_is_named(changing, tmp_path, monkeypatch):
  write_bytes = pathlib.Path.write_bytes

  def write_(path, content):
    return (full if path.name.startswith(".results") else write_bytes)(path, content)

  monkeypatch.setattr(pathlib.Path, "write_bytes", write_)
  with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/run/results\.json'"):
    compare.run(small(), tmp_path / "run", stream=io.StringIO())


@pytest.mark.parametrize("name", ["efficientnet_lite0", "vit_ti16"])
def test_stages_of_a_network_without_any_are_refused(name):
  blocks = {"efficientnet_lite0": ("stem", "block0", "block1", "top"),
            "vit_ti16": ("embedding", "encoderblock_0", "encoderblock_1")}[name]  # fmt: skip
  with pytest.raises(ValueError, match=r"units is 'stages', and no two blocks .*early: ") as caught:
    units.parse("stages", blocks)
  spec = str(caught.value).rpartition("such as '")[2].rstrip("'")
  assert len(units.parse(spec, blocks)) == 2  # what the message offers is one
