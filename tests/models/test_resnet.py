"""The ResNet family against torch peers with every weight drawn at random, read back from files."""

import functools

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import models, weights
from subtune_jax.models import bit_resnet, clip_resnet, resnet
from subtune_jax.weights import matching
from tests import marks

_CLASSES = 5


def _peers():
  """The peers' module, where torch is there."""
  pytest.importorskip("torch", reason="torch has no wheel for this Python here")
  from tests import resnet_peers

  return resnet_peers


def _model(kind: str, size: int):
  """Our model and its peer; the models are small but for ResNet-26."""
  peers, classes = _peers(), {"num_classes": _CLASSES}
  if kind == "basic":
    model = resnet.ResNet(stage_sizes=(1, 2), bottleneck=False, width=8, **classes)
    return model, peers.transformers_resnet((1, 2), (8, 16), False)
  if kind == "bottleneck":
    model = resnet.ResNet(stage_sizes=(1, 2), bottleneck=True, width=8, **classes)
    return model, peers.transformers_resnet((1, 2), (32, 64), True)
  if kind == "torchvision":
    model = resnet.ResNet(stage_sizes=(2, 1), bottleneck=True, width=8, **classes)
    return model, peers.plain_resnet((2, 1), True, 8, cifar=False)
  if kind == "resnet26":
    return models.create(kind, _CLASSES), peers.plain_resnet((4, 4, 4), False, 16, cifar=True)
  if kind == "clip":
    fields = {"width": 8, "heads": 4, "features": 12, "image_size": size}
    model = clip_resnet.ClipResNet(
      stage_sizes=(1, 2, 1, 1), normalize_features=True, **fields, **classes
    )
    return model, peers.clip_resnet((1, 2, 1, 1), **fields)
  model = bit_resnet.BitResNet(stage_sizes=(2, 1), width=32, **classes)
  return model, peers.bit_resnet((2, 1), 32)


@functools.cache
def _small(kind: str, size: int = 64):
  """Model, variables drawn by the peer, the peer, and where each variable lies in its file."""
  model, peer = _model(kind, size)
  tensors = peer.tensors()
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  match = matching.recognise(tensors, model, matching.paths(shapes), kind)
  return model, peer, match


def _load(kind: str, size: int, folder):
  """Through a file in the format of such weights."""
  torch = _peers().torch
  model, peer, match = _small(kind, size)
  path = folder / kind
  if kind == "bit":
    with path.open("wb") as file:
      np.savez(file, **peer.tensors())
  elif kind == "bottleneck":
    from safetensors import numpy as safetensors_numpy

    contiguous = {k: np.ascontiguousarray(v) for k, v in peer.tensors().items()}
    safetensors_numpy.save_file(contiguous, path)
  else:
    zipped = kind != "basic"
    torch.save(peer.net.state_dict(), path, _use_new_zipfile_serialization=zipped)
  variables = weights.load_pretrained(path, model, preprocessing="imagenet").variables
  if kind == "clip":
    kernel = np.array(peer.net.texts).T * peer.net.scale
    head = {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(_CLASSES)}
    variables = {**variables, "params": {**variables["params"], "head": head}}
  return model, variables, peer, match


def _batch(n: int, size: int):
  rng = np.random.default_rng(3)
  images = rng.normal(size=(n, size, size, 3)).astype(np.float32)
  return images, rng.integers(0, _CLASSES, n)


def _loss(logits: jax.Array, labels: np.ndarray) -> jax.Array:
  rows = jnp.arange(len(labels))
  return -jnp.mean(jax.nn.log_softmax(logits)[rows, labels])


def _difference(ours, theirs) -> float:
  assert ours.shape == theirs.shape
  return float(np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs)))


_CASES = [
  ("basic", 40),
  ("bottleneck", 51),
  ("resnet26", 21),  # an odd map in every stage
  ("clip", 64),
  ("bit", 41),
  ("bottleneck", 64),
  ("torchvision", 45),
  ("resnet26", 32),
  ("clip", 96),
  ("bit", 64),
]


