"""`config.json` beside the weights: transformers' own networks decide what changes the function."""

import copy
import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from subtune_jax import models, weights

torch = pytest.importorskip("torch", reason="the peers are torch models")
transformers = pytest.importorskip("transformers", reason="the peers are its models")

torch.set_num_threads(1)
_SIZE, _CLASSES = 16, 5
_BODY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": _SIZE,
         "patch_size": 8}  # fmt: skip
_VIT = {**_BODY, "intermediate_size": 48}
_TEXT = {"hidden_size": 8, "num_hidden_layers": 12, "num_attention_heads": 2, "vocab_size": 30,
         "intermediate_size": 16, "max_position_embeddings": 7, "bos_token_id": 1,
         "eos_token_id": 2, "pad_token_id": 0, "projection_dim": 6}  # fmt: skip
_OURS = {"width": 24, "depth": 2, "heads": 3, "patch_size": 8, "image_size": _SIZE}
_STAGES = {"depths": [1, 2], "num_labels": _CLASSES}


@dataclasses.dataclass(frozen=True)
class _Peer:
  """A class of transformers, fields of its configuration, and the same network of ours."""

  architecture: str
  fields: dict
  name: str
  options: dict
  stop: str | None = None


_VISION = {**_VIT, "projection_dim": 6}
_PEERS = {
  "vit": _Peer(
    "ViTForImageClassification",
    {**_VIT, "layer_norm_eps": 1e-6, "num_labels": _CLASSES},
    "vit_b16",
    {**_OURS, "mlp_width": 48},
  ),
  "dinov2": _Peer(
    "Dinov2ForImageClassification",
    {**_BODY, "mlp_ratio": 2, "num_labels": _CLASSES},
    "dinov2_vit_s14",
    {**_OURS, "mlp_width": 48},
  ),
  "dinov2_with_registers": _Peer(
    "Dinov2WithRegistersForImageClassification",
    {**_BODY, "mlp_ratio": 2, "num_register_tokens": 2, "num_labels": _CLASSES},
    "dinov2_reg_vit_s14",
    {**_OURS, "mlp_width": 48, "registers": 2},
  ),
  "clip_vision_model": _Peer(
    "CLIPVisionModelWithProjection",
    _VISION,
    "clip_vit_b16",
    {**_OURS, "mlp_width": 48, "projection": 6},
    "head",
  ),
  "clip": _Peer(
    "CLIPModel",
    {"vision_config": _VISION, "text_config": _TEXT, "projection_dim": 6},
    "clip_vit_b16",
    {**_OURS, "mlp_width": 48, "projection": 6},
    "head",
  ),
  "siglip_vision_model": _Peer(
    "SiglipVisionModel", _VIT, "siglip_vit_b16", {**_OURS, "mlp_width": 48}, "head"
  ),
  "resnet": _Peer(
    "ResNetForImageClassification",
    {**_STAGES, "hidden_sizes": [32, 64], "embedding_size": 8, "layer_type": "bottleneck"},
    "resnet50",
    {"stage_sizes": (1, 2), "width": 8, "image_size": _SIZE},
  ),
  "basic": _Peer(
    "ResNetForImageClassification",
    {**_STAGES, "hidden_sizes": [8, 16], "embedding_size": 8, "layer_type": "basic"},
    "resnet18",
    {"stage_sizes": (1, 2), "width": 8, "image_size": _SIZE},
  ),
  "convnext": _Peer(
    "ConvNextForImageClassification",
    {**_STAGES, "num_stages": 2, "hidden_sizes": [8, 16], "image_size": _SIZE},
    "convnext_tiny",
    {"depths": (1, 2), "widths": (8, 16), "image_size": _SIZE, "top_epsilon": 1e-12},
  ),
}
_GONE = object()  # the field is taken out of the file
_ATTENTION = [
  ("num_attention_heads", 12), ("num_attention_heads", 6), ("num_attention_heads", 1),
  ("num_attention_heads", _GONE), ("num_attention_heads", "3"), ("num_attention_heads", 3.0),
  ("layer_norm_eps", 1e-2), ("layer_norm_eps", 1e-3), ("layer_norm_eps", "tiny"),
  ("hidden_act", "relu"), ("hidden_act", "gelu_new"), ("hidden_act", "quick_gelu"),
  ("hidden_act", "silu"), ("hidden_act", None), ("hidden_act", "no such"),
  ("hidden_size", 48), ("num_hidden_layers", 3), ("num_hidden_layers", 1),
  ("image_size", 32), ("patch_size", 4), ("num_channels", 1),
]  # fmt: skip
_MUTATIONS = {
  "vit": [
    *_ATTENTION, ("intermediate_size", 96), ("qkv_bias", False), ("layer_norm_eps", _GONE),
    ("hidden_act", "gelu_python"), ("hidden_dropout_prob", 0.5), ("initializer_range", 1.0),
    ("transformers_version", "1.0"), ("dtype", "float16"), ("encoder_stride", 4),
    ("model_type", "dinov2"), ("model_type", "swin"), ("model_type", 3), ("model_type", _GONE),
    ("architectures", ["DeiTForImageClassification"]), ("architectures", None),
    ("id2label", {"0": "a", "1": "b"}),
  ],
  "dinov2": [
    *_ATTENTION, ("mlp_ratio", 4), ("qkv_bias", False), ("use_swiglu_ffn", True),
    ("layerscale_value", 0.5), ("drop_path_rate", 0.3), ("apply_layernorm", False),
  ],
  "dinov2_with_registers": [("num_register_tokens", 4), ("num_attention_heads", 12),
                            ("num_register_tokens", _GONE), ("layer_norm_eps", 1e-2)],
  "clip_vision_model": [*_ATTENTION, ("projection_dim", 12), ("attention_dropout", 0.5)],
  "clip": [
    ("vision_config", _GONE), ("vision_config", 3), ("projection_dim", 12),
    *((f"vision_config.{name}", value) for name, value in _ATTENTION[:8]),
  ],
  "siglip_vision_model": [("num_attention_heads", 12), ("hidden_act", "gelu"),
                          ("layer_norm_eps", 1e-2), ("vision_use_head", False)],
  "resnet": [
    ("downsample_in_bottleneck", True), ("downsample_in_first_stage", True),
    ("hidden_act", "gelu"), ("layer_type", "basic"), ("depths", [1, 1]), ("depths", [2, 1]),
    ("hidden_sizes", [32, 128]), ("embedding_size", 16), ("num_channels", 1),
    ("hidden_sizes", _GONE), ("layer_type", _GONE), ("problem_type", "regression"),
  ],
  "basic": [("downsample_in_bottleneck", True), ("downsample_in_first_stage", True),
            ("hidden_act", "leaky_relu"), ("layer_type", "bottleneck")],
  "convnext": [
    ("layer_norm_eps", 1e-2), ("layer_norm_eps", _GONE), ("hidden_act", "relu"),
    ("hidden_act", "gelu_new"), ("depths", [2, 1]), ("layer_scale_init_value", 0),
    ("layer_scale_init_value", 0.1), ("num_stages", 1), ("patch_size", 2), ("image_size", 64),
    ("drop_path_rate", 0.3), ("hidden_sizes", [16, 16]),
  ],
}  # fmt: skip


