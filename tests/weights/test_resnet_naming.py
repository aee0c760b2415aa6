"""Names of ResNets' tensors in the files of those who publish them, at small and at true size."""

import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import models, weights
from subtune_jax.data import preprocess
from subtune_jax.models import bit_resnet, clip_resnet, resnet
from subtune_jax.weights import matching
from subtune_jax.weights.naming import clip_text

_CLASSES = 5
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _peers():
  """The peers' module, where torch is there."""
  pytest.importorskip("torch", reason="torch has no wheel for this Python here")
  from tests import resnet_peers

  return resnet_peers


def _small(num_classes: int = _CLASSES) -> resnet.ResNet:
  return resnet.ResNet(stage_sizes=(2, 1), bottleneck=True, width=8, num_classes=num_classes)


def _tensors(head: bool = True) -> dict[str, np.ndarray]:
  """A small ResNet under torchvision's names."""
  tensors = _peers().plain_resnet((2, 1), True, 8, cifar=False).tensors()
  return {k: v for k, v in tensors.items() if head or not k.startswith("fc.")}


def _ones(*names: str) -> dict[str, np.ndarray]:
  return {name: np.ones((2,), np.float32) for name in names}


def _mlp(prefix: str, *layers: tuple[str, tuple[str, ...]]) -> dict[str, np.ndarray]:
  return _ones(*(f"{prefix}{name}.{field}" for name, fields in layers for field in fields))


def _save(tensors, path):
  torch = _peers().torch
  torch.save({k: torch.tensor(v) for k, v in tensors.items()}, path)
  return path


def _load(tensors, folder, model=None, preprocessing=None):
  path = _save(tensors, folder / "weights.pth")
  return weights.load_pretrained(path, model or _small(), preprocessing=preprocessing)


def _equal_backbones(loaded, tensors):
  """Spot checks of layers against tensors under torchvision's names, written out by hand."""
  params, stats = loaded.variables["params"], loaded.variables["batch_stats"]
  unit, running = params["block2"]["unit1"], stats["block2"]["unit1"]
  pairs = {
    "conv1.weight": params["stem"]["conv1"]["kernel"],
    "bn1.running_mean": stats["stem"]["conv1"]["bn"]["mean"],
    "layer1.1.conv2.weight": params["block1"]["unit2"]["conv2"]["kernel"],
    "layer2.0.bn3.weight": unit["conv3"]["bn"]["scale"],
    "layer2.0.bn3.bias": unit["conv3"]["bn"]["bias"],
    "layer2.0.downsample.0.weight": unit["downsample"]["kernel"],
    "layer2.0.downsample.1.running_var": running["downsample"]["bn"]["var"],
  }
  for key, value in pairs.items():
    expected = tensors[key]
    expected = expected.transpose(2, 3, 1, 0) if expected.ndim == 4 else expected
    np.testing.assert_array_equal(value, expected, err_msg=key)


# ------------------------------------------------------------------ torchvision, DINO


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_torchvisions_names(prefix, tmp_path):
  tensors = _tensors()
  loaded = _load({prefix + k: v for k, v in tensors.items()}, tmp_path, preprocessing="imagenet")
  assert loaded.not_loaded == ()
  _equal_backbones(loaded, tensors)
  np.testing.assert_array_equal(
    loaded.variables["params"]["head"]["kernel"], tensors["fc.weight"].T
  )
  np.testing.assert_array_equal(loaded.variables["params"]["head"]["bias"], tensors["fc.bias"])


def test_a_head_of_other_classes_or_none_is_initialised(tmp_path):
  for model, tensors in ((_small(7), _tensors()), (_small(), _tensors(head=False))):
    loaded = _load(tensors, tmp_path, model, "imagenet")
    assert loaded.not_loaded == ("head/kernel", "head/bias")
    _equal_backbones(loaded, tensors)


def test_plain_names_say_no_preprocessing(tmp_path):
  with pytest.raises(weights.WeightsError, match=r"torchvision.*preprocessing="):
    _load(_tensors(), tmp_path)


def test_files_without_counters_are_whole(tmp_path):
  tensors = {k: v for k, v in _tensors().items() if not k.endswith("num_batches_tracked")}
  assert _load(tensors, tmp_path, preprocessing="imagenet").not_loaded == ()


_LAST = ("head.last_layer", ("weight_g", "weight_v"))
_LINEAR = ("weight", "bias")
_DINO = {
  "plain": (*((f"head.mlp.{i}", _LINEAR) for i in (0, 2, 4)), _LAST),
  "normed": (
    *((f"head.mlp.{i}", _LINEAR) for i in (0, 3, 6)),
    *((f"head.mlp.{i}", _NORM) for i in (1, 4)),
    _LAST,
  ),
}


