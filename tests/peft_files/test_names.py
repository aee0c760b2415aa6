"""Flax models that are not ours, by names of the caller; and the names of our layouts."""

import json
import re

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from subtune_jax import adapters, peft_files
from subtune_jax.models import resnet, vit
from tests import config_files, peft_peers

NAMES = {"stem": "stem", "grouped": "grouped", "depthwise": "depthwise",
         "qkv": ("query", "key", "value"), "last": "last"}  # fmt: skip
X = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)


class Net(nn.Module):
  """Convolutions in groups, and a layer of several outputs."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(8, (3, 3), padding=1, name="stem")(x))
    x = nn.Conv(8, (3, 3), strides=2, padding=1, feature_group_count=4, name="grouped")(x)
    x = nn.relu(nn.Conv(8, (3, 3), padding=1, feature_group_count=8, name="depthwise")(x))
    q, k, v = jnp.moveaxis(nn.DenseGeneral((3, 2, 5), name="qkv")(x.mean((1, 2))), 1, 0)
    x = jnp.tanh(q * k + v)
    return nn.DenseGeneral(4, axis=(-2, -1), name="last")(x)


def peer():
  """The same in torch, and its weights here."""
  torch = pytest.importorskip("torch")

  class TorchNet(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
      self.grouped = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4)
      self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
      for name in NAMES["qkv"]:
        self.add_module(name, torch.nn.Linear(8, 10))
      self.last = torch.nn.Linear(10, 4)

    def forward(self, x):
      x = self.depthwise(self.grouped(self.stem(x).relu())).relu().mean((2, 3))
      return self.last((self.query(x) * self.key(x) + self.value(x)).tanh())

  net = peft_peers.redraw(TorchNet())
  state = {name: value.numpy() for name, value in net.state_dict().items()}
  variables = jax.device_get(Net().init(jax.random.key(0), X))
  for path, names in NAMES.items():
    names = (names,) if isinstance(names, str) else names
    own = variables["params"][path]
    arrays = [np.moveaxis(state[f"{n}.weight"], (0, 1), (-1, -2)) for n in names]
    own["kernel"] = np.concatenate(arrays, -1).reshape(own["kernel"].shape)
    bias = np.concatenate([state[f"{n}.bias"] for n in names])
    own["bias"] = bias.reshape(own["bias"].shape)
  return net, variables


def test_the_torch_network_is_the_same():
  net, variables = peer()
  found = peft_peers.logits(net, X).detach().numpy()
  np.testing.assert_allclose(Net().apply(variables, X), found, atol=1e-5)


@pytest.mark.parametrize("grouped", ["shared", "peft"])
def test_groups_and_axes_are_written(grouped, tmp_path):
  peft = peft_peers.load()
  net, variables = peer()
  rules = adapters.LoRA(
    rank=2, alpha=3, grouped=grouped, rank_pattern={"grouped": 4, "depthwise": 8}
  )
  adapted, tree = adapters.add(Net(), variables, rules, jax.random.key(0), X)
  tree = peft_peers.draw(tree)
  ours = adapted.apply(variables, tree, X)
  assert np.abs(ours - Net().apply(variables, X)).max() > 0.05
  peft_files.write(tmp_path, adapted, tree, variables, names=NAMES)
  theirs = peft_peers.logits(peft.PeftModel.from_pretrained(net, tmp_path).eval(), X)
  np.testing.assert_allclose(theirs.detach().numpy(), ours, atol=1e-4)


def test_groups_and_parts_are_read(tmp_path):
  peft = peft_peers.load()
  net, variables = peer()
  config = peft.LoraConfig(r=8, target_modules=["stem", "grouped", "depthwise", "last"])
  net = peft.get_peft_model(net, config).eval()
  peft_peers.shake(net)
  net.save_pretrained(tmp_path)
  adapted, tree = peft_files.read(tmp_path, Net(), variables, X, names=NAMES)
  theirs = peft_peers.logits(net, X).detach().numpy()
  np.testing.assert_allclose(adapted.apply(variables, tree, X), theirs, atol=1e-4)


class NnxNet(nnx.Module):
  def __init__(self, rngs):
    self.first, self.last = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

  def __call__(self, x):
    return self.last(nnx.relu(self.first(x)))


@pytest.mark.parametrize("rule", [adapters.LoRA, adapters.DoRA])
def test_nnx_models_come_back(rule, tmp_path):
  model, x = NnxNet(nnx.Rngs(0)), X.reshape(-1, 6)
  state, names = nnx.state(model), {"first": "net.0", "last": "net.2"}
  adapted, tree = adapters.add(model, state, rule(rank=2), jax.random.key(0), x)
  tree = peft_peers.draw(tree)
  peft_files.write(tmp_path, adapted, tree, state, names=names, base_model="a/model")
  again, read = peft_files.read(tmp_path, model, state, x, names=names)
  ours = adapted.apply(state, tree, x)
  np.testing.assert_allclose(again.apply(state, read, x), ours, atol=1e-5)
  said = json.loads((tmp_path / "adapter_config.json").read_text())
  assert said["base_model_name_or_path"] == "a/model"


MODELS = {
  "vit": vit.ViT(width=16, depth=1, heads=2, patch_size=16, num_classes=3, image_size=32),
  "dinov2": vit.ViT(
    width=16, depth=1, heads=2, patch_size=16, num_classes=3, image_size=32, layer_scale=True
  ),
  "resnet": resnet.ResNet(
    stage_sizes=(1,), bottleneck=False, width=4, num_classes=3, image_size=32
  ),
}  # fmt: skip
LAYOUTS = [
  ("vit", "timm", "attention/qkv", ["blocks.0.attn.qkv"]),
  ("vit", "transformers", "attention/qkv", [f"vit.layers.0.attention.{x}_proj" for x in "kqv"]),
  ("vit", "transformers4", "attention/qkv",
   [f"vit.encoder.layer.0.attention.attention.{x}" for x in ("key", "query", "value")]),
  ("dinov2", "transformers4", "mlp/in", ["dinov2.encoder.layer.0.mlp.fc1"]),
  ("vit", "torchvision", "mlp/in", ["encoder.layers.encoder_layer_0.mlp.0"]),
  ("resnet", "timm", "block1/unit1/conv1", ["layer1.0.conv1"]),
  ("resnet", "transformers", "stem/conv1", ["resnet.embedder.embedder.convolution"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "layout", "select", "modules"), LAYOUTS)
def test_layouts(name, layout, select, modules, tmp_path):
  model, x = MODELS[name], jnp.zeros((1, 32, 32, 3))
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), variables)
  adapted, tree = adapters.add(model, variables, adapters.LoRA(select), jax.random.key(0), x)
  peft_files.write(tmp_path, adapted, tree, variables, layout=layout)
  said = json.loads((tmp_path / "adapter_config.json").read_text())
  assert said["target_modules"] == modules
  keys = load_file(tmp_path / "adapter_model.safetensors")
  assert f"base_model.model.{modules[0]}.lora_A.weight" in keys
  again, read = peft_files.read(tmp_path, model, variables, x)
  assert {site.path for site in again.sites} == {site.path for site in adapted.sites}
  assert jax.tree.leaves(read)[0].dtype == jnp.float32


def test_what_cannot_be_written_is_an_error(tmp_path):
  model, x = MODELS["vit"], jnp.zeros((1, 32, 32, 3))
  variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), x))

  def write(rules, change=lambda tree: tree, **options):
    adapted, tree = adapters.add(model, variables, rules, jax.random.key(0), x)
    peft_files.write(tmp_path / "out", adapted, change(tree), variables, **options)

  with pytest.raises(ValueError, match=r"ssf at .* is SSF; PEFT's files take LoRA and DoRA"):
    write(adapters.SSF("mlp/in"))
  with pytest.raises(ValueError, match=r"layout is 'tim'; allowed: timm.*did you mean 'timm'"):
    write(adapters.LoRA("mlp"), layout="tim")
  with pytest.raises(ValueError, match="LoRA or DoRA, not both"):
    write([adapters.LoRA("mlp"), adapters.DoRA("attention")])
  with pytest.raises(ValueError, match="not finite; write an earlier state"):
    write(adapters.LoRA("mlp"), lambda tree: jax.tree.map(lambda leaf: leaf * np.nan, tree))
  with pytest.raises(ValueError, match=r"names has 'mlp'.*nearest modules are"):
    write(adapters.LoRA("mlp"), names={"mlp": "mlp"})
  with pytest.raises(ValueError, match="encoderblock_0/mlp/out has no name"):
    write(adapters.LoRA("mlp/out"), names={"encoderblock_0/mlp/in": "mlp"})
  with pytest.raises(ValueError, match="has no name among torchvision ViT"):
    write(adapters.LoRA("attention/qkv"), layout="torchvision")
  head = {"head": dict(variables["params"]["head"])}
  with pytest.raises(ValueError, match="head has an adapter and leaves of its own"):
    write(adapters.LoRA("head"), lambda tree: adapters.with_leaves(tree, head))
  assert not (tmp_path / "out").exists()


def test_the_example_of_the_documentation(tmp_path, monkeypatch):
  text = (config_files.ROOT / "docs/adapters.md").read_text()
  blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  (block,) = (own for own in blocks if "for_torch" in own)
  monkeypatch.chdir(tmp_path)
  model, images = MODELS["vit"], jnp.zeros((1, 32, 32, 3))
  variables = jax.jit(model.init)(jax.random.key(0), images)
  space = {"jax": jax, "model": model, "variables": variables, "images": images}
  exec(block, space)
  assert space["tree"]["head"]["leaves"]["bias"].shape == (3,)
  (site,) = space["adapted"].sites
  assert site.rules[0].rank == 8