def _mutated(config, field, value):
  config = copy.deepcopy(config)
  inner = config
  *outer, field = field.split(".")
  for name in outer:
    inner = inner[name]
  inner[field] = value
  if value is _GONE:
    del inner[field]
  return config


def _network(config):
  """The torch network that a `config.json` describes."""
  named = config.get("architectures") or [_PEERS[config["model_type"]].architecture]
  family = getattr(transformers, named[0])
  kind = config.get("model_type", family.config_class.model_type)
  net = family(transformers.CONFIG_MAPPING[kind].from_dict(copy.deepcopy(config)))
  return net.eval()


def _images():
  return np.random.default_rng(0).normal(size=(2, _SIZE, _SIZE, 3)).astype(np.float32)


def _run(net):
  pixels = torch.from_numpy(_images().transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    if isinstance(net, transformers.CLIPModel):
      return net.visual_projection(net.vision_model(pixel_values=pixels).pooler_output).numpy()
    out = net(pixel_values=pixels)
    names = ("logits", "image_embeds", "pooler_output")
    return next(out[name] for name in names if name in out).numpy()


@functools.cache
def _net(name):
  """The peer, with values that are neither 0 nor 1."""
  peer = _PEERS[name]
  family = getattr(transformers, peer.architecture)
  torch.manual_seed(0)
  net = family(family.config_class(**copy.deepcopy(peer.fields))).eval()
  with torch.no_grad():
    for p in net.parameters():
      p.copy_(torch.randn(p.shape) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3))
      if p.ndim == 1:
        p.add_(0.7)
    for key, buffer in net.named_buffers():
      if key.endswith("running_var"):
        buffer.uniform_(0.5, 1.5)
  return net