@pytest.mark.parametrize("outer", ["", "module."])
@pytest.mark.parametrize("form", sorted(_DINO))
def test_dinos_names(form, outer, tmp_path):
  tensors = _tensors(head=False)
  file = {f"{outer}backbone.{k}": v for k, v in tensors.items()} | _mlp(outer, *_DINO[form])
  loaded = _load(file, tmp_path, preprocessing="imagenet")
  assert loaded.not_loaded == ("head/kernel", "head/bias")
  _equal_backbones(loaded, tensors)
  for spare in (f"{outer}head.mlp.9.weight", f"{outer}head.mlp.8.bias"):
    with pytest.raises(weights.WeightsError, match=f"unexpected in the file: {re.escape(spare)}"):
      _load(file | _ones(spare), tmp_path, preprocessing="imagenet")
  del file[f"{outer}head.last_layer.weight_v"]
  with pytest.raises(weights.WeightsError, match=r"missing from the file: .*last_layer.weight_v"):
    _load(file, tmp_path, preprocessing="imagenet")


# ------------------------------------------------------------------ MoCo


def _moco(version: int, prefix: str, momentum: bool = True) -> dict[str, np.ndarray]:
  """A checkpoint of MoCo v1 or v2 whose momentum encoder has other values."""
  body = _tensors(head=False)
  layers = ("fc",) if version == 1 else ("fc.0", "fc.2")
  file = {f"{prefix}encoder_q.{k}": v for k, v in body.items()}
  file |= _mlp(f"{prefix}encoder_q.", *((name, _LINEAR) for name in layers))
  if momentum:
    file |= {f"{prefix}encoder_k.{k}": v + 1 for k, v in body.items()}
    file |= _mlp(f"{prefix}encoder_k.", *((name, _LINEAR) for name in layers))
    file |= _ones(f"{prefix}queue", f"{prefix}queue_ptr")
  return file


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("momentum", [True, False])
def test_mocos_names(version, prefix, momentum, tmp_path):
  file = _moco(version, prefix, momentum)
  loaded = _load(file, tmp_path)
  assert loaded.not_loaded == ("head/kernel", "head/bias")
  assert loaded.preprocessing == preprocess.PRESETS["imagenet"]
  _equal_backbones(loaded, _tensors(head=False))


@pytest.mark.parametrize(
  ("key", "what"),
  [
    ("module.encoder_k.layer1.0.conv1.weight", "momentum encoder"),
    ("module.encoder_k.bn1.num_batches_tracked", "batch counters"),
    ("module.encoder_q.fc.2.bias", "projection of MoCo v2"),
    ("module.encoder_k.fc.0.weight", "projection of MoCo v2"),
    ("module.queue_ptr", "queue"),
    ("module.encoder_q.layer1.0.bn1.weight", None),
  ],
)
def test_a_group_of_mocos_without_one_tensor_is_an_error(key, what, tmp_path):
  file = _moco(2, "module.")
  del file[key]
  message = f"missing from the file: {re.escape(key)}" + (rf" \({what}\)" if what else "")
  with pytest.raises(weights.WeightsError, match=message):
    _load(file, tmp_path)


def test_a_tensor_that_moco_does_not_have_is_an_error(tmp_path):
  key = "module.encoder_k.fc.4.weight"
  with pytest.raises(weights.WeightsError, match=f"unexpected in the file: {re.escape(key)}"):
    _load(_moco(2, "module.") | _ones(key), tmp_path)


@pytest.mark.parametrize("last_norm", [True, False])
def test_moco_v3s_names(last_norm, tmp_path):
  body, mlp = _tensors(head=False), [("0", ("weight",)), ("1", _NORM), ("3", ("weight",))]
  last = ("4", _NORM[2:])
  file = {f"module.base_encoder.{k}": v for k, v in body.items()}
  file |= {f"module.momentum_encoder.{k}": v + 1 for k, v in body.items()}
  for encoder in ("base_encoder", "momentum_encoder"):
    file |= _mlp(f"module.{encoder}.fc.", *mlp, last)
  file |= _mlp("module.predictor.", *mlp, *([last] if last_norm else []))
  loaded = _load(file, tmp_path)
  assert loaded.not_loaded == ("head/kernel", "head/bias")
  assert loaded.preprocessing == preprocess.PRESETS["imagenet"]
  _equal_backbones(loaded, body)
  for key in ("module.predictor.1.bias", "module.momentum_encoder.fc.4.running_var"):
    with pytest.raises(weights.WeightsError, match=f"missing from the file: {re.escape(key)}"):
      _load({k: v for k, v in file.items() if k != key}, tmp_path)


