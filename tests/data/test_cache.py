"""The cache: filled once, mapped, rebuilt when stale or damaged, safe for two processes."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from subtune_jax.data import cache

KEY = {"name": "folder:/a", "split": "train", "image_size": 4, "interpolation": "bicubic", "x": 1}
SHAPE = (4, 4, 3)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
  monkeypatch.setenv("SUBTUNE_JAX_CACHE", str(tmp_path / "cache"))


class Builder:
  """Yields n images in blocks and counts how often it was asked."""

  def __init__(self, n=5, seed=0):
    self.pixels = np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), np.uint8)
    self.calls = 0

  def __call__(self):
    self.calls += 1
    return (self.pixels[i : i + 2] for i in range(0, len(self.pixels), 2))


def only_file() -> pathlib.Path:
  (path,) = cache.folder().iterdir()
  return path


def test_is_filled_once_and_memory_mapped():
  build = Builder()
  for _ in range(3):
    images = cache.images(KEY, build, 5, SHAPE)
    np.testing.assert_array_equal(images, build.pixels)
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
  assert build.calls == 1
  assert only_file().name.startswith("folder_a_train_4_bicubic-")
  np.testing.assert_array_equal(np.load(only_file()), build.pixels)


def test_each_place_has_its_file_and_the_rest_of_the_key_replaces_it():
  cache.images(KEY, Builder(), 5, SHAPE)
  for change in ({"split": "test"}, {"name": "folder:/b"}, {"name": "folder/a"}):
    cache.images(KEY | change, Builder(), 5, SHAPE)
  assert len(list(cache.folder().iterdir())) == 4
  stale = Builder(seed=1)
  np.testing.assert_array_equal(cache.images(KEY | {"x": 2}, stale, 5, SHAPE), stale.pixels)
  assert stale.calls == 1
  assert len(list(cache.folder().iterdir())) == 4
  back = Builder()
  cache.images(KEY, back, 5, SHAPE)
  assert back.calls == 1


def _flip(path, position):
  content = bytearray(path.read_bytes())
  content[position] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize(
  "damage",
  [
    lambda p: _flip(p, 200),
    lambda p: _flip(p, 0),
    lambda p: _flip(p, 60),
    lambda p: _flip(p, -1),
    lambda p: _flip(p, -12),
    lambda p: _flip(p, -40),
    lambda p: p.write_bytes(p.read_bytes()[:-30]),
    lambda p: p.write_bytes(p.read_bytes()[:100]),
    lambda p: p.write_bytes(b""),
    lambda p: p.write_bytes(b"text"),
    lambda p: p.write_bytes(p.read_bytes() + b"more"),
  ],
)
def test_a_damaged_file_is_rebuilt(damage, caplog):
  cache.images(KEY, Builder(), 5, SHAPE)
  damage(only_file())
  build = Builder()
  with caplog.at_level("INFO"):
    np.testing.assert_array_equal(cache.images(KEY, build, 5, SHAPE), build.pixels)
  assert build.calls == 1
  assert "rebuilding it" in caplog.text
  again = Builder()
  cache.images(KEY, again, 5, SHAPE)
  assert again.calls == 0


def test_every_flipped_bit_of_the_file_is_noticed():
  expected = np.array(cache.images(KEY, Builder(1), 1, SHAPE))
  whole = only_file().read_bytes()
  for position in range(0, len(whole), 3):
    only_file().write_bytes(whole)
    _flip(only_file(), position)
    np.testing.assert_array_equal(cache.images(KEY, Builder(1), 1, SHAPE), expected)


@pytest.mark.parametrize(
  ("build", "message"),
  [
    (Builder(4), "got 4 images, expected 5"),
    (Builder(6), "6 images so far; expected"),
    (lambda: [np.zeros((5, 4, 4, 3), np.float32)], "got float32"),
    (lambda: [np.zeros((5, 4, 5, 3), np.uint8)], r"\(5, 4, 5, 3\)"),
  ],
)
def test_wrong_images_are_refused_and_leave_nothing(build, message):
  with pytest.raises(ValueError, match=message):
    cache.images(KEY, build, 5, SHAPE)
  assert list(cache.folder().iterdir()) == []


def test_a_build_that_fails_leaves_nothing():
  def build():
    yield np.zeros((1, *SHAPE), np.uint8)
    raise KeyError("half way")

  with pytest.raises(KeyError, match="half way"):
    cache.images(KEY, build, 5, SHAPE)
  assert list(cache.folder().iterdir()) == []


def test_a_folder_that_cannot_be_written_means_memory(tmp_path, monkeypatch, caplog):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("SUBTUNE_JAX_CACHE", str(tmp_path / "file" / "cache"))
  build = Builder()
  np.testing.assert_array_equal(cache.images(KEY, build, 5, SHAPE), build.pixels)
  assert "building in memory" in caplog.text
  assert cache.report(KEY, lambda: {"a": 1}) == {"a": 1}


def test_files_of_dead_runs_are_removed_after_a_day():
  cache.images(KEY, Builder(), 5, SHAPE)
  for name in ("old.partial", "new.partial"):
    (cache.folder() / name).write_text("")
  os.utime(cache.folder() / "old.partial", (1, 1))
  cache.images(KEY | {"x": 3}, Builder(), 5, SHAPE)
  assert not (cache.folder() / "old.partial").exists()
  assert (cache.folder() / "new.partial").exists()


def test_report():
  calls = []
  for value in ({"a": "b"}, {"a": "c"}):
    assert cache.report(KEY, lambda v=value: calls.append(v) or v) == {"a": "b"}
  assert len(calls) == 1
  assert cache.report(KEY | {"x": 2}, lambda: {"a": "c"}) == {"a": "c"}
  only_file().write_text(only_file().read_text().replace('"c"', '"d"'))
  assert cache.report(KEY | {"x": 2}, lambda: {"a": "e"}) == {"a": "e"}
  only_file().write_text("[")
  assert cache.report(KEY | {"x": 2}, lambda: {"a": "f"}) == {"a": "f"}


def test_limit(monkeypatch):
  assert cache.limit() == 4 * 2**30
  monkeypatch.setenv("SUBTUNE_JAX_CACHE_BYTES", "480")
  assert cache.fits(10, SHAPE)
  assert not cache.fits(11, SHAPE)
  monkeypatch.setenv("SUBTUNE_JAX_CACHE_BYTES", "4GB")
  with pytest.raises(ValueError, match="SUBTUNE_JAX_CACHE_BYTES='4GB' must be a number of bytes"):
    cache.fits(1, SHAPE)


def test_default_folder(monkeypatch):
  monkeypatch.delenv("SUBTUNE_JAX_CACHE")
  monkeypatch.setenv("HOME", "/somebody")
  assert cache.folder() == pathlib.Path("/somebody/.cache/subtune_jax/data")


def test_two_processes_at_once():
  script = """
import sys, time, numpy as np
from subtune_jax.data import cache
pixels = np.arange(50 * 48, dtype=np.uint8).reshape(50, 4, 4, 3)
def build():
  for row in pixels:
    time.sleep(0.005)
    yield row[None]
key = {"name": "two", "split": "train", "image_size": 4, "interpolation": "bicubic"}
for attempt in range(3):
  found = cache.images(key | {"x": attempt}, build, 50, (4, 4, 3))
  assert (found == pixels).all()
"""
  running = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
  assert [process.wait(timeout=60) for process in running] == [0, 0]
  assert only_file().suffix == ".npy"