def _folder(name, path):
  _net(name).save_pretrained(path)
  return path / "model.safetensors", json.loads((path / "config.json").read_text())


def _load(path, name, **options):
  peer = _PEERS[name]
  model = models.create(peer.name, _CLASSES, **{**peer.options, **options})
  return model, weights.load_pretrained(path, model, preprocessing="imagenet")


def _ours(model, loaded, name):
  variables, stop = loaded.variables, _PEERS[name].stop
  return np.asarray(jax.jit(lambda v, x: model.apply(v, x, stop=stop))(variables, _images()))


def _far(found, expected):
  return found.shape != expected.shape or (
    np.abs(found - expected).max() > 1e-4 * np.abs(expected).max()
  )


def _torchs_answer(name, config):
  """The mutated network's result with the same weights; None where torch cannot have one."""
  try:
    net = _network(config)
    net.load_state_dict(_net(name).state_dict(), strict=True)
    return _run(net)
  except Exception:  # whatever torch or transformers says, there is no network
    return None


def _refusal(path, name):
  try:
    _load(path, name)
  except weights.WeightsError as e:
    return str(e)
  return None


_SLOW = ("dinov2", "dinov2_with_registers", "clip_vision_model", "siglip_vision_model")


@pytest.mark.parametrize(
  "name",
  [pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in _MUTATIONS],
)
def test_every_config_that_changes_torchs_result_is_refused(name, tmp_path):
  path, config = _folder(name, tmp_path)
  expected = _run(_net(name))
  model, loaded = _load(path, name)
  assert not loaded.not_checked
  ours = _ours(model, loaded, name)
  assert not _far(ours, expected)
  seen = {"refused": 0, "loaded": 0}
  for field, value in _MUTATIONS[name]:
    changed = _mutated(config, field, value)
    (tmp_path / "config.json").write_text(json.dumps(changed))
    theirs = _torchs_answer(name, changed)
    message = _refusal(path, name)
    refused = message is not None
    whole = field == "vision_config" and value is _GONE
    assert not refused or whole or field.rpartition(".")[2] in message, (field, value, message)
    seen["refused" if refused else "loaded"] += 1
    if theirs is None or _far(theirs, expected):
      assert refused, (field, value)
    elif np.array_equal(theirs, expected):
      assert not refused or field in ("architectures", "model_type"), (field, value, message)
  assert seen["refused"]


def test_there_are_a_hundred_mutations():
  assert sum(map(len, _MUTATIONS.values())) >= 100


@pytest.mark.parametrize(
  ("name", "field", "value", "option"),
  [
    ("vit", "num_attention_heads", 12, {"heads": 12}),
    ("vit", "layer_norm_eps", _GONE, {"norm_epsilon": 1e-12}),
    ("dinov2", "hidden_act", "gelu_new", {"activation": "gelu_tanh"}),
    ("clip", "vision_config.layer_norm_eps", 1e-2, {"norm_epsilon": 1e-2}),
    ("convnext", "layer_norm_eps", 1e-2, {"top_epsilon": 1e-2}),
  ],
)
def test_the_model_of_the_config_loads_and_equals_torch(name, field, value, option, tmp_path):
  path, config = _folder(name, tmp_path)
  changed = _mutated(config, field, value)
  (tmp_path / "config.json").write_text(json.dumps(changed))
  theirs = _torchs_answer(name, changed)
  with pytest.raises(weights.WeightsError, match=field.rpartition(".")[2]):
    _load(path, name)
  model, loaded = _load(path, name, **option)
  assert not _far(_ours(model, loaded, name), theirs)


def test_all_differences_are_one_error_with_both_sides(tmp_path):
  path, config = _folder("vit", tmp_path)
  config |= {"num_attention_heads": 12, "layer_norm_eps": 0.25, "hidden_act": "quick_gelu"}
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(weights.WeightsError) as e:
    _load(path, "vit")
  for row in (
    "num_attention_heads: 12 in the file, 3 in the model",
    "layer_norm_eps: 0.25 in the file, 1e-06 in the model",
    "hidden_act: 'quick_gelu' in the file, 'gelu' in the model",
  ):
    assert row in str(e.value)


