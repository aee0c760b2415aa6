"""LoRA and DoRA against peft; the others against torch forms written from the papers' equations."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import adapters

torch = pytest.importorskip("torch")


class Two(nn.Module):
  """A convolution in groups and a linear layer."""

  groups: int

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(6, (3, 3), strides=2, padding=1, feature_group_count=self.groups, name="conv")(x)
    return nn.Dense(5, name="linear")(x.reshape(x.shape[0], -1))


class TorchTwo(torch.nn.Module):
  def __init__(self, groups):
    super().__init__()
    self.conv = torch.nn.Conv2d(4, 6, 3, 2, 1, groups=groups)
    self.linear = torch.nn.Linear(6 * 3 * 3, 5)

  def forward(self, x):
    return self.linear(self.conv(x).permute(0, 2, 3, 1).flatten(1))


def array(tensor):
  return jnp.asarray(tensor.detach().numpy())


def params_of(model):
  """Ours from torch's, by the wrapped layers of peft."""
  conv, linear = (getattr(layer, "base_layer", layer) for layer in (model.conv, model.linear))
  return {
    "conv": {"kernel": array(conv.weight.permute(2, 3, 1, 0)), "bias": array(conv.bias)},
    "linear": {"kernel": array(linear.weight.T), "bias": array(linear.bias)},
  }


def leaves_of(layer, scaling):
  a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
  if a.ndim == 4:
    found = {"a": array(a.permute(2, 3, 1, 0)), "b": array(b[:, :, 0, 0].T)}
  else:
    found = {"a": array(a.T), "b": array(b.T)}
  return {**found, "scaling": jnp.float32(scaling)}


@pytest.mark.parametrize(("dora", "groups"), [(False, 1), (False, 2), (True, 1)])
def test_results_and_a_step_are_those_of_peft(dora, groups):
  peft = pytest.importorskip("peft")
  torch.manual_seed(0)
  base = TorchTwo(groups)
  config = peft.LoraConfig(
    r=4, lora_alpha=6, target_modules=["conv", "linear"], use_dora=dora, init_lora_weights=False
  )
  theirs = peft.get_peft_model(base, config).base_model.model
  x = torch.randn(3, 4, 6, 6)
  images = array(x.permute(0, 2, 3, 1))
  params = params_of(theirs)
  rule = (adapters.DoRA if dora else adapters.LoRA)("*", rank=4, alpha=6, grouped="peft")
  adapted, tree = adapters.add(Two(groups), {"params": params}, rule, jax.random.key(0), images)
  name = rule.name
  for path in ("conv", "linear"):
    layer = getattr(theirs, path)
    own = leaves_of(layer, 1.5)
    assert jax.tree.map(jnp.shape, own).items() <= jax.tree.map(jnp.shape, tree[path][name]).items()
    if dora:
      kernel = params[path]["kernel"]
      lengths = jnp.sqrt(jnp.sum(kernel**2, axis=tuple(range(kernel.ndim - 1))))
      theirs_m = array(layer.lora_magnitude_vector["default"].weight).reshape(-1)
      own["magnitude"] = theirs_m - lengths
    tree[path][name] = own

  def loss(tree):
    y = adapted.apply({"params": params}, tree, images)
    return jnp.mean(y**2), y

  (_, y), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(tree)
  out = theirs(x)
  np.testing.assert_allclose(y, array(out), atol=1e-5)
  (out**2).mean().backward()
  for path in ("conv", "linear"):
    layer, own = getattr(theirs, path), gradient[path][name]
    a, b = (getattr(layer, n)["default"].weight.grad for n in ("lora_A", "lora_B"))
    if a.ndim == 4:
      a, b = a.permute(2, 3, 1, 0), b[:, :, 0, 0].T
    else:
      a, b = a.T, b.T
    np.testing.assert_allclose(own["a"], array(a), atol=1e-5)
    np.testing.assert_allclose(own["b"], array(b), atol=1e-5)
    assert float(own["scaling"]) == 0
    if dora:
      m = layer.lora_magnitude_vector["default"].weight.grad
      np.testing.assert_allclose(own["magnitude"], array(m).reshape(-1), atol=1e-5)
  for group in theirs.parameters():
    assert group.grad is None or group.requires_grad


# ------------------------------------------------------------------ the others, by their equations

WIDTH, RANK, TOKENS = 8, 4, 10  # a class token and 3x3 patches


