"""Torch networks of the ResNet family with weights drawn at random, and what they compute.

transformers has ResNet; the others are written here in plain torch, with the names that files of
such weights have.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch has no wheel for this Python here")
nn, functional = torch.nn, torch.nn.functional
torch.set_num_threads(1)


@dataclasses.dataclass
class Peer:
  """A torch network.

  Attributes:
    net: in eval mode.
    blocks: the modules whose outputs are those of our blocks, by our names.
    named: from tensors under torch's names to those of a file; None keeps the names.
  """

  net: Any
  blocks: dict[str, Any]
  named: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None

  def tensors(self) -> dict[str, np.ndarray]:
    """Returns what a file of the weights holds."""
    return self._named({k: v.numpy().copy() for k, v in self.net.state_dict().items()})

  def _named(self, tensors):
    return self.named(tensors) if self.named else tensors

  def step(self, images: np.ndarray, labels: np.ndarray):
    """Runs forward and backward.

    Args:
      images: [n, h, w, 3].
      labels: [n].

    Returns:
      Logits, outputs of the blocks by name (maps as [n, h, w, c]), and the gradients of the mean
      cross-entropy under the names of the file.
    """
    outputs, hooks = {}, []
    for name, module in self.blocks.items():

      def keep(module, inputs, output, name=name):
        values = output.detach().clone().numpy()
        outputs[name] = values.transpose(0, 2, 3, 1) if values.ndim == 4 else values

      hooks.append(module.register_forward_hook(keep))
    self.net.zero_grad()
    logits = self.net(torch.tensor(images.transpose(0, 3, 1, 2)))
    logits = getattr(logits, "logits", logits)
    functional.cross_entropy(logits, torch.tensor(labels, dtype=torch.long)).backward()
    for hook in hooks:
      hook.remove()
    gradients = {k: p.grad.numpy() for k, p in self.net.named_parameters() if p.grad is not None}
    return logits.detach().numpy(), outputs, self._named(gradients)


def redraw(net: Any, seed: int = 0) -> Any:
  """Draws all weights and running statistics: initialisation leaves many ones and zeros."""
  rng = np.random.default_rng(seed)
  for name, tensor in net.state_dict().items():
    shape = tuple(tensor.shape)
    if name.endswith("num_batches_tracked"):
      continue
    if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
      values = rng.uniform(0.5, 1.5, shape)
    elif tensor.ndim == 1:
      values = rng.normal(size=shape) * 0.3
    else:
      values = rng.normal(size=shape) * (1.5 / np.prod(shape[1:])) ** 0.5
    tensor.copy_(torch.tensor(values))
  return net.eval()


def _stages(net: Any) -> dict[str, Any]:
  """Units of layer1 and on, by our names."""
  stages = [getattr(net, f"layer{s}") for s in range(1, 5) if hasattr(net, f"layer{s}")]
  return {
    f"block{s}/unit{u}": unit
    for s, units in enumerate(stages, 1)
    for u, unit in enumerate(units, 1)
  }


# ------------------------------------------------------------------ ResNet


def transformers_resnet(depths, sizes, bottleneck, num_classes=5, stem=8, draw=True) -> Peer:
  """ResNetForImageClassification; `sizes` are the channels out of the stages."""
  transformers = pytest.importorskip("transformers")
  config = transformers.ResNetConfig(
    embedding_size=stem,
    hidden_sizes=list(sizes),
    depths=list(depths),
    layer_type="bottleneck" if bottleneck else "basic",
    num_labels=num_classes,
  )
  net = transformers.ResNetForImageClassification(config)
  blocks = {"stem": net.resnet.embedder}
  for s, stage in enumerate(net.resnet.encoder.stages, 1):
    blocks |= {f"block{s}/unit{u}": unit for u, unit in enumerate(stage.layers, 1)}
  return Peer(redraw(net) if draw else net, blocks)


class _Unit(nn.Module):
  """A basic or bottleneck unit with torchvision's names."""

  def __init__(self, features_in, inner, stride, bottleneck):
    super().__init__()
    features = 4 * inner if bottleneck else inner
    shapes = ((features_in, inner, 3, stride), (inner, inner, 3, 1))
    if bottleneck:
      shapes = ((features_in, inner, 1, 1), (inner, inner, 3, stride), (inner, features, 1, 1))
    for i, (a, b, kernel, step) in enumerate(shapes, 1):
      conv = nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False)
      self.add_module(f"conv{i}", conv)
      self.add_module(f"bn{i}", nn.BatchNorm2d(b))
    self.layers = len(shapes)
    self.downsample = None
    if stride > 1 or features_in != features:
      conv = nn.Conv2d(features_in, features, 1, stride, bias=False)
      self.downsample = nn.Sequential(conv, nn.BatchNorm2d(features))

  def forward(self, x):
    y = x
    for i in range(1, self.layers + 1):
      y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
      y = y.relu() if i < self.layers else y
    return (y + (self.downsample(x) if self.downsample else x)).relu()