def test_a_classifier_that_reads_other_features_is_refused(tmp_path):
  path, _ = _folder("vit", tmp_path)
  with pytest.raises(weights.WeightsError, match=r"pool: 'token'.*'mean' in the model"):
    _load(path, "vit", pool="mean")
  model = models.create("vit_b16", 2, **{**_PEERS["vit"].options, "pool": "mean"})
  weights.load_pretrained(path, model, preprocessing="imagenet")  # a head of its own may
  config = transformers.CLIPConfig(vision_config=_VISION, text_config=_TEXT, num_labels=_CLASSES)
  transformers.CLIPForImageClassification(config).save_pretrained(tmp_path)
  with pytest.raises(weights.WeightsError, match="classifier"):
    _load(path, "clip", projection=None)


def test_what_no_file_states_is_told(tmp_path):
  path, config = _folder("vit", tmp_path)
  (tmp_path / "config.json").write_text(json.dumps(config | {"a_new_thing": 3}))
  assert "a_new_thing: 3" in _load(path, "vit")[1].not_checked[0]
  del config["model_type"], config["layer_norm_eps"]
  (tmp_path / "config.json").write_text(json.dumps(config))
  told = "; ".join(_load(path, "vit")[1].not_checked)
  assert "no model_type" in told
  assert "layer_norm_eps: the file does not state it; 1e-06" in told
  (tmp_path / "config.json").write_text('{"seed": 1}')
  assert "not transformers' or timm's" in _load(path, "vit")[1].not_checked[0]
  (tmp_path / "config.json").unlink()
  (told,) = _load(path, "vit")[1].not_checked
  assert "heads=3, activation='gelu', norm_epsilon=1e-06" in told


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("", "Expecting value"), ("{", "Expecting property"), ("[1]", "holds a list"),
    ("null", "holds a NoneType"), ('{"a": NaN}', "NaN"), ("[" * 100_000, "recursion"),
    ('{"hidden_act": 1, "hidden_act": 2}', "twice"), (b"\xff\xfe\xfa", "decode"),
    (b"{" + b" " * 2**24 + b"}", "more than"),
  ],
  ids=range(9),
)  # fmt: skip
def test_a_broken_config_is_one_clear_error(text, reason, tmp_path):
  path, _ = _folder("basic", tmp_path)
  content = text if isinstance(text, bytes) else text.encode()
  (tmp_path / "config.json").write_bytes(content)
  with pytest.raises(weights.WeightsError, match=rf"config\.json .*{reason}"):
    _load(path, "basic")


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32"])
def test_tensors_of_integers_are_refused_but_counters(kind, tmp_path):
  path, _ = _folder("basic", tmp_path)
  tensors = safetensors_numpy.load_file(path)
  assert any(tensor.dtype == np.int64 for tensor in tensors.values())  # num_batches_tracked
  key = "classifier.1.weight"
  tensors[key] = (100 * tensors[key]).astype(kind)
  safetensors_numpy.save_file(tensors, path)
  with pytest.raises(weights.WeightsError, match=rf"{key} is {kind} in the file: quantised"):
    _load(path, "basic")


def _timm(**fields):
  return {"architecture": "vit_base_patch16_224", "num_features": 24, **fields}


_ARGUMENTS = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8}


@pytest.mark.parametrize(
  ("config", "reason"),
  [
    (_timm(), "heads: 12 .* 3 here"),
    (_timm(model_args={**_ARGUMENTS, "num_heads": 12}), "heads: 12 .* 3 here"),
    (_timm(model_args=_ARGUMENTS, num_features=48), "num_features: 48 in the file, 24"),
    (_timm(model_args=_ARGUMENTS, global_pool="avg"), "global_pool: 'avg' in the file, 'token'"),
    (_timm(model_args=[1]), "model_args"),
    ({"architecture": "vit_base_patch16_clip_quickgelu_224"}, "activation: 'quick_gelu'"),
    ({"architecture": "resnet50"}, "architecture: 'resnet50' in the file, a ViT"),
    ({"architecture": "resnetaa50"}, "architecture"),
    ({"architecture": 3}, "architecture: 3"),
  ],
)
def test_timms_config_is_compared_too(config, reason, tmp_path):
  path, _ = _folder("vit", tmp_path)
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(weights.WeightsError, match=reason):
    _load(path, "vit")
  same = _timm(model_args={**_ARGUMENTS, "new": 1}, global_pool="token")
  (tmp_path / "config.json").write_text(json.dumps(same))
  assert _load(path, "vit")[1].not_checked == ("model_args.new: 1 is a field that is not known",)