# ------------------------------------------------------------------ transformers


@pytest.mark.parametrize("form", ["classifier", "module.", "bare"])
def test_transformers_names(form, tmp_path):
  tensors = _peers().transformers_resnet((2, 1), (32, 64), True).tensors()
  if form == "bare":  # of ResNetModel
    file = {k.removeprefix("resnet."): v for k, v in tensors.items() if k.startswith("resnet.")}
  else:
    file = {("module." if form == "module." else "") + k: v for k, v in tensors.items()}
  loaded = _load(file, tmp_path, preprocessing="imagenet")
  params = loaded.variables["params"]
  unit = "resnet.encoder.stages.1.layers.0."
  pairs = {
    "resnet.embedder.embedder.convolution.weight": params["stem"]["conv1"]["kernel"],
    f"{unit}layer.2.convolution.weight": params["block2"]["unit1"]["conv3"]["kernel"],
    f"{unit}shortcut.convolution.weight": params["block2"]["unit1"]["downsample"]["kernel"],
  }
  for key, value in pairs.items():
    np.testing.assert_array_equal(value, tensors[key].transpose(2, 3, 1, 0))
  if form == "bare":
    assert loaded.not_loaded == ("head/kernel", "head/bias")
  else:
    assert loaded.not_loaded == ()
    np.testing.assert_array_equal(params["head"]["kernel"], tensors["classifier.1.weight"].T)


# ------------------------------------------------------------------ CLIP, BiT

_TEXT = [
  *("token_embedding.weight", "positional_embedding", "ln_final.weight", "ln_final.bias"),
  *("text_projection", "logit_scale"),
  *(
    f"transformer.resblocks.{i}.{name}"
    for i in range(12)
    for name in (
      *("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"),
      *("ln_1.weight", "ln_1.bias", "mlp.c_fc.weight", "mlp.c_fc.bias"),
      *("mlp.c_proj.weight", "mlp.c_proj.bias", "ln_2.weight", "ln_2.bias"),
    )
  ),
]


def _clip():
  """A small model and its peer's tensors."""
  fields = {"width": 8, "heads": 4, "features": 12, "image_size": 64}
  model = clip_resnet.ClipResNet(stage_sizes=(1, 1, 1, 1), num_classes=_CLASSES, **fields)
  return model, _peers().clip_resnet((1, 1, 1, 1), **fields).tensors()


@pytest.mark.parametrize("form", ["archive", "state dict", "image tower", "bare"])
def test_clips_names(form, tmp_path):
  model, tensors = _clip()
  file = dict(tensors)
  if form in ("archive", "state dict"):
    file |= _ones(*_TEXT)
  if form == "archive":
    file |= _ones("input_resolution", "context_length", "vocab_size")
  if form == "bare":
    file = {k.removeprefix("visual."): v for k, v in file.items()}
  loaded = _load(file, tmp_path, model)
  assert loaded.not_loaded == ("head/kernel", "head/bias")
  assert loaded.preprocessing == preprocess.PRESETS["clip"]
  pool = loaded.variables["params"]["attention_pool"]
  np.testing.assert_array_equal(pool["q"]["kernel"], tensors["visual.attnpool.q_proj.weight"].T)
  np.testing.assert_array_equal(pool["c"]["bias"], tensors["visual.attnpool.c_proj.bias"])
  positions = tensors["visual.attnpool.positional_embedding"]
  np.testing.assert_array_equal(pool["positional_embedding"], positions)


def test_a_text_tower_without_one_tensor_or_with_another_is_an_error(tmp_path):
  model, tensors = _clip()
  file = tensors | _ones(*_TEXT)
  assert clip_text.text_tower() == frozenset(_TEXT)
  with pytest.raises(weights.WeightsError, match=r"missing .*ln_final.bias \(text tower\)"):
    _load({k: v for k, v in file.items() if k != "ln_final.bias"}, tmp_path, model)
  with pytest.raises(weights.WeightsError, match=r"unexpected .*resblocks.12.ln_1.bias"):
    _load(file | _ones("transformer.resblocks.12.ln_1.bias"), tmp_path, model)