@pytest.mark.parametrize(("kind", "size"), marks.first(5, _CASES, several=True))
def test_outputs_and_gradients_are_the_peers_and_blocks_in_a_row_the_whole(kind, size, tmp_path):
  key_size = size if kind == "clip" else 64
  model, variables, peer, match = _load(kind, key_size, tmp_path)
  images, labels = _batch(4, size)
  logits, outputs, gradients = peer.step(images, labels)
  blocks = model.block_names

  @jax.jit
  def run(variables, x):
    ours, whole = {}, model.apply(variables, x)
    features = model.apply(variables, x, stop="head")
    for start, stop in zip(blocks, (*blocks[1:], "head"), strict=True):
      x = ours[start] = model.apply(variables, x, start=start, stop=stop)
    return ours, features, model.apply(variables, x, start="head"), whole

  ours, features, our_logits, whole = run(variables, images)
  np.testing.assert_array_equal(our_logits, whole)
  np.testing.assert_array_equal(ours[blocks[-1]], features)
  assert _difference(our_logits, logits) < 1e-4
  assert np.ptp(logits) > 0.1
  assert set(outputs) >= set(blocks) - {"stem"}
  worst = {}
  for block, theirs in outputs.items():
    if theirs.ndim > ours[block].ndim:  # the pool is the last block's
      assert block == blocks[-1]
      theirs = theirs.mean((1, 2))
    worst[block] = _difference(ours[block], theirs)
  assert max(worst.values()) < 1e-4, worst

  def loss(params):
    return _loss(model.apply({**variables, "params": params}, images), labels)

  got = traverse_util.flatten_dict(jax.jit(jax.grad(loss))(variables["params"]), sep="/")
  chosen = (blocks[0], blocks[len(blocks) // 2], blocks[-1])
  worst = {}
  for path, value in got.items():
    if path.startswith(tuple(f"{block}/" for block in chosen)):
      if path == "attention_pool/k/bias":  # it moves all scores alike, so its gradient is 0
        assert np.max(np.abs(value)) < 1e-4 * np.max(np.abs(got["attention_pool/k/kernel"]))
        continue
      source = match.sources[f"params/{path}"]
      worst[path] = _difference(value, source.convert(*(gradients[k] for k in source.keys)))
  assert len(worst) >= 6
  assert max(worst.values()) < 1e-3, worst


def test_normalized_features_are_the_others_at_length_1(tmp_path):
  model, variables, _, _ = _load("clip", 64, tmp_path)
  x = np.random.default_rng(4).normal(size=(3, 2, 2, 256)).astype(np.float32)
  run = {"start": "attention_pool", "stop": "head"}
  features = model.apply(variables, x, **run)
  np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)
  longer = model.clone(normalize_features=False).apply(variables, x, **run)
  norms = np.linalg.norm(longer, axis=1, keepdims=True)
  assert np.all(np.abs(norms - 1) > 0.05)
  np.testing.assert_allclose(longer / norms, features, atol=1e-6)


@pytest.mark.parametrize("kind", ["bottleneck", "resnet26", "clip"])
def test_batch_norm_in_training_is_torchs(kind, tmp_path):
  size = 32 if kind == "resnet26" else 64
  model, variables, peer, match = _load(kind, 64, tmp_path)
  images, labels = _batch(4, size)
  before = peer.net.state_dict()
  before = {k: v.clone() for k, v in before.items()}
  peer.net.train()
  logits, _, _ = peer.step(images, labels)
  after = peer.tensors()
  peer.net.load_state_dict(before)
  peer.net.eval()
  apply = functools.partial(model.apply, train_blocks=model.block_names, mutable=["batch_stats"])
  ours, updates = jax.jit(apply)(variables, images)
  assert _difference(ours, logits) < 1e-4
  statistics = traverse_util.flatten_dict(updates["batch_stats"], sep="/")
  worst = {}
  for path, value in statistics.items():
    (key,) = match.sources[f"batch_stats/{path}"].keys
    worst[path] = _difference(value, after[key])
  assert max(worst.values()) < 1e-4, worst


@pytest.mark.parametrize("kind", ["clip", "bit"])
def test_bfloat16_computes_about_the_same(kind, tmp_path):
  model, variables, _, _ = _load(kind, 64, tmp_path)
  images, _ = _batch(4, 64)
  half = model.clone(dtype=jnp.bfloat16)
  features = jax.jit(functools.partial(half.apply, stop="head"))(variables, images)
  assert features.dtype == jnp.bfloat16
  exact = jax.jit(functools.partial(model.apply, stop="head"))(variables, images)
  assert 0 < _difference(features.astype(jnp.float32), exact) < 0.1
  shapes = jax.eval_shape(half.init, jax.random.key(0), images)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


_SIZES = {
  "resnet18": ((2, 2, 2, 2), 512, 56),
  "resnet26": ((4, 4, 4), 64, 32),
  "resnet34": ((3, 4, 6, 3), 512, 56),
  "resnet50": ((3, 4, 6, 3), 2048, 56),
  "resnet101": ((3, 4, 23, 3), 2048, 56),
  "clip_resnet50": ((3, 4, 6, 3), 1024, 56),
  "bit_resnet50": ((3, 4, 6, 3), 2048, 56),
}


@pytest.mark.parametrize(
  "name",
  marks.first(
    3,
    ["resnet26", "bit_resnet50", "clip_resnet50", "resnet18", "resnet34", "resnet50", "resnet101"],
  ),
)
def test_blocks_and_shapes_of_the_registered_models(name):
  sizes, features, side = _SIZES[name]
  last = {"clip_resnet50": ("attention_pool",), "bit_resnet50": ("top",)}
  model = models.create(name, 10)
  units = [f"block{s}/unit{u}" for s, n in enumerate(sizes, 1) for u in range(1, n + 1)]
  assert model.block_names == ("stem", *units, *last.get(name, ()))
  size = model.image_size
  images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  run = {stop: functools.partial(model.apply, stop=stop) for stop in ("block1/unit1", "head")}
  stem = jax.eval_shape(run["block1/unit1"], shapes, images)
  assert stem.shape == (2, side, side, 16 if name == "resnet26" else 64)
  assert jax.eval_shape(run["head"], shapes, images).shape == (2, features)


@pytest.mark.parametrize("shape", [(2, 9, 12, 3), (1, 3, 4, 2)])
def test_max_pool_is_xlas_forwards_and_backwards(shape):
  x = jnp.asarray(np.random.default_rng(5).normal(size=shape), jnp.float32)

  @functools.partial(jax.jit, static_argnums=0)
  def both(pool, x):
    y, pull = jax.vjp(pool, x)
    return y, pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))[0]

  ours = both(resnet.max_pool, x)
  theirs = both(lambda x: nn.max_pool(x, (3, 3), (2, 2)), x)
  np.testing.assert_array_equal(ours[0], theirs[0])
  np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)


