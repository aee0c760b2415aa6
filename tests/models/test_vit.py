"""Vision transformers against Hugging Face transformers: outputs, gradients, names, shapes."""

from collections.abc import Callable
import dataclasses

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import models, weights
from subtune_jax.weights import matching
from tests import marks

torch = pytest.importorskip("torch", reason="the peers are torch models")
transformers = pytest.importorskip("transformers", reason="the peers are its models")
from tests.weights import torch_vits  # noqa: E402 - it imports torch

_PATCH, _SIZE, _CLASSES = 8, 32, 5
_CONFIG = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION = {**_CONFIG, "intermediate_size": 128, "image_size": _SIZE, "patch_size": _PATCH}
_TEXT = {"hidden_size": 8, "num_hidden_layers": 12, "num_attention_heads": 2,
         "intermediate_size": 16, "vocab_size": 30, "max_position_embeddings": 7,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "projection_size": 8}  # fmt: skip
_SMALL = {"width": 32, "depth": 2, "heads": 4, "patch_size": _PATCH}


@dataclasses.dataclass(frozen=True)
class _Peer:
  """A torch model and ours of the same architecture.

  Attributes:
    name: of ours.
    build: makes the torch model.
    units: its modules whose outputs are those of our units.
    last: of the torch model's result, what `stop` gives.
    stop: where ours stops to give the same; None runs the head.
    options: of ours.
  """

  name: str
  build: Callable
  units: Callable
  last: str = "logits"
  stop: str | None = None
  options: dict = dataclasses.field(default_factory=dict)


def _blocks(layers):
  return {f"encoderblock_{i}": layer for i, layer in enumerate(layers)}


def _vit():
  config = transformers.ViTConfig(**_VISION, layer_norm_eps=1e-6, num_labels=_CLASSES)
  return transformers.ViTForImageClassification(config)


def _vit_units(m):
  return {"embedding": m.vit.embeddings, **_blocks(m.vit.layers), "encoder_norm": m.vit.layernorm}


def _dinov2(registers):
  fields = {**_CONFIG, "image_size": _SIZE, "patch_size": _PATCH, "num_labels": _CLASSES}
  if not registers:
    config = transformers.Dinov2Config(**fields)
    return transformers.Dinov2ForImageClassification(config)
  config = transformers.Dinov2WithRegistersConfig(**fields, num_register_tokens=registers)
  return transformers.Dinov2WithRegistersForImageClassification(config)


def _dinov2_units(m):
  body = m.dinov2 if hasattr(m, "dinov2") else m.dinov2_with_registers
  return {"embedding": body.embeddings, **_blocks(body.encoder.layer)}


def _clip_vision():
  config = transformers.CLIPVisionConfig(**_VISION, projection_dim=6)
  return transformers.CLIPVisionModelWithProjection(config)


def _clip_body():
  return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_VISION))


def _clip_units(m):
  body = getattr(m, "vision_model", m)
  norms = {"embedding": body.pre_layrnorm, "encoder_norm": body.post_layernorm}
  return {**norms, **_blocks(body.encoder.layers)}


def _siglip_vision():
  return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_VISION))


def _siglip_units(m):
  body = getattr(m, "vision_model", m)
  blocks = {"embedding": body.embeddings, **_blocks(body.encoder.layers)}
  return {**blocks, "encoder_norm": body.post_layernorm, "map_pool": body.head}


def _siglip_classifier():
  both = {"vision_config": _VISION, "text_config": _TEXT}
  config = transformers.SiglipConfig(**both, num_labels=_CLASSES)
  return transformers.SiglipForImageClassification(config)


def _siglip_mean_units(m):
  body = m.vision_model
  return {"embedding": body.embeddings, **_blocks(body.encoder.layers)}