def test_positions_of_another_image_size_do_not_fit(tmp_path):
  model, tensors = _clip()
  message = r"positional_embedding is \(10, 256\).*\(5, 256\)"
  with pytest.raises(weights.WeightsError, match=message):
    _load(tensors, tmp_path, model.clone(image_size=96))


def test_bits_names(tmp_path):
  model = bit_resnet.BitResNet(stage_sizes=(1, 1), width=32, num_classes=_CLASSES)
  tensors = _peers().bit_resnet((1, 1), 32).tensors()
  path = tmp_path / "BiT-M-R50x1.npz"
  np.savez(path, **tensors)
  loaded = weights.load_pretrained(path, model)
  assert loaded.not_loaded == ()
  assert loaded.preprocessing == preprocess.PRESETS["half"]
  params = loaded.variables["params"]
  unit = "resnet/block2/unit01/"
  pairs = {
    "resnet/root_block/standardized_conv2d/kernel": params["stem"]["conv1"]["kernel"],
    f"{unit}b/standardized_conv2d/kernel": params["block2"]["unit1"]["conv2"]["kernel"],
    f"{unit}a/proj/standardized_conv2d/kernel": params["block2"]["unit1"]["downsample"]["kernel"],
    f"{unit}c/group_norm/gamma": params["block2"]["unit1"]["norm3"]["scale"],
    "resnet/group_norm/beta": params["top"]["norm"]["bias"],
    "resnet/head/conv2d/bias": params["head"]["bias"],
  }
  for key, value in pairs.items():
    np.testing.assert_array_equal(value, tensors[key], err_msg=key)
  kernel = tensors["resnet/head/conv2d/kernel"]
  np.testing.assert_array_equal(params["head"]["kernel"], kernel[0, 0])
  other = weights.load_pretrained(path, model.clone(num_classes=3))
  assert other.not_loaded == ("head/kernel", "head/bias")


# ------------------------------------------------------------------ true size


def _full(name: str):
  """The peer's names and shapes at true size; nothing is computed, nothing stored."""
  peers = _peers()
  sizes = {
    "resnet18": ((2, 2, 2, 2), (64, 128, 256, 512), False),
    "resnet34": ((3, 4, 6, 3), (64, 128, 256, 512), False),
    "resnet50": ((3, 4, 6, 3), (256, 512, 1024, 2048), True),
    "resnet101": ((3, 4, 23, 3), (256, 512, 1024, 2048), True),
  }
  name, _, library = name.partition(" ")
  with peers.torch.device("meta"):
    if library == "transformers":
      fields = {"num_classes": 1000, "stem": 64, "draw": False}
      return peers.transformers_resnet(*sizes[name], **fields).net.state_dict()
    if name == "resnet26":
      return peers.PlainResNet((4, 4, 4), False, 16, True, 1000).state_dict()
    if name in sizes:
      depths, _, bottleneck = sizes[name]
      return peers.PlainResNet(depths, bottleneck, 64, False, 1000).state_dict()
    if name == "clip_resnet50":
      tower = peers.ModifiedResNet((3, 4, 6, 3), 64, 32, 1024, 224)
      return {f"visual.{k}": v for k, v in tower.state_dict().items()}
    return peers.BitNet((3, 4, 6, 3), 64, 1000).state_dict()


_FULL = (
  *("resnet18 transformers", "resnet34 transformers", "resnet50 transformers"),
  *("resnet101 transformers", "resnet18", "resnet26", "resnet50", "clip_resnet50", "bit_resnet50"),
)


@pytest.mark.parametrize("name", _FULL)
def test_names_and_shapes_at_true_size(name):
  model = models.create(name.partition(" ")[0], 1000)
  state = {k: np.broadcast_to(np.float32(1), v.shape) for k, v in _full(name).items()}
  if name == "bit_resnet50":
    state = _peers().bit_names(state)
  images = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  match = matching.recognise(state, model, matching.paths(shapes), name)
  counters = {key for key in state if key.endswith("num_batches_tracked")}
  assert match.wanted == set(state) - counters
  if counters:
    assert counters == match.dropped[0].keys
  found = {
    path: source.convert(*(state[key] for key in source.keys)).shape
    for path, source in match.sources.items()
  }
  expected = {k: v.shape for k, v in traverse_util.flatten_dict(shapes, sep="/").items()}
  if name == "clip_resnet50":
    expected = {k: v for k, v in expected.items() if not k.startswith("params/head")}
  assert found == expected


@pytest.mark.parametrize(("name", "count"), [("resnet18", 122), ("resnet50", 320)])
def test_the_peer_has_as_many_tensors_as_torchvisions(name, count):
  assert len(_full(name)) == count
