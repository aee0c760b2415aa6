"""TFDS is opened read-only, quietly, and not at all for a data set that is missing."""

import hashlib
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from subtune_jax.data import errors, tfds_source, vtab

_ROOT = pathlib.Path(__file__).parents[2]
_DEBIAN = pathlib.Path(os.environ.get("FASHION_MNIST_SOURCE", "/usr/share/datasets/fashion-mnist"))


def _script():
  spec = importlib.util.spec_from_file_location(
    "prepare_fashion_mnist", _ROOT / "scripts" / "prepare_fashion_mnist.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def source(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  return tfds_source.Source("a_set/config", "1.2.3", "5 GB", needs=("json", "no_such_module_1"))


def test_where_it_is_looked_for(source, tmp_path, monkeypatch):
  assert source.path == tmp_path / "a_set" / "config" / "1.2.3"
  assert not source.is_prepared()
  source.path.mkdir(parents=True)
  assert not source.is_prepared()
  (source.path / "dataset_info.json").write_text("{}")
  assert source.is_prepared()
  monkeypatch.delenv("TFDS_DATA_DIR")
  assert tfds_source.data_dir() == pathlib.Path.home() / "tensorflow_datasets"


def test_the_error_names_set_size_place_command_and_missing_modules(source):
  with pytest.raises(errors.MissingDataError) as error:
    tfds_source.open_builder(source, "ours/name")
  text = str(error.value)
  for part in (
    "ours/name", "a_set/config 1.2.3", "5 GB", str(source.path), "TFDS_DATA_DIR",
    "python -m subtune_jax.data.prepare ours/name", "no_such_module_1",
  ):  # fmt: skip
    assert part in text
  assert "json" not in text


def test_missing_data_needs_no_tensorflow_and_tensorflow_starts_quietly(tmp_path):
  pytest.importorskip("tensorflow_datasets", reason="imports it")
  code = (
    "import sys\n"
    "from subtune_jax.data import tfds_source, vtab\n"
    "try:\n  vtab.ENTRIES['vtab/dtd']('test', 32)\n"
    "except FileNotFoundError: pass\n"
    "else: raise SystemExit('found')\n"
    "assert 'tensorflow' not in sys.modules\n"
    "assert 'tensorflow_datasets' not in sys.modules\n"
    "tfds_source.import_tfds()\n"
    "tf = sys.modules['tensorflow']\n"
    "assert not tf.config.get_visible_devices('GPU')\n"
    "print('still here', file=sys.stderr)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True, text=True, timeout=110, check=False, cwd=_ROOT,
    env={**os.environ, "TFDS_DATA_DIR": str(tmp_path)},
  )  # fmt: skip
  assert (done.returncode, done.stdout, done.stderr) == (0, "", "still here\n")


def test_what_stderr_says_is_not_lost_when_the_import_fails(monkeypatch, capfd):
  monkeypatch.delitem(sys.modules, "tensorflow", raising=False)

  def fail():
    with tfds_source._silent_stderr():
      os.write(2, b"the reason\n")
      raise ImportError

  with pytest.raises(ImportError):
    fail()
  assert capfd.readouterr().err == "the reason\n"


def test_channels_and_scale():
  grey = np.uint8([[[0], [1]]])
  np.testing.assert_array_equal(tfds_source.rgb(grey), [[[0, 0, 0], [1, 1, 1]]])
  np.testing.assert_array_equal(tfds_source.rgb(grey, 255), [[[0, 0, 0], [255, 255, 255]]])
  colour = np.uint8([[[1, 2, 3]]])
  np.testing.assert_array_equal(tfds_source.rgb(colour), colour)


def test_scratch_is_refused_where_the_disk_is_too_small(monkeypatch):
  array = tfds_source._scratch((2, 3, 3, 3))
  array[:] = 7
  assert array.sum() == 7 * 54
  usage = shutil.disk_usage("/")._replace(free=100)
  monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
  with pytest.raises(OSError, match="TMPDIR"):
    tfds_source._scratch((2, 8, 8, 3))


def test_debians_header_becomes_the_original_one():
  script = _script()
  body = bytes([0, 3]) + b"deflated"
  debian = b"\x1f\x8b\x08\x00\xed\x0a\xda\x5e" + body
  name = "t10k-labels-idx1-ubyte"
  restored = script.original(debian, name)
  assert restored[:4] == b"\x1f\x8b\x08\x08"
  assert int.from_bytes(restored[4:8], "little") == 1504176627
  assert restored[8:] == b"\x00\x03" + name.encode() + b"\0" + b"deflated"
  assert script.original(restored, name) == restored
  with pytest.raises(ValueError, match="not a gzip file"):
    script.original(b"PK\3\4....", name)


_no_files = pytest.mark.skipif(
  not _DEBIAN.is_dir(),
  reason=f"Debian's dataset-fashion-mnist is not in {_DEBIAN} (FASHION_MNIST_SOURCE)",
)


@_no_files
def test_fashion_mnist_files_are_the_original_ones_byte_for_byte():
  script = _script()
  sums = {
    name: hashlib.sha256(script.original((_DEBIAN / f"{name}.gz").read_bytes(), name)).hexdigest()
    for name in script.TIMES
  }
  assert sums == {
    "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
  }


@_no_files
def test_the_builder_refuses_a_changed_file(tmp_path, monkeypatch):
  pytest.importorskip("tensorflow_datasets", reason="prepares with it")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  script = _script()
  for name in script.TIMES:
    data = (_DEBIAN / f"{name}.gz").read_bytes()
    changed = data[:-1] + bytes([data[-1] ^ 1]) if name.startswith("t10k-l") else data
    (tmp_path / f"{name}.gz").write_bytes(changed)
  with pytest.raises(Exception, match=r"[Cc]hecksum"):
    script.prepare(tmp_path)
  assert not vtab.SOURCES["fashion_mnist"].is_prepared()


@_no_files
@pytest.mark.slow
def test_fashion_mnist_through_the_stock_builder(tmp_path, monkeypatch):
  pytest.importorskip("tensorflow_datasets", reason="prepares with it")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  monkeypatch.setenv("SUBTUNE_JAX_CACHE", str(tmp_path / "cache"))
  _script().prepare(_DEBIAN)
  counts = {
    "train": [84, 82, 84, 87, 80, 84, 81, 71, 65, 82],
    "validation": [23, 20, 18, 20, 23, 14, 16, 21, 25, 20],
    "trainval": [107, 102, 102, 107, 103, 98, 97, 92, 90, 102],
    "test": [1000] * 10,
  }
  for split, expected in counts.items():
    data = vtab.ENTRIES["fashion_mnist"](split, 28)
    assert np.bincount(data.labels).tolist() == expected
    assert data.images.shape == (sum(expected), 28, 28, 3)
    assert data.class_names[9] == "Ankle boot"
  trainval = vtab.ENTRIES["fashion_mnist"]("trainval", 28)
  assert trainval.ids[799].endswith("__799")
  assert trainval.ids[800].endswith("__54000")