_PEERS = {
  "vit": _Peer("vit_b16", _vit, _vit_units),
  "dinov2": _Peer("dinov2_vit_s14", lambda: _dinov2(0), _dinov2_units),
  "dinov2_reg": _Peer("dinov2_reg_vit_s14", lambda: _dinov2(4), _dinov2_units),
  "clip": _Peer(
    "clip_vit_b16", _clip_vision, _clip_units, "image_embeds", "head", {"projection": 6}
  ),
  "clip_body": _Peer(
    "clip_vit_b16", _clip_body, _clip_units, "pooler_output", "head", {"projection": None}
  ),
  "siglip": _Peer("siglip_vit_b16", _siglip_vision, _siglip_units, "pooler_output", "head"),
  "siglip_mean": _Peer(
    "siglip_vit_b16", _siglip_classifier, _siglip_mean_units, options={"pool": "mean"}
  ),
}


def _create(peer, size=_SIZE, **options):
  fields = {**_SMALL, "image_size": size, **peer.options, **options}
  return models.create(peer.name, _CLASSES, **fields)


def _images(size=_SIZE, n=4):
  return np.random.default_rng(size).normal(size=(n, size, size, 3)).astype(np.float32)


def _save(model, folder, how):
  if how == "save_pretrained":
    model.save_pretrained(folder)
    return folder / "model.safetensors"
  torch.save(model.state_dict(), folder / "w", _use_new_zipfile_serialization=how == "zip")
  return folder / "w"


def _run_torch(module, peer, images, size):
  """Returns the result and the outputs of the units, as torch tensors with gradients."""
  found, handles = {}, []
  for unit, part in peer.units(module).items():

    def hook(_, args, output, unit=unit):
      found[unit] = output[0] if isinstance(output, tuple) else output

    handles.append(part.register_forward_hook(hook))
  options = {} if size == _SIZE or "dinov2" in peer.name else {"interpolate_pos_encoding": True}
  x = torch.tensor(images).permute(0, 3, 1, 2)
  result = module(pixel_values=x, **options)
  for handle in handles:
    handle.remove()
  return result[peer.last], found


def _distance(a, b):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  assert a.shape == b.shape
  return np.abs(a - b).max() / np.abs(b).max()


def _outputs(model, variables, images):
  """Returns every unit's output, run one by one, and the whole model's, in one jit."""
  names = (*model.block_names, "head")
  assert set(variables) == {"params"}
  assert set(variables["params"]) == set(names)

  @jax.jit
  def run(variables, x):
    whole, found = model.apply(variables, x), {}
    for unit, after in zip(names, (*names[1:], None), strict=True):
      x = found[unit] = model.apply(variables, x, start=unit, stop=after)
    return found, whole

  return run(variables, images)


@pytest.mark.parametrize(
  ("size", "how"), marks.first(1, [(48, "save_pretrained"), (_SIZE, "zip")], several=True)
)
@pytest.mark.parametrize("key", _PEERS)
def test_every_block_is_the_peers(key, size, how, tmp_path):
  peer = _PEERS[key]
  module = torch_vits.redraw(peer.build())
  model = _create(peer, size)
  path = _save(module, tmp_path, how)
  loaded = weights.load_pretrained(path, model, preprocessing="imagenet")
  assert bool(loaded.not_loaded) == (peer.stop == "head")
  images = _images(size)
  with torch.no_grad():
    result, expected = _run_torch(module, peer, images, size)
  got, whole = _outputs(model, loaded.variables, images)
  assert np.array_equal(got["head"], whole)
  last = model.block_names[-1] if peer.stop == "head" else "head"
  worst = {last: _distance(got[last], result)}
  for unit, value in expected.items():
    ours = got[unit]
    if unit == "encoder_norm" and value.ndim > ours.ndim:  # before pooling
      value = value[:, 0]
    worst[unit] = _distance(ours, value)
  assert len(worst) >= 4
  assert max(worst.values()) < 1e-4, worst


