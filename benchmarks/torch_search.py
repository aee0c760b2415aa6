"""The peers of benchmarks/search.py: a set of units trained on a fold with torch, in two ways.

"papers": as the authors' code does: a new model read from disk for every training, a DataLoader
with two workers that are started anew every epoch, the whole forward pass in every step.
"good": what a careful user of torch writes: data in memory, the model copied, the frozen prefix run
without gradient.
"""

from collections.abc import Sequence
import copy
import tempfile

import numpy as np
import torch
from torch.nn import functional


class Net(torch.nn.Module):
  """A row of named units and a head.

  Args:
    units: name -> module, input to output; the last returns features [n, f].
    features: of the head.
    classes: of the head.
  """

  def __init__(self, units: dict[str, torch.nn.Module], features: int, classes: int):
    super().__init__()
    self.names = list(units)
    self.blocks = torch.nn.ModuleList(units.values())
    self.head = torch.nn.Linear(features, classes)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    for block in self.blocks:
      x = block(x)
    return self.head(x)

  def tune(self, tuned: Sequence[str]) -> int:
    """Freezes all but these units and the head; returns where the first of them is."""
    self.eval().requires_grad_(False)
    self.head.requires_grad_(True)
    for name, block in zip(self.names, self.blocks, strict=True):
      if name in tuned:
        block.train().requires_grad_(True)
    return min((self.names.index(name) for name in tuned), default=len(self.names))


class _Lite(torch.nn.Module):
  """A part of EfficientNet-Lite0 of efficientnet-lite-pytorch."""

  def __init__(self, *layers, pool: bool = False):
    super().__init__()
    self.layers, self.pool = torch.nn.ModuleList(layers), pool

  def forward(self, x):
    for layer in self.layers:
      x = layer(x)
    return x.mean((2, 3)) if self.pool else x


def efficientnet(classes: int) -> torch.nn.Module:
  """EfficientNet-Lite0 with random weights; stride-1 convolutions pad inside conv2d (faster)."""
  from efficientnet_lite_pytorch import EfficientNet

  net = EfficientNet.from_name(
    "efficientnet-lite0", image_size=None, drop_connect_rate=0.0, dropout_rate=0.0,
    num_classes=classes,
  )  # fmt: skip
  for module in list(net.modules()):
    for name, conv in list(module.named_children()):
      if isinstance(conv, torch.nn.Conv2d) and conv.stride[0] == 1:
        k = conv.kernel_size[0]
        new = torch.nn.Conv2d(
          conv.in_channels, conv.out_channels, k, 1, k // 2, groups=conv.groups, bias=False
        )
        new.weight = conv.weight
        setattr(module, name, new)
  return net


def lite0(classes: int) -> Net:
  """That network as a row of units."""
  net = efficientnet(classes)
  relu = torch.nn.ReLU6()
  units = {"stem": _Lite(net._conv_stem, net._bn0, relu)}
  units |= {f"block{i}": block for i, block in enumerate(net._blocks)}
  units["top"] = _Lite(net._conv_head, net._bn1, relu, pool=True)
  return Net(units, net._fc.in_features, classes)


class _Unit(torch.nn.Module):
  """A basic residual unit, as torchvision writes it."""

  def __init__(self, inputs: int, outputs: int, stride: int, pool: bool):
    super().__init__()
    conv, norm = torch.nn.Conv2d, torch.nn.BatchNorm2d
    self.conv1, self.bn1 = conv(inputs, outputs, 3, stride, 1, bias=False), norm(outputs)
    self.conv2, self.bn2 = conv(outputs, outputs, 3, 1, 1, bias=False), norm(outputs)
    self.short, self.pool = None, pool
    if stride > 1 or inputs != outputs:
      self.short = torch.nn.Sequential(conv(inputs, outputs, 1, stride, bias=False), norm(outputs))

  def forward(self, x):
    y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
    y = self.bn2(self.conv2(y)) + (x if self.short is None else self.short(x))
    y = functional.relu(y, inplace=True)
    return y.mean((2, 3)) if self.pool else y


