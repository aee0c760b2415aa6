"""Vision transformers' weights in the names of timm, torchvision, OpenAI and google-research."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import models, weights
from subtune_jax.weights import errors
from subtune_jax.weights.naming import positions

torch = pytest.importorskip("torch", reason="weights are made and checked with torch")
from tests.weights import torch_vits  # noqa: E402 - it imports torch

_SMALL = {"width": 32, "depth": 2, "heads": 4, "patch_size": 8, "image_size": 32}


def _images(size=32, n=4):
  return np.random.default_rng(0).normal(size=(n, size, size, 3)).astype(np.float32)


def _create(name="vit_b16", classes=5, **options):
  return models.create(name, classes, **{**_SMALL, **options})


def _load(state, model, path, legacy=False):
  torch.save(state, path, _use_new_zipfile_serialization=not legacy)
  return weights.load_pretrained(path, model, preprocessing="imagenet")


def _logits(model, variables, images, **kwargs):
  return np.asarray(jax.jit(lambda v, x: model.apply(v, x, **kwargs))(variables, images))


def _peer_logits(peer, images):
  with torch.no_grad():
    return peer(torch.tensor(images).permute(0, 3, 1, 2)).numpy()


def _distance(a, b):
  return np.abs(a - b).max() / np.abs(b).max()


def _assert_same(peer, state, model, path, stop=None, legacy=False):
  loaded = _load(state, model, path, legacy)
  got = _logits(model, loaded.variables, _images(), stop=stop)
  assert _distance(got, _peer_logits(peer, _images())) < 1e-4
  return loaded


def test_torchvision(tmp_path):
  peer = torch_vits.redraw(torch_vits.Torchvision())
  loaded = _assert_same(peer, peer.state_dict(), _create(), tmp_path / "w.pth")
  assert loaded.not_loaded == ()
  old = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}
  state = {
    re.sub(r"mlp\.[03]\.", lambda m: old[m[0]], key): value
    for key, value in peer.state_dict().items()
  }
  assert state.keys() != peer.state_dict().keys()
  _assert_same(peer, state, _create(), tmp_path / "old.pth", legacy=True)


@pytest.mark.parametrize(
  ("fields", "options"),
  [
    ({}, {}),
    ({"bias": False}, {"qkv_bias": False}),
    ({"pool": "mean"}, {"pool": "mean"}),
    ({"scale": True, "pool": "token_mean"}, {"layer_scale": True, "pool": "token_mean"}),
    ({"registers": 3, "pool": "mean"}, {"registers": 3, "pool": "mean"}),
    ({"registers": 3, "register_name": "register_tokens"}, {"registers": 3}),
    ({"class_position": False}, {}),
  ],
)
def test_timm(tmp_path, fields, options):
  peer = torch_vits.redraw(torch_vits.Timm(**fields))
  state = {**peer.state_dict(), "mask_token": torch.zeros(1, 32)}
  loaded = _assert_same(peer, state, _create(**options), tmp_path / "w.pth")
  assert loaded.not_loaded == ()


def _dino_head():
  names = [f"mlp.{i}.{field}" for i in (0, 2, 4) for field in ("weight", "bias")]
  names += ["last_layer.weight_g", "last_layer.weight_v"]
  return {f"head.{name}": torch.ones(2) for name in names}


def test_dino_checkpoint(tmp_path):
  peer = torch_vits.redraw(torch_vits.Timm())
  body = {k: v for k, v in peer.state_dict().items() if not k.startswith("head.")}
  teacher = {**{f"backbone.{k}": v for k, v in body.items()}, **_dino_head()}
  student = {f"module.{k}": v * 0 for k, v in teacher.items()}
  model = _create()
  loaded = _load({"student": student, "teacher": teacher, "epoch": 1}, model, tmp_path / "w.pth")
  assert loaded.not_loaded == ("head/kernel", "head/bias")
  peer.head = torch.nn.Identity()
  got = _logits(model, loaded.variables, _images(), stop="head")
  assert _distance(got, _peer_logits(peer, _images())) < 1e-4
  del teacher["head.mlp.2.bias"]
  with pytest.raises(errors.WeightsError, match=r"head\.mlp\.2\.bias"):
    _load({"teacher": teacher}, model, tmp_path / "w.pth")


def _moco_state():
  base = torch_vits.redraw(torch_vits.Timm())
  momentum = torch_vits.redraw(torch_vits.Timm(), seed=1)
  for model in (base, momentum):
    model.head = torch_vits.moco_mlp(3, 32, 16, 8)
  module = torch.nn.Module()
  module.base_encoder, module.momentum_encoder = base, momentum
  module.predictor = torch_vits.moco_mlp(2, 8, 16, 8)
  base_only = torch_vits.redraw(torch_vits.Timm())
  base_only.head = torch.nn.Identity()
  return base_only, {f"module.{k}": v for k, v in module.state_dict().items()}


def test_moco(tmp_path):
  peer, state = _moco_state()
  model = _create("vit_s16")
  loaded = _load({"state_dict": state, "epoch": 3}, model, tmp_path / "w.pth")
  got = _logits(model, loaded.variables, _images(), stop="head")
  assert _distance(got, _peer_logits(peer, _images())) < 1e-4
  del state["module.momentum_encoder.blocks.1.norm1.weight"]
  with pytest.raises(errors.WeightsError, match=r"missing.*momentum_encoder\.blocks\.1\.norm1"):
    _load({"state_dict": state}, model, tmp_path / "w.pth")


def _clip(**options):
  return _create("clip_vit_b16", **{"projection": 6, **options})


@pytest.mark.parametrize("visual_only", [False, True])
def test_openai_clip(tmp_path, visual_only):
  peer = torch_vits.redraw(torch_vits.Clip())
  sizes = dict.fromkeys(("input_resolution", "context_length", "vocab_size"), torch.tensor(7))
  state = peer.visual.state_dict() if visual_only else {**peer.state_dict(), **sizes}
  loaded = _assert_same(peer, state, _clip(), tmp_path / "w.pth", stop="head")
  assert loaded.not_loaded == ("head/kernel", "head/bias")


def test_clip_projection_must_fit(tmp_path):
  state = torch_vits.redraw(torch_vits.Clip()).state_dict()
  with pytest.raises(errors.WeightsError, match=r"unexpected in the file: visual\.proj"):
    _load(state, _clip(projection=None), tmp_path / "w.pth")
  with pytest.raises(errors.WeightsError, match=r"projection/kernel is \(32, 7\).*\(32, 6\)"):
    _load(state, _clip(projection=7), tmp_path / "w.pth")
  del state["visual.proj"]
  with pytest.raises(errors.WeightsError, match=r"missing from the file: visual\.proj"):
    _load(state, _clip(), tmp_path / "w.pth")


def test_incomplete_text_tower(tmp_path):
  state = torch_vits.redraw(torch_vits.Clip()).state_dict()
  del state["transformer.resblocks.7.ln_2.bias"]
  with pytest.raises(errors.WeightsError, match=r"transformer\.resblocks\.7\.ln_2\.bias"):
    _load(state, _clip(), tmp_path / "w.pth")


def _google(state, depth=2, heads=4):
  """timm's tensors in google-research's names and shapes."""
  state = {key: value.numpy() for key, value in state.items()}
  width = state["cls_token"].shape[-1]
  size = width // heads
  out = {
    "cls": state["cls_token"],
    "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
    "embedding/bias": state["patch_embed.proj.bias"],
    "Transformer/posembed_input/pos_embedding": state["pos_embed"],
    "Transformer/encoder_norm/scale": state["norm.weight"],
    "Transformer/encoder_norm/bias": state["norm.bias"],
    "head/kernel": state["head.weight"].T,
    "head/bias": state["head.bias"],
  }
  for i in range(depth):
    block, to = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
    for ours, theirs in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
      out[f"{to}{ours}/scale"] = state[f"{block}{theirs}.weight"]
      out[f"{to}{ours}/bias"] = state[f"{block}{theirs}.bias"]
    for ours, theirs in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
      out[f"{to}MlpBlock_3/{ours}/kernel"] = state[f"{block}mlp.{theirs}.weight"].T
      out[f"{to}MlpBlock_3/{ours}/bias"] = state[f"{block}mlp.{theirs}.bias"]
    attention = f"{to}MultiHeadDotProductAttention_1/"
    kernels = np.split(state[f"{block}attn.qkv.weight"], 3)
    biases = np.split(state[f"{block}attn.qkv.bias"], 3)
    for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
      out[f"{attention}{name}/kernel"] = kernel.T.reshape(width, heads, size)
      out[f"{attention}{name}/bias"] = bias.reshape(heads, size)
    kernel = state[f"{block}attn.proj.weight"].T
    out[f"{attention}out/kernel"] = kernel.reshape(heads, size, width)
    out[f"{attention}out/bias"] = state[f"{block}attn.proj.bias"]
  return out


def test_google(tmp_path):
  peer = torch_vits.redraw(torch_vits.Timm())
  np.savez(tmp_path / "w.npz", **_google(peer.state_dict()))
  model = _create()
  loaded = weights.load_pretrained(tmp_path / "w.npz", model)
  assert loaded.not_loaded == ()
  assert loaded.preprocessing.mean == (127.5,)
  got = _logits(model, loaded.variables, _images())
  assert _distance(got, _peer_logits(peer, _images())) < 1e-4
  with pytest.raises(errors.WeightsError, match=r"qkv/kernel.*\(3, 32, 4, 8\)"):
    weights.load_pretrained(tmp_path / "w.npz", _create(heads=8))


@pytest.mark.parametrize("classes", [5, 3])
def test_google_with_pre_logits_loads_no_head(tmp_path, classes):
  peer = torch_vits.redraw(torch_vits.Timm())
  arrays = _google(peer.state_dict())
  hidden = {"pre_logits/kernel": np.ones((32, 32), "f"), "pre_logits/bias": np.ones(32, "f")}
  np.savez(tmp_path / "w.npz", **arrays, **hidden)
  loaded = weights.load_pretrained(tmp_path / "w.npz", _create(classes=classes))
  assert loaded.not_loaded == ("head/kernel", "head/bias")
  assert np.array_equal(loaded.variables["params"]["head"]["bias"], np.zeros(classes))
  del hidden["pre_logits/bias"]
  np.savez(tmp_path / "w.npz", **arrays, **hidden)
  with pytest.raises(errors.WeightsError, match="pre_logits/bias"):
    weights.load_pretrained(tmp_path / "w.npz", _create(classes=classes))


def test_wrong_number_of_blocks(tmp_path):
  state = torch_vits.redraw(torch_vits.Timm()).state_dict()
  with pytest.raises(errors.WeightsError, match=r"unexpected in the file: blocks\.1"):
    _load(state, _create(depth=1), tmp_path / "w.pth")
  with pytest.raises(errors.WeightsError, match=r"missing from the file: blocks\.2"):
    _load(state, _create(depth=3), tmp_path / "w.pth")


@pytest.mark.parametrize(("size", "side"), [(37, 16), (14, 24), (7, 14), (14, 7), (5, 3), (1, 4)])
@pytest.mark.parametrize("antialias", [False, True])
def test_resize_is_torchs(size, side, antialias):
  values = np.random.default_rng(0).normal(size=(size, size, 6)).astype(np.float32)
  expected = torch.nn.functional.interpolate(
    torch.tensor(values).permute(2, 0, 1)[None],
    size=(side, side),
    mode="bicubic",
    align_corners=False,
    antialias=antialias,
  )
  got = positions.resize(values, side, antialias)
  assert got.dtype == np.float32
  assert _distance(got, expected[0].permute(1, 2, 0).numpy()) < 1e-5


def test_positions_of_the_class_token():
  tensor = np.random.default_rng(0).normal(size=(1, 17, 6)).astype(np.float32)
  assert np.array_equal(positions.fit(tensor, 4, class_token=True), tensor)
  larger = positions.fit(tensor[0], 6, class_token=True)
  assert larger.shape == (1, 37, 6)
  assert np.array_equal(larger[:, 0], tensor[:, 0])
  patches = positions.fit(tensor[:, 1:], 4, class_token=True)
  assert np.array_equal(patches[:, 1:], tensor[:, 1:])
  assert not patches[:, 0].any()
  assert np.array_equal(positions.fit(tensor[:, 1:], 4, class_token=False), tensor[:, 1:])
  for class_token in (False, True):
    with pytest.raises(errors.WeightsError, match=r"15 positions.*square"):
      positions.fit(tensor[:, :15], 4, class_token)


def test_bfloat16_is_near(tmp_path):
  peer = torch_vits.redraw(torch_vits.Timm())
  variables = _load(peer.state_dict(), _create(), tmp_path / "w.pth").variables
  model = _create(dtype=jnp.bfloat16)
  logits = _logits(model, variables, _images())
  assert logits.dtype == np.float32
  assert 1e-5 < _distance(logits, _peer_logits(peer, _images())) < 0.05