class PlainResNet(nn.Module):
  """torchvision's names; the stem of ImageNet or, as in He et al. 4.2, of CIFAR."""

  def __init__(self, sizes, bottleneck, width, cifar, num_classes=5):
    super().__init__()
    self.cifar = cifar
    shape = (3, 1, 1) if cifar else (7, 2, 3)
    self.conv1 = nn.Conv2d(3, width, *shape, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    self.pool = nn.Identity() if cifar else nn.MaxPool2d(3, 2, 1)
    features = width
    for s, size in enumerate(sizes):
      units = []
      for u in range(size):
        stride = 2 if s and not u else 1
        units.append(_Unit(features, width * 2**s, stride, bottleneck))
        features = width * 2**s * (4 if bottleneck else 1)
      self.add_module(f"layer{s + 1}", nn.Sequential(*units))
    self.stages = len(sizes)
    self.fc = nn.Linear(features, num_classes)

  def forward(self, x):
    x = self.pool(self.bn1(self.conv1(x)).relu())
    for s in range(self.stages):
      x = getattr(self, f"layer{s + 1}")(x)
    return self.fc(x.mean((2, 3)))


def plain_resnet(*args: Any, draw: bool = True, **kwargs: Any) -> Peer:
  """Arguments as of `PlainResNet`."""
  net = PlainResNet(*args, **kwargs)
  return Peer(redraw(net) if draw else net, _stages(net))


# ------------------------------------------------------------------ CLIP


class _ClipUnit(nn.Module):
  def __init__(self, features_in, inner, stride):
    super().__init__()
    self.conv1 = nn.Conv2d(features_in, inner, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(inner)
    self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
    self.bn2 = nn.BatchNorm2d(inner)
    self.conv3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
    self.bn3 = nn.BatchNorm2d(4 * inner)
    self.pool = nn.AvgPool2d(stride)
    self.downsample = None
    if stride > 1 or features_in != 4 * inner:
      conv = nn.Conv2d(features_in, 4 * inner, 1, bias=False)
      self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * inner))

  def forward(self, x):
    y = self.bn1(self.conv1(x)).relu()
    y = self.pool(self.bn2(self.conv2(y)).relu())
    y = self.bn3(self.conv3(y))
    return (y + (self.downsample(self.pool(x)) if self.downsample else x)).relu()


class _AttentionPool(nn.Module):
  """Attention written out; every token has a query, and the first one's result is returned."""

  def __init__(self, grid, features_in, heads, features):
    super().__init__()
    self.positional_embedding = nn.Parameter(torch.zeros(grid * grid + 1, features_in))
    for name in ("q_proj", "k_proj", "v_proj"):
      self.add_module(name, nn.Linear(features_in, features_in))
    self.c_proj = nn.Linear(features_in, features)
    self.heads = heads

  def forward(self, x):
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
    q, k, v = (
      layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
      for layer in (self.q_proj, self.k_proj, self.v_proj)
    )
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
    return self.c_proj((weights @ v).transpose(1, 2).flatten(2))[:, 0]


class ModifiedResNet(nn.Module):
  """CLIP's image tower, with the names of OpenAI's files."""

  def __init__(self, sizes, width, heads, features, image_size):
    super().__init__()
    half = width // 2
    for i, (a, b, stride) in enumerate(((3, half, 2), (half, half, 1), (half, width, 1)), 1):
      self.add_module(f"conv{i}", nn.Conv2d(a, b, 3, stride, 1, bias=False))
      self.add_module(f"bn{i}", nn.BatchNorm2d(b))
    self.pool = nn.AvgPool2d(2)
    channels = width
    for s, size in enumerate(sizes):
      units = []
      for u in range(size):
        units.append(_ClipUnit(channels, width * 2**s, 2 if s and not u else 1))
        channels = 4 * width * 2**s
      self.add_module(f"layer{s + 1}", nn.Sequential(*units))
    self.attnpool = _AttentionPool(image_size // 32, channels, heads, features)

  def forward(self, x):
    for i in (1, 2, 3):
      x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)).relu()
    x = self.pool(x)
    for s in (1, 2, 3, 4):
      x = getattr(self, f"layer{s}")(x)
    return self.attnpool(x)


class _Normalize(nn.Module):
  def forward(self, x):
    return functional.normalize(x, dim=1)


