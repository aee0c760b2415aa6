"""Recognising a file by its content, and what may and may not be left unread."""

import json

from flax import serialization, traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import weights
from subtune_jax.data import preprocess
from subtune_jax.models import resnet
from subtune_jax.weights import matching

_MODEL = resnet.ResNet(
  num_classes=5, stage_sizes=(1, 1), bottleneck=False, stem="cifar", width=8, image_size=16
)


@pytest.fixture(scope="module")
def variables():
  """Random variables of the small network, statistics too."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(_MODEL.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  return jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def tensors(variables):
  """The same under torchvision's names, axes in torch's order."""
  flat = traverse_util.flatten_dict(variables, sep="/")
  match = matching.recognise(
    {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight"}, _MODEL, flat, "names"
  )
  out = {}
  for path, source in match.sources.items():
    (key,) = source.keys
    value = flat[path]
    order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
    out[key] = np.ascontiguousarray(value.transpose(order))
    if key.endswith("running_var"):
      out[key.removesuffix("running_var") + "num_batches_tracked"] = np.array(7)
  return out


@pytest.fixture
def load(tmp_path):
  """Writes tensors to an .npz and loads them."""

  def load(tensors, model=_MODEL, **options):
    np.savez(tmp_path / "file.npz", **tensors)
    return weights.load_pretrained(
      tmp_path / "file.npz", model, **{"preprocessing": "imagenet", **options}
    )

  return load


def _assert_equal(loaded, variables, but=()):
  got = traverse_util.flatten_dict(loaded.variables, sep="/")
  expected = traverse_util.flatten_dict(variables, sep="/")
  assert set(got) == set(expected)
  for path in set(expected) - set(but):
    np.testing.assert_array_equal(got[path], expected[path], err_msg=path)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_prefixes_are_told_by_content(tensors, variables, load, prefix):
  loaded = load({prefix + key: value for key, value in tensors.items()})
  _assert_equal(loaded, variables)
  assert loaded.not_loaded == ()


def test_a_file_without_a_head_gives_a_new_one_and_says_so(tensors, variables, load):
  body = {key: value for key, value in tensors.items() if not key.startswith("fc.")}
  loaded = load(body)
  assert loaded.not_loaded == ("head/kernel", "head/bias")
  _assert_equal(loaded, variables, but=("params/head/kernel", "params/head/bias"))
  assert np.ptp(loaded.variables["params"]["head"]["kernel"]) > 0


def test_half_a_head_is_an_error(tensors, load):
  with pytest.raises(weights.WeightsError, match=r"missing from the file: fc\.bias$"):
    load({key: value for key, value in tensors.items() if key != "fc.bias"})


def test_a_group_is_dropped_whole_or_not_at_all(tensors, variables, load):
  counters = [key for key in tensors if key.endswith("num_batches_tracked")]
  _assert_equal(load({k: v for k, v in tensors.items() if k not in counters}), variables)
  with pytest.raises(weights.WeightsError, match=f"{counters[0]} .batch counters"):
    load({k: v for k, v in tensors.items() if k != counters[0]})


def test_the_error_names_the_scheme_and_prefix_that_were_read(tensors, load):
  changed = {"module." + key: value for key, value in tensors.items()}
  changed["module.extra.weight"] = np.zeros(3, np.float32)
  with pytest.raises(weights.WeightsError) as error:
    load(changed)
  assert "torchvision, timm or DINO ResNet under 'module.'" in str(error.value)
  assert str(error.value).endswith("unexpected in the file: module.extra.weight")


def test_a_foreign_file_is_an_error_with_its_names_and_the_known_schemes(load):
  with pytest.raises(weights.WeightsError) as error:
    load({"decoder.weight": np.zeros(3), "decoder.bias": np.zeros(3)})
  assert "it holds 'decoder.bias', 'decoder.weight'" in str(error.value)
  assert "torchvision, timm or DINO ResNet" in str(error.value)


def test_a_long_list_of_differences_is_cut(tensors, load):
  changed = {**tensors, **{f"extra.{i}": np.zeros(1) for i in range(100)}}
  with pytest.raises(weights.WeightsError, match=r"and 60 more$"):
    load(changed)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_widths_become_float32(tensors, load, dtype):
  changed = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in tensors.items()}
  loaded = load(changed).variables
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(jnp.float32)}


def test_our_own_variables_come_back_from_msgpack(variables, tmp_path):
  path = tmp_path / "own.msgpack"
  path.write_bytes(serialization.to_bytes(variables))
  loaded = weights.load_pretrained(path, _MODEL, preprocessing="imagenet")
  _assert_equal(loaded, variables)


# ------------------------------------------------------------------ preprocessing


def test_a_scheme_that_does_not_tell_asks_for_the_preprocessing(variables, tmp_path):
  path = tmp_path / "own.msgpack"
  path.write_bytes(serialization.to_bytes(variables))
  with pytest.raises(weights.WeightsError, match="give preprocessing= one of 'imagenet'"):
    weights.load_pretrained(path, _MODEL)
  with pytest.raises(ValueError, match=r"Unknown preprocessing 'imagnet'. Did you mean 'imagenet"):
    weights.load_pretrained(path, _MODEL, preprocessing="imagnet")
  given = preprocess.Preprocessing((1.0,), (2.0,))
  assert weights.load_pretrained(path, _MODEL, preprocessing=given).preprocessing == given


def test_a_hubs_json_beside_the_weights_tells(variables, tmp_path):
  path = tmp_path / "own.msgpack"
  path.write_bytes(serialization.to_bytes(variables))
  beside = tmp_path / "preprocessor_config.json"
  config = {
    "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2], "resample": 3,
    "do_center_crop": True, "crop_size": {"height": 224, "width": 224},
    "size": {"shortest_edge": 256},
  }  # fmt: skip
  beside.write_text(json.dumps(config))
  seen = weights.load_pretrained(path, _MODEL).preprocessing
  np.testing.assert_allclose(seen.mean, [127.5, 102.0, 76.5])
  np.testing.assert_allclose(seen.std, [51.0] * 3)
  assert (seen.interpolation, seen.resize) == ("bicubic", 0.875)
  beside.write_text(json.dumps({"image_mean": 3}))
  with pytest.raises(
    weights.WeightsError, match=r"preprocessor_config\.json says no preprocessing"
  ):
    weights.load_pretrained(path, _MODEL)
  beside.unlink()
  timm = {"mean": [0.5], "std": [0.5], "interpolation": "bicubic", "crop_pct": 0.9}
  (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": timm}))
  seen = weights.load_pretrained(path, _MODEL).preprocessing
  assert (seen.mean, seen.interpolation, seen.resize) == ((127.5,), "bicubic", 0.9)
