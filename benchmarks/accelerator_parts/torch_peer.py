"""The same work with torch: torch.compile, bfloat16 by autocast, channels_last, SGD in one kernel.

Networks are timm's, else torchvision's, with random weights. Images lie on the device as uint8
[n, h, w, 3] and are picked and normalised in every step, as in ours.
"""

import contextlib
import importlib
import time
from typing import Any

from benchmarks.accelerator_parts import programs as programs_lib

_TIMM = {
  "vit_b16": "vit_base_patch16_224", "vit_s16": "vit_small_patch16_224", "resnet50": "resnet50",
  "convnext_tiny": "convnext_tiny", "efficientnet_lite0": "efficientnet_lite0",
}  # fmt: skip

_TORCHVISION = {  # a name, or width and heads
  "vit_b16": (768, 12), "vit_s16": (384, 6), "resnet50": "resnet50",
  "convnext_tiny": "convnext_tiny",
}  # fmt: skip


class MissingPeerError(ValueError):
  """There is no torch, or no network of that name in what is installed beside it."""


def _installed(name: str) -> Any | None:
  try:
    return importlib.import_module(name)
  except ImportError:
    return None


def network(name: str, classes: int, size: int) -> tuple[Any, str]:
  """(module, whose it is).

  Args:
    name: a key of `models.create`.
    classes: of the head.
    size: of the images, in pixels.

  Raises:
    MissingPeerError: neither timm nor torchvision has it.
  """
  timm, torchvision = _installed("timm"), _installed("torchvision")
  if timm is not None:
    options = {"img_size": size} if name.startswith("vit") else {}
    net = timm.create_model(_TIMM[name], num_classes=classes, **options)
    return net, f"timm {timm.__version__}"
  if torchvision is None or name not in _TORCHVISION:
    raise MissingPeerError(f"no torch network for {name}: install timm or torchvision")
  if name.startswith("vit"):
    width, heads = _TORCHVISION[name]
    net = torchvision.models.VisionTransformer(
      image_size=size, patch_size=16, num_layers=12, num_heads=heads, hidden_dim=width,
      mlp_dim=4 * width, num_classes=classes,
    )  # fmt: skip
  else:
    net = torchvision.models.get_model(_TORCHVISION[name], weights=None, num_classes=classes)
  return net, f"torchvision {torchvision.__version__}"


class Peer:
  """Calls of one kind of work.

  Args:
    scale: classes, pixels, and whether torch.compile is left out (tiny).
    name: of the network.
    work: "training" or "inference".
    dtype: "bfloat16", by autocast; or "float32" with TF32 products, as jax does by default.
    batch: images per call.
    made: (module, title) in place of `network`'s.

  Attributes:
    title: the version of torch and whose network.
    warm_seconds: of the first calls, in which torch.compile works.

  Raises:
    MissingPeerError: see `network`; also where there is no torch, or none that sees a GPU.
  """

  def __init__(
    self, scale: programs_lib.Scale, name: str, work: str, dtype: str, batch: int,
    made: tuple[Any, str] | None = None,
  ):  # fmt: skip
    torch = _installed("torch")
    if torch is None:
      raise MissingPeerError("torch is not installed")
    self.torch, self.warm_seconds, self.amp = torch, 0.0, dtype == "bfloat16"
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not scale.tiny and self.device.type == "cpu":
      raise MissingPeerError(f"torch {torch.__version__} sees no GPU")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    net, whose = made or network(name, scale.classes, scale.size)
    self.title = f"torch {torch.__version__}, {whose}"
    if self.device.type == "cuda":
      torch.cuda.reset_peak_memory_stats()
    self.net = net.to(self.device, memory_format=torch.channels_last).train(work == "training")
    shape = (2 * batch, scale.size, scale.size, 3)
    self.images = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device)
    self.labels = torch.arange(2 * batch, device=self.device) % scale.classes
    self.indices = torch.arange(batch)
    self.optimizer, calls = None, self._logits
    if work == "training":
      options = {"lr": programs_lib.RATE, "momentum": programs_lib.SGD["momentum"]}
      self.optimizer = torch.optim.SGD(self.net.parameters(), fused=True, **options)
      calls = self._loss
    self.call = calls if scale.tiny else torch.compile(calls)

  def _autocast(self) -> Any:
    if not self.amp:
      return contextlib.nullcontext()
    return self.torch.autocast(self.device.type, dtype=self.torch.bfloat16)

  def _logits(self, images: Any) -> Any:
    x = (images.permute(0, 3, 1, 2).float() - 127.0) / 128.0
    with self._autocast():
      return self.net(x)

  def _loss(self, images: Any, labels: Any) -> Any:
    logits = self._logits(images).float()
    return self.torch.nn.functional.cross_entropy(logits, labels)

  def run(self, count: int) -> None:
    """So many calls; returns when the device is done."""
    begin = time.perf_counter()
    for _ in range(count):
      rows = self.indices.to(self.device, non_blocking=True)
      if self.optimizer is None:
        with self.torch.no_grad():
          self.call(self.images[rows])
        continue
      self.optimizer.zero_grad(set_to_none=True)
      self.call(self.images[rows], self.labels[rows]).backward()
      self.optimizer.step()
    if self.device.type == "cuda":
      self.torch.cuda.synchronize()
    if not self.warm_seconds:
      self.warm_seconds = time.perf_counter() - begin

  @property
  def memory_bytes(self) -> int:
    """Most that torch has held on the device since this was made; 0 on CPU."""
    return self.torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0

  def close(self) -> None:
    """Frees the memory."""
    self.net = self.optimizer = self.images = self.labels = self.call = None
    self.torch.compiler.reset()
    if self.device.type == "cuda":
      self.torch.cuda.empty_cache()


class Peers:
  """The last peer is kept: jobs of the same work share what torch.compile made."""

  def __init__(self):
    self._key: tuple[Any, ...] = ()
    self._kept: Peer | None = None

  def get(self, scale: programs_lib.Scale, *key: Any) -> Peer:
    """The peer of these arguments of `Peer`, warm."""
    if self._kept is None or key != self._key:
      self.close()
      self._key, self._kept = key, Peer(scale, *key)
      self._kept.run(2)
    return self._kept

  def close(self) -> None:
    """Frees the memory of the last peer."""
    kept, self._kept = self._kept, None
    if kept is not None:
      kept.close()
