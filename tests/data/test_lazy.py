"""Lazy images look like an array and give the same rows in any order; prefetch keeps the order."""

import os
import threading
import time

import numpy as np
from PIL import Image
import pytest

from subtune_jax.data import decode, errors, lazy


@pytest.fixture
def paths(tmp_path):
  rng = np.random.default_rng(0)
  for i in range(7):
    pixels = rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(10, 1)
    Image.fromarray(pixels).save(tmp_path / f"{i}.jpg")
  return [tmp_path / f"{i}.jpg" for i in range(7)]


def test_looks_like_an_array(paths):
  images = lazy.from_files(paths, 16)
  assert (images.shape, images.dtype, images.ndim) == ((7, 16, 16, 3), np.uint8, 4)
  assert len(images) == 7
  assert images.nbytes == images[:].nbytes


@pytest.mark.parametrize(
  "indices",
  [
    slice(None), slice(2, 5), slice(None, None, -2), slice(5, 5), [3, 3, 0], np.array([6]),
    np.array([5, -1], np.int32), np.zeros(0, np.int64), [], 4, -7, np.int64(2), np.arange(7)[::-1],
  ],
)  # fmt: skip
def test_indexing_is_numpys(paths, indices):
  whole = np.stack([decode.square(path, 16) for path in paths])
  images = lazy.from_files(paths, 16)
  expected = (
    whole[np.zeros(0, int)] if isinstance(indices, list) and not indices else whole[indices]
  )
  found = images[indices]
  np.testing.assert_array_equal(found, expected)
  assert found.dtype == np.uint8
  if not isinstance(indices, int | np.integer):
    taken = images.take(indices)
    assert isinstance(taken, lazy.LazyImages)
    np.testing.assert_array_equal(taken[:], expected)


@pytest.mark.parametrize(
  ("indices", "message"),
  [
    (7, "Index 7 is out of range; allowed: 0 to 6"),
    ([0, -8], "Index -8 is out of range"),
    ([True] * 7, "np.flatnonzero"),
    ([0.0], "float64"),
    ([[0]], r"shape \(1, 1\)"),
    ("a", "vector of integers"),
  ],
)
def test_indexing_refuses(paths, indices, message):
  with pytest.raises(IndexError, match=message):
    lazy.from_files(paths, 16)[indices]


def test_is_not_made_an_array_by_accident(paths):
  images = lazy.from_files(paths, 16)
  with pytest.raises(TypeError, match=r"images\[:\] to decode them all"):
    np.asarray(images)
  assert len(list(images)) == 7


def test_many_threads_read_at_once():
  meet = threading.Barrier(min(2, os.cpu_count() or 1), timeout=10)

  def read(source):
    meet.wait()
    return np.full((2, 2, 3), source, np.uint8)

  images = lazy.LazyImages(range(4), read, 2, str)
  assert images[[3, 1, 2, 0]][:, 0, 0, 0].tolist() == [3, 1, 2, 0]


def test_a_reader_of_another_size_is_refused():
  images = lazy.LazyImages(["x"], lambda s: np.zeros((2, 3, 3), np.uint8), 2, str)
  with pytest.raises(ValueError, match=r"'x' gave uint8 \(2, 3, 3\); expected uint8 \(2, 2, 3\)"):
    images[:]


def test_fingerprint_covers_sizes_times_order_and_interpolation(paths):
  first = lazy.from_files(paths, 16).fingerprint()
  assert lazy.from_files(paths, 16).fingerprint() == first
  seen = {
    first,
    lazy.from_files(paths, 17).fingerprint(),
    lazy.from_files(paths, 16, "bilinear").fingerprint(),
    lazy.from_files(paths[:-1], 16).fingerprint(),
  }
  os.utime(paths[0], ns=(1, 1))
  seen.add(lazy.from_files(paths, 16).fingerprint())
  assert len(seen) == 5


def test_a_file_that_went_bad_is_named(paths):
  images = lazy.from_files(paths, 16)
  paths[4].write_bytes(paths[4].read_bytes()[:300])
  with pytest.raises(errors.BrokenImageError, match=r"4\.jpg: "):
    images[:]
  np.testing.assert_array_equal(images[[0]][0], decode.square(paths[0], 16))


@pytest.mark.parametrize(("size", "interpolation"), [(0, "bicubic"), (True, "bicubic"), (8, "box")])
def test_size_and_interpolation_are_checked(paths, size, interpolation):
  with pytest.raises(ValueError, match=r"image_size must be|Unknown interpolation 'box'"):
    lazy.from_files(paths, size, interpolation)


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_prefetch_gives_the_same_batches_in_order(depth):
  assert list(lazy.prefetch((i * i for i in range(20)), depth)) == [i * i for i in range(20)]
  assert list(lazy.prefetch([], depth)) == []


def test_prefetch_runs_ahead_by_its_depth_and_no_further():
  made = []
  batches = lazy.prefetch((made.append(i) or i for i in range(100)), depth=3)
  assert next(batches) == 0
  deadline = time.monotonic() + 10
  while len(made) < 4 and time.monotonic() < deadline:
    time.sleep(0.01)
  time.sleep(0.05)
  assert made == [0, 1, 2, 3]
  batches.close()
  assert list(batches) == []


def test_prefetch_counts_what_the_consumer_waited():
  def slow():
    for i in range(3):
      time.sleep(0.05)
      yield i

  batches = lazy.prefetch(slow(), depth=1)
  assert list(batches) == [0, 1, 2]
  assert 0.1 < batches.waited_seconds < 5
  ready = lazy.prefetch(iter([1, 2]), depth=2)
  time.sleep(0.2)
  assert list(ready) == [1, 2]
  assert ready.waited_seconds < 0.1


def test_prefetch_raises_where_the_batch_would_have_come():
  def failing():
    yield 1
    yield 2
    raise KeyError("third")

  batches = lazy.prefetch(failing(), depth=2)
  assert [next(batches), next(batches)] == [1, 2]
  with pytest.raises(KeyError, match="third"):
    next(batches)
  with pytest.raises(StopIteration):
    next(batches)


def test_prefetch_closes_its_source():
  closed = []

  def source():
    try:
      while True:
        yield 0
    finally:
      closed.append(True)

  with lazy.prefetch(source()) as batches:
    next(batches)
  assert closed
  with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
    lazy.prefetch([], 0)