@pytest.mark.parametrize("key", marks.first(4, _PEERS))
def test_gradients_are_the_peers(key):
  peer = _PEERS[key]
  module = torch_vits.redraw(peer.build())
  model = _create(peer)
  images = _images()
  result, _ = _run_torch(module, peer, images, _SIZE)
  mix = np.random.default_rng(1).normal(size=tuple(result.shape)).astype(np.float32)
  (torch.sin(result) * torch.tensor(mix)).sum().backward()
  variables, match = _through_names(module.state_dict(), model)

  def loss(params):
    y = model.apply({"params": params}, images, stop=peer.stop)
    return jnp.sum(jnp.sin(y) * mix)

  gradients = traverse_util.flatten_dict(jax.jit(jax.grad(loss))(variables["params"]), sep="/")
  torch_gradients = {k: p.grad for k, p in module.named_parameters() if p.grad is not None}
  compared = 0
  for path, source in match.sources.items():
    if all(k in torch_gradients for k in source.keys):
      expected = source.convert(*(torch_gradients[k].numpy() for k in source.keys))
      assert _distance(gradients[path.removeprefix("params/")], expected) < 1e-3, path
      compared += 1
  assert compared >= len(gradients) - 2  # the head, where the peer has none


def _through_names(state, model):
  """Returns the variables that the naming makes of a state dict, and its match."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), _images(model.image_size, 1))
  tensors = {k: v.numpy() for k, v in state.items()}
  match = matching.recognise(tensors, model, matching.paths(shapes), "state dict")
  variables, _ = matching.convert(tensors, shapes, match, "state dict")
  if "head" not in variables["params"]:
    head = shapes["params"]["head"]
    variables["params"]["head"] = {k: jnp.zeros(v.shape, v.dtype) for k, v in head.items()}
  return variables, match


def test_clip_zero_shot_logits(tmp_path):
  config = transformers.CLIPConfig(
    text_config=_TEXT, vision_config={**_VISION, "image_size": 32}, projection_dim=6
  )
  module = torch_vits.redraw(transformers.CLIPModel(config))
  module.logit_scale.data.fill_(2.5)
  images, tokens = _images(), torch.randint(3, 30, (_CLASSES, 6))
  with torch.no_grad():
    result = module(input_ids=tokens, pixel_values=torch.tensor(images).permute(0, 3, 1, 2))
  kernel = np.exp(2.5) * result.text_embeds.T.numpy()
  model = _create(_PEERS["clip"], normalize_features=True)
  for how in ("zip", "save_pretrained"):
    loaded = weights.load_pretrained(_save(module, tmp_path, how), model)
    assert loaded.not_loaded == ("head/kernel", "head/bias")
    params = {**loaded.variables["params"], "head": {"kernel": kernel, "bias": np.zeros(_CLASSES)}}
    logits = jax.jit(model.apply)({"params": params}, images)
    assert _distance(logits, result.logits_per_image) < 1e-4


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_text_tower_is_dropped_whole(family, tmp_path):
  config = getattr(transformers, f"{family}Config")(
    text_config=_TEXT, vision_config=_VISION, projection_dim=6
  )
  state = getattr(transformers, f"{family}Model")(config).state_dict()
  numbers = {f"{tower}_model.embeddings.position_ids": torch.arange(7)[None]
             for tower in ("text", "vision") if family == "CLIP"}  # fmt: skip
  model = _create(_PEERS[family.lower()])
  torch.save({**state, **numbers}, tmp_path / "w")
  assert weights.load_pretrained(tmp_path / "w", model).not_loaded == ("head/kernel", "head/bias")
  del state["text_model.encoder.layers.11.mlp.fc1.bias"]
  torch.save(state, tmp_path / "w")
  with pytest.raises(
    weights.WeightsError, match=r"text_model\.encoder\.layers\.11\.mlp\.fc1\.bias"
  ):
    weights.load_pretrained(tmp_path / "w", model)


def test_bare_vit_with_pooler_and_mask_token(tmp_path):
  config = transformers.ViTConfig(**_VISION, layer_norm_eps=1e-6)
  module = torch_vits.redraw(transformers.ViTModel(config, use_mask_token=True))
  images = _images()
  with torch.no_grad():
    hidden = module(pixel_values=torch.tensor(images).permute(0, 3, 1, 2)).last_hidden_state
  model = _create(_PEERS["vit"])
  for how in ("zip", "save_pretrained"):
    path = _save(module, tmp_path, how)
    loaded = weights.load_pretrained(path, model, preprocessing="half")
    features = jax.jit(lambda v, x: model.apply(v, x, stop="head"))(loaded.variables, images)
    assert _distance(features, hidden[:, 0]) < 1e-4


_FULL = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "ti": (192, 12, 3)}


def _full_size(name):
  """Returns the torch model of a registered name, on torch's meta device."""
  letter, patch = name.rpartition("_")[2].rstrip("0123456789"), int(name[-2:])
  width, depth, heads = _FULL[letter]
  config = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads,
            "patch_size": patch, "image_size": 518 if "dinov2" in name else 224}  # fmt: skip
  mlp = {"intermediate_size": 4 * width}
  if name.startswith("clip"):
    text = {"hidden_size": 768 if letter == "l" else 512}
    both = {"text_config": text, "vision_config": {**config, **mlp}}
    config = transformers.CLIPConfig(**both, projection_dim=text["hidden_size"])
    return transformers.CLIPModel(config)
  if name.startswith("siglip"):
    config = transformers.SiglipConfig(vision_config={**config, **mlp}, text_config={})
    return transformers.SiglipModel(config)
  if name.startswith("dinov2_reg"):
    config = transformers.Dinov2WithRegistersConfig(**config)
    return transformers.Dinov2WithRegistersForImageClassification(config)
  if name.startswith("dinov2"):
    return transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**config))
  return transformers.ViTForImageClassification(transformers.ViTConfig(**config, **mlp))