class _Clip(nn.Module):
  """The image tower under "visual."; its classifier, the cosines with texts, is not in files."""

  def __init__(self, tower, texts, scale):
    super().__init__()
    self.visual, self.texts, self.scale = tower, texts, scale
    self.normalize = _Normalize()

  def forward(self, x):
    return self.scale * self.normalize(self.visual(x)) @ self.texts.T


def clip_resnet(sizes, width, heads, features, image_size, classes=5, draw=True) -> Peer:
  """A tower, and random texts of length 1 as `net.texts` [classes, features]."""
  tower = ModifiedResNet(sizes, width, heads, features, image_size)
  rng = np.random.default_rng(7)
  texts = torch.tensor(rng.normal(size=(classes, features)), dtype=torch.float32)
  net = _Clip(redraw(tower) if draw else tower, functional.normalize(texts, dim=1), 20.0)
  return Peer(net, _stages(tower) | {"stem": tower.pool, "attention_pool": net.normalize})


# ------------------------------------------------------------------ BiT


class _StdConv(nn.Conv2d):
  def forward(self, x):
    variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, unbiased=False)
    weight = (self.weight - mean) / torch.sqrt(variance + 1e-10)
    return functional.conv2d(x, weight, None, self.stride, self.padding)


class _BitUnit(nn.Module):
  def __init__(self, features_in, inner, stride):
    super().__init__()
    shapes = ((features_in, inner, 1, 1), (inner, inner, 3, stride), (inner, 4 * inner, 1, 1))
    for letter, (a, b, kernel, step) in zip("abc", shapes, strict=True):
      self.add_module(f"{letter}_norm", nn.GroupNorm(32, a))
      conv = _StdConv(a, b, kernel, step, kernel // 2, bias=False)
      self.add_module(f"{letter}_conv", conv)
    self.a_proj = None
    if stride > 1 or features_in != 4 * inner:
      self.a_proj = _StdConv(features_in, 4 * inner, 1, stride, bias=False)

  def forward(self, x):
    y = self.a_norm(x).relu()
    shortcut = self.a_proj(y) if self.a_proj else x
    y = self.b_norm(self.a_conv(y)).relu()
    y = self.c_norm(self.b_conv(y)).relu()
    return self.c_conv(y) + shortcut


class BitNet(nn.Module):
  """ResNet-v2 with GroupNorm and standardised weights."""

  def __init__(self, sizes, width, num_classes=5):
    super().__init__()
    self.root = _StdConv(3, width, 7, 2, 3, bias=False)
    self.pool = nn.Sequential(nn.ConstantPad2d(1, 0.0), nn.MaxPool2d(3, 2))
    features = width
    for s, size in enumerate(sizes):
      units = []
      for u in range(size):
        units.append(_BitUnit(features, width * 2**s, 2 if s and not u else 1))
        features = 4 * width * 2**s
      self.add_module(f"layer{s + 1}", nn.Sequential(*units))
    self.norm = nn.GroupNorm(32, features)
    self.top = nn.Sequential(self.norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    self.head = nn.Conv2d(features, num_classes, 1)
    self.stages = len(sizes)

  def forward(self, x):
    x = self.pool(self.root(x))
    for s in range(self.stages):
      x = getattr(self, f"layer{s + 1}")(x)
    return self.head(self.top(x)[:, :, None, None])[:, :, 0, 0]


def bit_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Tensors of `BitNet` under the names, and with the axes, of Google's .npz files."""
  named = {}
  for key, value in tensors.items():
    *where, last = key.split(".")
    if where[0] == "top":  # the same tensor as norm's
      continue
    group = f"group_norm/{'gamma' if last == 'weight' else 'beta'}"
    if where[0].startswith("layer"):
      letter, _, kind = where[2].partition("_")
      conv = "standardized_conv2d/kernel"
      tail = {"norm": group, "conv": conv, "proj": f"proj/{conv}"}[kind]
      name = f"block{where[0][5:]}/unit{int(where[1]) + 1:02d}/{letter}/{tail}"
    elif where[0] == "root":
      name = "root_block/standardized_conv2d/kernel"
    elif where[0] == "norm":
      name = group
    else:
      name = f"head/conv2d/{'kernel' if last == 'weight' else 'bias'}"
    named[f"resnet/{name}"] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
  return named


def bit_resnet(sizes, width, num_classes=5, draw=True) -> Peer:
  """Its `tensors` are those of an .npz file."""
  net = BitNet(sizes, width, num_classes)
  blocks = _stages(net) | {"stem": net.pool, "top": net.top}
  return Peer(redraw(net) if draw else net, blocks, bit_names)