class Mlp(nn.Module):
  """A linear layer under another name, in a module of its own."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(WIDTH, name="in")(x)


class Around(nn.Module):
  """The module that adapters go to."""

  @nn.compact
  def __call__(self, x):
    return Mlp(name="mlp")(x)


def tensor(x):
  return torch.from_numpy(np.array(x))


def linear(leaves, which):
  return lambda x: x @ tensor(leaves[which]) + tensor(leaves[f"{which}_bias"])


def quick_gelu(x):
  return x * torch.sigmoid(1.702 * x)


def adaptformer(base, leaves, x):
  return base(x) + 0.1 * linear(leaves, "up")(torch.relu(linear(leaves, "down")(x)))


def houlsby(base, leaves, x):
  y = base(x)
  return y + linear(leaves, "up")(torch.nn.functional.gelu(linear(leaves, "down")(y)))


def convpass(base, leaves, x):
  h = quick_gelu(linear(leaves, "down")(x))
  weight = tensor(leaves["conv"]).permute(3, 2, 0, 1)
  bias = tensor(leaves["conv_bias"])
  patches = h[:, 1:].reshape(-1, 3, 3, RANK).permute(0, 3, 1, 2)
  patches = torch.nn.functional.conv2d(patches, weight, bias, padding=1)
  patches = patches.permute(0, 2, 3, 1).reshape(-1, 9, RANK)
  token = h[:, :1].reshape(-1, 1, 1, RANK).permute(0, 3, 1, 2)
  token = torch.nn.functional.conv2d(token, weight, bias, padding=1)
  token = token.permute(0, 2, 3, 1).reshape(-1, 1, RANK)
  return base(x) + linear(leaves, "up")(quick_gelu(torch.cat([token, patches], 1)))


def repadapter(base, leaves, x):
  down = torch.nn.Conv1d(WIDTH, RANK, 1)
  up = torch.nn.Conv1d(RANK, WIDTH, 1, groups=2)
  with torch.no_grad():
    down.weight.copy_(tensor(leaves["down"]).T[..., None])
    down.bias.copy_(tensor(leaves["down_bias"]))
    up.weight.copy_(tensor(leaves["up"]).T[..., None])
    up.bias.copy_(tensor(leaves["up_bias"]))
  return base(x + up(down(x.transpose(1, 2))).transpose(1, 2))


def ssf(base, leaves, x):
  return base(x) * tensor(leaves["scale"]) + tensor(leaves["shift"])


OTHERS = {
  "adaptformer": (adapters.AdaptFormer("mlp", rank=RANK), adaptformer),
  "houlsby": (adapters.Houlsby("mlp", rank=RANK), houlsby),
  "convpass": (adapters.Convpass("mlp", rank=RANK), convpass),
  "repadapter": (adapters.RepAdapter("mlp/in", rank=RANK), repadapter),
  "ssf": (adapters.SSF("mlp/in"), ssf),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_are_those_of_torch(name):
  rule, form = OTHERS[name]
  random = np.random.default_rng(0)
  x = random.standard_normal((2, TOKENS, WIDTH)).astype(np.float32)
  model = Around()
  variables = jax.jit(model.init)(jax.random.key(0), x)
  adapted, tree = adapters.add(model, variables, rule, jax.random.key(1), x)
  (path,) = tree
  leaves = jax.tree.map(
    lambda v: np.asarray(v + 0.3 * random.standard_normal(v.shape), np.float32), tree[path][name]
  )
  own = variables["params"]["mlp"]["in"]
  kernel, bias = tensor(own["kernel"]), tensor(own["bias"])
  wanted = form(lambda x: x @ kernel + bias, leaves, tensor(x))
  y = jax.jit(adapted.apply)(variables, {path: {name: leaves}}, x)
  np.testing.assert_allclose(y, array(wanted), atol=1e-5)
  if name in ("repadapter", "ssf"):
    merged = adapted.merge(variables["params"], {path: {name: leaves}})
    np.testing.assert_allclose(jax.jit(model.apply)({"params": merged}, x), y, atol=1e-5)
    back = adapted.unmerge(merged, {path: {name: leaves}})
    np.testing.assert_allclose(back["mlp"]["in"]["kernel"], own["kernel"], atol=1e-5)
    np.testing.assert_allclose(back["mlp"]["in"]["bias"], own["bias"], atol=1e-5)


# ------------------------------------------------------------------ VPT, as its authors lay tokens


class Attention(nn.Module):
  """One head that mixes all tokens."""

  @nn.compact
  def __call__(self, x):
    q, k, v = (nn.Dense(WIDTH, name=name)(x) for name in "qkv")
    return x + nn.softmax(q @ k.swapaxes(1, 2)) @ v


class Blocks(nn.Module):
  """Three blocks of tokens."""

  @nn.compact
  def __call__(self, x):
    for name in ("first", "second", "third"):
      x = Attention(name=name)(x)
    return x


def attention(params, x):
  q, k, v = (x @ tensor(params[n]["kernel"]) + tensor(params[n]["bias"]) for n in "qkv")
  return x + torch.softmax(q @ k.transpose(1, 2), -1) @ v


@pytest.mark.parametrize("deep", [False, True])
def test_prompts_and_their_gradients_are_those_of_torch(deep):
  """Behind the class token; shallow ones run through all blocks, deep ones are put in anew."""
  random, count = np.random.default_rng(0), 3
  x = random.standard_normal((2, TOKENS, WIDTH)).astype(np.float32)
  model = Blocks()
  variables = jax.jit(model.init)(jax.random.key(0), x)
  rule = adapters.VPT("/*", prompts=count, deep=deep)
  adapted, tree = adapters.add(model, variables, rule, jax.random.key(1), x)
  assert sorted(path for path, own in tree.items() if own.get("vpt")) == (
    ["first", "second", "third"] if deep else ["first"]
  )
  tree = jax.tree.map(lambda v: random.standard_normal(v.shape).astype(np.float32), tree)

  def loss(tree):
    y = adapted.apply(variables, tree, x)
    return jnp.mean(y**2), y

  (_, y), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(tree)
  prompts = {
    path: tensor(own["vpt"]["prompts"]).requires_grad_() for path, own in tree.items() if own
  }
  tokens = tensor(x)
  for name in ("first", "second", "third"):
    if name in prompts:
      rest = tokens if name == "first" else torch.cat([tokens[:, :1], tokens[:, 1 + count :]], 1)
      own = prompts[name].expand(2, -1, -1)
      tokens = torch.cat([rest[:, :1], own, rest[:, 1:]], 1)
    tokens = attention(variables["params"][name], tokens)
  wanted = torch.cat([tokens[:, :1], tokens[:, 1 + count :]], 1)
  (wanted**2).mean().backward()
  np.testing.assert_allclose(y, array(wanted), atol=1e-5)
  for path, own in prompts.items():
    assert float(own.grad.abs().max()) > 1e-4
    np.testing.assert_allclose(gradient[path]["vpt"]["prompts"], array(own.grad), atol=1e-6)