def resnet14(classes: int) -> Net:
  """He's ResNet for CIFAR with 2 units a stage."""
  stem = torch.nn.Sequential(
    torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(16), torch.nn.ReLU(True)
  )
  units, inputs = {"stem": stem}, 16
  for stage in (1, 2, 3):
    for unit in (1, 2):
      outputs = 16 * 2 ** (stage - 1)
      stride = 2 if stage > 1 and unit == 1 else 1
      last = (stage, unit) == (3, 2)
      units[f"block{stage}/unit{unit}"] = _Unit(inputs, outputs, stride, last)
      inputs = outputs
  return Net(units, 64, classes)


NETS = {"efficientnet_lite0": lite0, "resnet14": resnet14}


class _Fold(torch.utils.data.Dataset):
  def __init__(self, images: np.ndarray, labels: np.ndarray):
    self.images, self.labels = images, labels

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, i):
    return torch.from_numpy(_normalized(self.images[i]).transpose(2, 0, 1)), int(self.labels[i])


def _normalized(images: np.ndarray) -> np.ndarray:
  return (images.astype(np.float32) - 127) / 128


class Trainer:
  """Trains sets of units of one network on folds of one data set.

  Args:
    name: key of `NETS`.
    images: [n, h, w, 3] uint8.
    labels: [n].
    classes: their number.
    epochs, batch_size, learning_rate: of Adam along a cosine.
  """

  def __init__(self, name, images, labels, classes, *, epochs, batch_size, learning_rate):
    self.make, self.classes = NETS[name], classes
    self.images, self.labels = images, labels
    self.epochs, self.batch_size, self.rate = epochs, batch_size, learning_rate
    self.net = self.make(classes).to(memory_format=torch.channels_last)
    x = torch.from_numpy(_normalized(images).transpose(0, 3, 1, 2).copy())
    self.x = x.contiguous(memory_format=torch.channels_last)
    self.y = torch.from_numpy(np.asarray(labels, np.int64))
    self.file = tempfile.NamedTemporaryFile(suffix=".pth")  # noqa: SIM115 (kept while we live)
    torch.save(self.net.state_dict(), self.file.name)

  def good(self, tuned: Sequence[str], rest: np.ndarray, held: np.ndarray) -> float:
    """Held-out accuracy."""
    net = copy.deepcopy(self.net)
    first = net.tune(tuned)
    optimizer, schedule = self._optimizer(net, len(rest) // self.batch_size)
    generator = torch.Generator().manual_seed(0)
    rest = torch.from_numpy(rest)
    for _ in range(self.epochs):
      order = rest[torch.randperm(len(rest), generator=generator)]
      for i in range(len(rest) // self.batch_size):
        rows = order[i * self.batch_size : (i + 1) * self.batch_size]
        with torch.no_grad():
          x = self.x[rows]
          for block in net.blocks[:first]:
            x = block(x)
        for block in net.blocks[first:]:
          x = block(x)
        self._step(functional.cross_entropy(net.head(x), self.y[rows]), optimizer, schedule)
    return self._accuracy(net, torch.from_numpy(held))

  def papers(self, tuned: Sequence[str], rest: np.ndarray, held: np.ndarray) -> float:
    """Held-out accuracy."""
    net = self.make(self.classes).to(memory_format=torch.channels_last)
    net.load_state_dict(torch.load(self.file.name))
    net.tune(tuned)
    loader = torch.utils.data.DataLoader(
      _Fold(self.images[rest], self.labels[rest]), self.batch_size, shuffle=True, drop_last=True,
      num_workers=2,
    )  # fmt: skip
    optimizer, schedule = self._optimizer(net, len(loader))
    for _ in range(self.epochs):
      for x, y in loader:
        x = x.contiguous(memory_format=torch.channels_last)
        self._step(functional.cross_entropy(net(x), y), optimizer, schedule)
    return self._accuracy(net, torch.from_numpy(held))

  def _optimizer(self, net, steps: int):
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=self.rate)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * steps)

  def _step(self, loss, optimizer, schedule) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    schedule.step()

  def _accuracy(self, net, held: torch.Tensor) -> float:
    net.eval()
    with torch.inference_mode():
      parts = held.split(self.batch_size)
      right = [(net(self.x[rows]).argmax(1) == self.y[rows]).float() for rows in parts]
    return float(torch.cat(right).mean())
