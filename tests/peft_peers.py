"""Small torch networks of timm and transformers, the same networks here, and PEFT on the former."""

import dataclasses
import importlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import weights
from subtune_jax.models import resnet, vit
from tests import timm_peer

SIZE, CLASSES = 32, 5


@dataclasses.dataclass
class Peer:
  """A network in torch and here.

  Attributes:
    net: torch's, in eval mode, every parameter drawn at random.
    model: ours.
    variables: of ours.
    layout: of the names.
  """

  net: Any
  model: Any
  variables: Any
  layout: str


def load() -> Any:
  """The module peft; skips where it is not installed."""
  pytest.importorskip("torch").set_num_threads(1)
  return pytest.importorskip("peft")


def images(n: int = 4, seed: int = 0) -> np.ndarray:
  """[n, size, size, 3] in float32."""
  return np.random.default_rng(seed).normal(size=(n, SIZE, SIZE, 3)).astype(np.float32)


def logits(net: Any, x: np.ndarray) -> Any:
  """Torch's logits of images [n, h, w, 3], as a tensor."""
  torch = importlib.import_module("torch")
  found = net(torch.tensor(x.transpose(0, 3, 1, 2)))
  return getattr(found, "logits", found)


def redraw(net: Any, seed: int = 0) -> Any:
  """Draws parameters and running statistics: initialisation leaves many ones and zeros."""
  torch = importlib.import_module("torch")
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, value in net.state_dict().items():
      if not value.is_floating_point():
        continue
      noise = torch.randn(value.shape, generator=generator)
      if name.endswith("running_var"):
        value.copy_(0.5 + noise.abs())
      elif value.ndim > 1 and len(value) > 1:
        value.copy_(noise * value[0].numel() ** -0.5)
      else:
        value.copy_(float(value.ndim == 1 and name.endswith("weight")) + 0.3 * noise)
  return net.eval()


def _with_weights(net: Any, model: Any, layout: str) -> Peer:
  torch_file = importlib.import_module("safetensors.torch")
  redraw(net)
  with tempfile.TemporaryDirectory() as folder:
    file = f"{folder}/model.safetensors"
    torch_file.save_file({k: v.contiguous() for k, v in net.state_dict().items()}, file)
    found = weights.load_pretrained(file, model, preprocessing="imagenet")
  return Peer(net, model, found.variables, layout)


def timm_vit() -> Peer:
  """A ViT of two blocks, with queries, keys and values in one matrix."""
  net = timm_peer.load().create_model(
    "vit_tiny_patch16_224", img_size=SIZE, patch_size=8, embed_dim=32, depth=2, num_heads=2,
    num_classes=CLASSES,
  )  # fmt: skip
  return _with_weights(net, _vit(), "timm")


def _vit(**fields: Any) -> vit.ViT:
  return vit.ViT(
    width=32, depth=2, heads=2, patch_size=8, num_classes=CLASSES, image_size=SIZE, **fields
  )


def transformers_vit() -> Peer:
  """The same with queries, keys and values in three matrices."""
  transformers = pytest.importorskip("transformers")
  config = transformers.ViTConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
    image_size=SIZE, patch_size=8, num_labels=CLASSES,
  )  # fmt: skip
  net = transformers.ViTForImageClassification(config)
  return _with_weights(net, _vit(norm_epsilon=1e-12), "transformers")


def timm_resnet() -> Peer:
  """A ResNet of four units."""
  net = timm_peer.load().create_model("resnet18", layers=[1, 1, 1, 1], num_classes=CLASSES)
  model = resnet.ResNet(
    stage_sizes=(1, 1, 1, 1), bottleneck=False, num_classes=CLASSES, image_size=SIZE
  )
  return _with_weights(net, model, "timm")


def shake(net: Any, seed: int = 1, scale: float = 0.1) -> None:
  """Moves every trained parameter of a PEFT model, so that no B is zero."""
  torch = importlib.import_module("torch")
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for value in net.parameters():
      if value.requires_grad:
        value.add_(scale * torch.randn(value.shape, generator=generator))


def train(net: Any, optimizer: Any, steps: int = 1) -> None:
  """Steps of cross-entropy on `images` and labels 0, 1, 2, ..."""
  torch = importlib.import_module("torch")
  x, labels = images(), torch.arange(4) % CLASSES
  for _ in range(steps):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(logits(net, x), labels).backward()
    optimizer.step()


def trained(net: Any) -> list[Any]:
  """The parameters that train."""
  return [value for value in net.parameters() if value.requires_grad]


def draw(tree: Any, seed: int = 0, scale: float = 0.2) -> Any:
  """Adapters' leaves moved at random; the scaling stays."""
  rng = np.random.default_rng(seed)

  def moved(path: Any, leaf: Any) -> Any:
    noise = scale * rng.normal(size=leaf.shape)
    return np.asarray(leaf + (0 if path[-1].key == "scaling" else noise), np.float32)

  return jax.tree_util.tree_map_with_path(moved, tree)


def apply(adapted: Any, peer: Peer, tree: Any, x: np.ndarray) -> np.ndarray:
  """Our logits."""
  return np.asarray(jax.jit(adapted.apply)(peer.variables, tree, jnp.asarray(x)))