@pytest.mark.parametrize(
  "name", marks.first(7, sorted((n for n in models.names() if "vit_" in n), key=len))
)
def test_full_size_shapes(name):
  with torch.device("meta"):
    state = _full_size(name).state_dict()
  model = models.create(name, 2)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  match = matching.recognise(state, model, matching.paths(shapes), name)
  targets = traverse_util.flatten_dict(shapes, sep="/")
  read = set()
  for path, source in match.sources.items():
    if all(key in state for key in source.keys):
      tensors = (np.broadcast_to(np.float32(0), tuple(state[k].shape)) for k in source.keys)
      assert source.convert(*tensors).shape == targets[path].shape, path
      read.update(source.keys)
    else:
      assert "/head/" in path, path
  dropped = set().union(*(group.keys for group in match.dropped if group.keys <= set(state)))
  assert set(state) - read == dropped - read


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("vit_b16", {"image_size": 100}, "image_size=100 must be a multiple of patch_size=16"),
    ("vit_b16", {"heads": 7}, "width=768 must be a multiple of heads=7"),
    ("vit_b16", {"pool": "max"}, "'token', 'mean', 'map', 'token_mean'"),
    ("vit_b16", {"activation": "gelu_new"}, "'gelu', 'gelu_tanh', 'quick_gelu'"),
    ("vit_b16", {"attention": "flash"}, "'xla', 'cudnn'"),
    ("vit_b16", {"class_token": False}, "pool='token' needs class_token=True"),
  ],
)
def test_wrong_options(name, options, message):
  with pytest.raises(ValueError, match=message):
    models.create(name, 2, **options)


def test_images_of_another_size():
  model = _create(_PEERS["vit"])
  with pytest.raises(ValueError, match=r"48x48.*create\(\.\.\., image_size=48\)"):
    jax.eval_shape(model.init, jax.random.key(0), _images(48))


@pytest.mark.parametrize(("pool", "features"), [("mean", 32), ("map", 32), ("token_mean", 64)])
def test_normalized_features(pool, features):
  model = _create(_PEERS["vit"], pool=pool, normalize_features=True, depth=1)
  images = _images()
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
  y = jax.jit(lambda v, x: model.apply(v, x, stop="head"))(variables, images)
  assert y.shape == (4, features)
  np.testing.assert_allclose(np.linalg.norm(y, axis=-1), 1, rtol=1e-5)
