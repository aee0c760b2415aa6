"""Pruned networks: smaller, equal to the masked ones, and the channels that a peer would take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import pruning as benchmark
from subtune_jax import models, pruning
from subtune_jax.models import efficientnet
from subtune_jax.pruning import groups

RESNET50 = {"stage_sizes": (2, 2), "width": 8, "image_size": 32}
_SPECS = ((3, 1, 1, 8, 6), (3, 2, 4, 6, 10), (5, 1, 4, 10, 10), (3, 1, 4, 10, 12))
INVERTED = efficientnet.EfficientNet(
  num_classes=3, image_size=16, stem_features=8, features=20,
  blocks=tuple(efficientnet.BlockSpec(*spec) for spec in _SPECS),
)  # fmt: skip


def network(model):
  """(model, variables) with running statistics, scales and shifts that are not the initial ones."""
  size = model.image_size
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))
  keys = iter(jax.random.split(jax.random.key(1), 1000))
  changed = jax.tree.map(
    lambda x: x + 0.3 * jax.random.uniform(next(keys), x.shape) if x.ndim == 1 else x, variables
  )
  return model, changed


@pytest.fixture(scope="module")
def networks():
  return {
    "basic": network(models.create("resnet14", 3, width=8, image_size=16)),
    "bottleneck": network(models.create("resnet50", 3, **RESNET50)),
    "inverted": network(INVERTED),
  }


def logits(model, variables):
  x = jax.random.normal(jax.random.key(5), (4, model.image_size, model.image_size, 3))
  return np.asarray(jax.jit(model.apply)(variables, x))


def count(variables):
  return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def shapes(tree):
  return jax.tree.map(lambda leaf: leaf.shape, tree)


CASES = [
  ("basic", ("block3/unit1",), "local"),
  ("basic", ("block3/unit1", "block3/unit2"), "local"),
  ("basic", ("stem", "block1/unit1", "block1/unit2", "block2/unit1"), "global"),
  ("bottleneck", None, "local"),
  ("bottleneck", ("block1/unit1", "block1/unit2"), "global"),
  ("inverted", ("block1", "block2", "block3"), "local"),
  ("inverted", None, "global"),
]


@pytest.mark.parametrize(("name", "blocks", "scope"), CASES)
def test_the_smaller_network_answers_as_the_masked_one(networks, name, blocks, scope):
  model, variables = networks[name]
  kept = pruning.choose(model, variables, blocks or model.block_names, share=0.4, scope=scope)
  small, own = pruning.shrink(model, variables, kept)
  made = jax.eval_shape(small.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  assert shapes(own) == shapes(made)
  masked = logits(model, pruning.mask(model, variables, kept))
  assert logits(small, own) == pytest.approx(masked, abs=2e-5 * float(abs(masked).max()))
  whole = logits(model, variables)
  assert abs(masked - whole).max() > 1e-3 * abs(whole).max()
  assert count(own) < 0.99 * count(variables)


def test_a_shortcut_s_channels_go_only_with_all_that_write_them(networks):
  model, variables = networks["basic"]

  def names(blocks):
    return set(pruning.choose(model, variables, blocks))

  assert names(("block3/unit2",)) == {"block3/unit2/conv1"}
  both = names(("block3/unit1", "block3/unit2"))
  assert both == {"block3/unit1/conv1", "block3/unit2/conv1", "block3/unit1/conv2"}
  own = {group.name: group for group in groups.of(model)}
  stream = own["block3/unit1/conv2"]
  assert sorted(stream.writers) == [
    "block3/unit1/conv2", "block3/unit1/downsample", "block3/unit2/conv2"
  ]  # fmt: skip
  assert stream.readers == ["block3/unit2/conv1", "head"]
  # Basic units of the first stage have no projection: the stem writes there too.
  assert own["stem/conv1"].writers == ["stem/conv1", "block1/unit1/conv2", "block1/unit2/conv2"]


def test_every_channel_of_a_network_is_in_one_group_and_read(networks):
  for model, variables in networks.values():
    found = groups.of(model)
    written = [layer for group in found for layer in group.writers]
    kernels = {
      "/".join(str(k.key) for k in path[:-1])
      for path, _ in jax.tree_util.tree_flatten_with_path(variables["params"])[0]
      if str(path[-1].key) == "kernel"
    }
    assert sorted(written) == sorted(kernels - {"head"})
    read = {layer for group in found for layer in group.readers}
    first = {"stem/conv1", "stem/conv"}
    depthwise = {layer for layer in kernels if layer.endswith("depthwise")}
    assert read == kernels - first - depthwise


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("scope", pruning.SCOPES)
def test_how_many_stay(networks, share, scope):
  model, variables = networks["bottleneck"]
  kept = pruning.choose(model, variables, model.block_names, share=share, scope=scope)
  whole = pruning.choose(model, variables, model.block_names, share=0.0)
  assert kept.keys() == {group.name for group in groups.of(model)}
  for name, own in kept.items():
    size = len(whole[name])
    assert len(own) >= 1
    assert len(set(own.tolist())) == len(own)
    if scope == "local":
      assert len(own) == size - int(share * size)
    else:
      assert len(own) >= size - int(pruning.MOST * size)
  if scope == "global" and share < 0.5:
    total = sum(map(len, whole.values()))
    assert sum(map(len, kept.values())) == total - int(share * total)


@pytest.mark.parametrize(("norm", "p"), [("l1", 1), ("l2", 2)])
def test_the_channels_are_those_of_torch_pruning(networks, norm, p):
  torch = pytest.importorskip("torch")
  peer = pytest.importorskip("torch_pruning")
  model, variables = networks["bottleneck"]
  unit = variables["params"]["block2"]["unit2"]
  convolutions = []
  for layer in ("conv1", "conv2", "conv3"):
    kernel = np.array(unit[layer]["kernel"])
    made = torch.nn.Conv2d(
      kernel.shape[2], kernel.shape[3], kernel.shape[0], padding=kernel.shape[0] // 2, bias=False
    )
    made.weight.data = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
    convolutions += [made]
  network_ = torch.nn.Sequential(*convolutions)
  importance = peer.importance.MagnitudeImportance(p=p, group_reduction="first", normalizer=None)
  pruner = peer.pruner.MagnitudePruner(
    network_, torch.zeros(1, convolutions[0].in_channels, 8, 8), importance,
    pruning_ratio=0.5, ignored_layers=[convolutions[2]],
  )  # fmt: skip
  pruner.step()
  kept = pruning.choose(model, variables, ("block2/unit2",), share=0.5, norm=norm)
  first = np.array(unit["conv1"]["kernel"])[..., kept["block2/unit2/conv1"]]
  second = np.array(unit["conv2"]["kernel"])[..., kept["block2/unit2/conv2"]]
  second = second[:, :, kept["block2/unit2/conv1"]]
  third = np.array(unit["conv3"]["kernel"])[:, :, kept["block2/unit2/conv2"]]
  for own, theirs in zip((first, second, third), convolutions, strict=True):
    assert np.array_equal(own.transpose(3, 2, 0, 1), theirs.weight.detach().numpy())


def test_latency_is_the_median_of_ratios_within_rounds(monkeypatch):
  clock, calls = iter([0, 1, 1, 3, 10, 14, 14, 22, 30, 31, 31, 61]), []
  monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
  found = benchmark.ratios([lambda: calls.append("a"), lambda: calls.append("b")], rounds=3)
  assert found == [1.0, 2.0]  # of 2, 2 and 30
  assert "".join(calls) == "ab" * 4  # the first round compiles


@pytest.mark.parametrize(
  ("name", "blocks", "options", "said"),
  [
    ("basic", ("block9",), {}, "Unknown block to prune 'block9'"),
    ("basic", "stem", {}, "give a sequence of block names"),
    ("basic", ("stem",), {}, "write no channels that no other block writes"),
    ("basic", ("block3/unit1",), {"share": 1.0}, r"share is 1.0; .*in \[0, 1\)"),
    ("basic", ("block3/unit1",), {"norm": "l3"}, "Unknown norm 'l3'"),
    ("basic", ("block3/unit1",), {"scope": "both"}, "Unknown scope 'both'"),
  ],
)
def test_what_cannot_be_pruned_is_said(networks, name, blocks, options, said):
  with pytest.raises(ValueError, match=said):
    pruning.choose(*networks[name], blocks, **options)


def test_another_family_is_refused():
  model = models.create("vit_ti16", num_classes=2, image_size=32)
  with pytest.raises(ValueError, match="a ViT cannot be pruned; allowed: ResNet and EfficientNet"):
    pruning.choose(model, {}, ("encoderblock_0",))