def test_max_pool_gives_the_gradient_to_the_first_of_equals():
  (gradient,) = jax.vjp(resnet.max_pool, jnp.ones((1, 3, 3, 1)))[1](jnp.ones((1, 1, 1, 1)))
  np.testing.assert_array_equal(gradient.ravel(), [1, 0, 0, 0, 0, 0, 0, 0, 0])


# ------------------------------------------------------------------ errors


def test_an_unknown_stem_is_an_error():
  with pytest.raises(ValueError, match=r"Unknown stem 'cifer'. Did you mean 'cifar'\?"):
    models.create("resnet50", 10, stem="cifer")


def test_a_width_that_group_norm_cannot_divide_is_an_error():
  with pytest.raises(ValueError, match="width=48 must be a multiple of 32"):
    models.create("bit_resnet50", 10, width=48)


@pytest.mark.parametrize(
  ("image_size", "side", "message"),
  [
    (64, 96, r"shape \(2, 96, 96, 3\).*for 64 by 64 pixels.*create\(..., image_size=...\)"),
    (80, 80, r"image_size=80 must be a multiple of 32.*create\(..., image_size=64\)"),
    (16, 16, r"image_size=16 must be a multiple of 32.*create\(..., image_size=32\)"),
  ],
)
def test_images_of_another_size_than_the_positions_are_an_error(image_size, side, message):
  model = models.create("clip_resnet50", 10, image_size=image_size)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, side, side, 3)))
