"""Pruned networks: smaller, equal to the masked ones, and the channels that a peer would take."""

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import pruning as benchmark
from subtune_jax import methods, models, pruning, weights
from subtune_jax.data import preprocess
from subtune_jax.deploy import classifier, description, folder
from subtune_jax.deploy.exporting import onnx_file
from subtune_jax.models import efficientnet
from subtune_jax.pruning import groups
from subtune_jax.training import loop
from tests import marks, timm_peer

RESNET50 = {"stage_sizes": (2, 2), "width": 8, "image_size": 32}
_SPECS = ((3, 1, 1, 8, 6), (3, 2, 4, 6, 10), (5, 1, 4, 10, 10), (3, 1, 4, 10, 12))
INVERTED = efficientnet.EfficientNet(
  num_classes=3, image_size=16, stem_features=8, features=20,
  blocks=tuple(efficientnet.BlockSpec(*spec) for spec in _SPECS),
)  # fmt: skip

_TINY = {"width": 24, "heads": 3, "depth": 2, "patch_size": 8, "image_size": 16}
LINEAR = {
  "convnext": (("convnext_tiny", 3), {"depths": (1, 2), "widths": (8, 12), "image_size": 16}),
  "vit": (("vit_ti16", 3), {**_TINY, "mlp_width": 40}),
  "siglip": (("siglip_vit_b16", 3), _TINY),
}
CONVOLUTIONAL = ("basic", "bottleneck", "inverted")


def network(model):
  """(model, variables): no leaf as it is initialised, activations of order 1."""
  x = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
  made = jax.eval_shape(model.init, jax.random.key(0), x)
  rng = np.random.default_rng(1)

  def draw(path, leaf):
    if leaf.ndim > 1:
      return jnp.asarray(rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape), leaf.dtype)
    first = 0.0 if path[-1].key in ("bias", "mean") else 1.0
    return jnp.asarray(first + 0.3 * rng.random(leaf.shape), leaf.dtype)

  return model, jax.tree_util.tree_map_with_path(draw, made)


@pytest.fixture(scope="module")
def networks():
  return {
    "basic": network(models.create("resnet14", 3, width=8, image_size=16)),
    "bottleneck": network(models.create("resnet50", 3, **RESNET50)),
    "inverted": network(INVERTED),
    **{name: network(models.create(*made, **options)) for name, (made, options) in LINEAR.items()},
  }


def logits(model, variables):
  x = jax.random.normal(jax.random.key(5), (4, model.image_size, model.image_size, 3))
  return np.asarray(jax.jit(model.apply)(variables, x))


def count(variables):
  return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def shapes(tree):
  return jax.tree.map(lambda leaf: leaf.shape, tree)


CASES = [
  ("basic", ("stem", "block1/unit1", "block1/unit2", "block2/unit1"), "global"),
  ("bottleneck", None, "local"),
  ("inverted", None, "global"),
  ("convnext", None, "local"),
  ("vit", None, "global"),
  ("basic", ("block3/unit1",), "local"),
  ("basic", ("block3/unit1", "block3/unit2"), "local"),
  ("bottleneck", ("block1/unit1", "block1/unit2"), "global"),
  ("inverted", ("block1", "block2", "block3"), "local"),
  ("vit", ("encoderblock_1",), "local"),
  ("siglip", None, "local"),
]


@pytest.mark.parametrize(("name", "blocks", "scope"), marks.first(5, CASES, several=True))
def test_the_smaller_network_answers_as_the_masked_one(networks, name, blocks, scope):
  model, variables = networks[name]
  kept = pruning.choose(model, variables, blocks or model.block_names, share=0.4, scope=scope)
  small, own = pruning.shrink(model, variables, kept)
  x = jnp.zeros((1, model.image_size, model.image_size, 3))
  made = jax.eval_shape(small.init, jax.random.key(0), x)
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
  for model, variables in (networks[name] for name in CONVOLUTIONAL):
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


def test_the_method_prunes_by_its_options(networks):
  model, variables = networks["basic"]
  blocks = ("block3/unit1", "block3/unit2")
  own = methods.DECLARED["pruned"]
  options = methods.options_of(own, {"blocks": list(blocks), "share": 0.25, "norm": "l1"})
  small, changed = own.prepare(model, variables, None, options)
  kept = pruning.choose(model, variables, blocks, share=0.25, norm="l1")
  assert small == pruning.shrink(model, variables, kept)[0]
  assert count(changed) < count(variables)


def test_latency_is_the_median_of_ratios_within_rounds(monkeypatch):
  clock, calls = iter([0, 1, 1, 3, 10, 14, 14, 22, 30, 31, 31, 61]), []
  monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
  found = benchmark.ratios([lambda: calls.append("a"), lambda: calls.append("b")], rounds=3)
  assert found == [1.0, 2.0]  # of 2, 2 and 30
  assert "".join(calls) == "ab" * 4  # the first round compiles


def test_hidden_channels_and_whole_heads_go_of_a_transformer(networks):
  model, variables = networks["vit"]
  kept = pruning.choose(model, variables, ("encoderblock_1",), share=0.4)
  heads, hidden = "encoderblock_1/attention/qkv", "encoderblock_1/mlp/in"
  assert {name: len(own) for name, own in kept.items()} == {heads: 2, hidden: 24}
  small, own = pruning.shrink(model, variables, kept)
  assert dict(small.pruned) == {heads: 2, hidden: 24}
  block = shapes(own["params"]["encoderblock_1"])
  assert block["attention"]["qkv"] == {"kernel": (24, 3 * 2 * 8), "bias": (3 * 2 * 8,)}
  assert block["attention"]["out"]["kernel"] == (16, 24)
  twice = pruning.choose(small, own, ("encoderblock_1",), share=0.5)  # a pruned network again
  assert {name: len(own) for name, own in twice.items()} == {heads: 1, hidden: 12}
  masked = logits(small, pruning.mask(small, own, twice))
  assert logits(*pruning.shrink(small, own, twice)) == pytest.approx(masked, abs=1e-5)


PEERS = {  # timm's network and options, ours and its options
  "vit": ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 4},
          "vit_ti16", {"image_size": 32, "depth": 2, "width": 32, "heads": 4}),
  "convnext": ("convnext_tiny", {"depths": (1, 2, 1, 1), "dims": (8, 16, 24, 32)},
               "convnext_tiny", {"depths": (1, 2, 1, 1), "widths": (8, 16, 24, 32)}),
}  # fmt: skip


@pytest.mark.parametrize(
  ("name", "norm"),
  [
    ("vit", "l1"),
    ("convnext", "l2"),
    pytest.param("vit", "l2", marks=pytest.mark.slow),
    pytest.param("convnext", "l1", marks=pytest.mark.slow),
  ],
)
@pytest.mark.filterwarnings("ignore:Unwrapped parameters")
def test_channels_and_heads_are_those_of_torch_pruning_on_timm(name, norm, tmp_path):
  timm, torch = timm_peer.load(), pytest.importorskip("torch")
  peer = pytest.importorskip("torch_pruning")
  theirs, their_options, ours, options = PEERS[name]
  torch.manual_seed(1)
  net = timm.create_model(theirs, num_classes=3, **their_options).eval()
  attentions, ignored = {}, []
  for path, layer in net.named_modules():
    last = path.rpartition(".")[2]
    if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
      ignored += [layer] if last not in ("fc1", "qkv") else []
    if last in ("fc1", "qkv"):  # no two channels or heads alike
      layer.weight.data *= torch.rand(len(layer.weight), 1)
    if last in ("fc2", "proj"):  # what reads is no part of our scores; here it is the same for all
      layer.weight.data = 0.1 * torch.sign(layer.weight.data)
    if last == "qkv":
      attentions[layer] = options["heads"]
  torch.save(net.state_dict(), tmp_path / "own.pth")
  model = models.create(ours, 3, **options)
  loaded = weights.load_pretrained(tmp_path / "own.pth", model, preprocessing="half")
  power = int(norm.removeprefix("l"))
  importance = peer.importance.MagnitudeImportance(power, group_reduction="sum", normalizer=None)
  x = torch.randn(2, 3, 32, 32)
  peer.pruner.MagnitudePruner(
    net, x, importance, pruning_ratio=0.5, ignored_layers=ignored, num_heads=attentions,
    prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=0.5,
  ).step()  # fmt: skip
  kept = pruning.choose(model, loaded.variables, model.block_names, share=0.5, norm=norm)
  small, own = pruning.shrink(model, loaded.variables, kept)
  pruned = [layer for path, layer in net.named_modules() if path.endswith((".fc1", ".qkv"))]
  flat = traverse_util.flatten_dict(own["params"], sep="/")
  for group, layer in zip(groups.of(model), pruned, strict=True):
    kernel = np.asarray(flat[f"{group.name}/kernel"])
    assert np.array_equal(kernel.T, layer.weight.detach().numpy()), group
  for layer in net.modules():
    if hasattr(layer, "qkv"):  # torch-pruning leaves that to its user
      layer.num_heads = options["heads"] // 2
      layer.attn_dim = layer.qkv.out_features // 3
  with torch.no_grad():
    expected = net(x).numpy()
  found = jax.jit(small.apply)(own, np.asarray(x).transpose(0, 2, 3, 1))
  assert np.asarray(found) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", [pytest.param("convnext", marks=pytest.mark.slow), "vit"])
def test_a_pruned_network_trains_and_its_folder_answers_and_is_exported(name, tmp_path):
  (registered, classes), options = LINEAR[name]
  model, variables = network(models.create(registered, classes, **options))
  blocks = model.block_names[-3:]
  small, variables = pruning.shrink(model, variables, pruning.choose(model, variables, blocks))
  rng = np.random.default_rng(0)
  train = loop.Examples(rng.integers(0, 256, (16, 16, 16, 3), np.uint8), np.arange(16) % classes)
  seen, names = preprocess.Preprocessing((120.0,) * 3, (60.0,) * 3), ("a", "b", "c")
  method = methods.sub_tuning(blocks, 1e-3, epochs=1)
  tuned = loop.fit(loop.Engine(small, seen, batch_size=8), variables, method, train, None).variables
  assert shapes(tuned["params"]) == shapes(variables["params"])
  kept = {"calibration": {}, "trained": {}, "figures": {}, "versions": {}, "created": ""}
  made = classifier.Classifier(small, tuned, seen, 16, "bicubic", names, 8, kept)
  described = description.Network(registered, {**options, "pruned": small.pruned})
  read = folder.load(folder.save(tmp_path / "best", described, made))
  assert read.model == small
  expected = made.logits(train.images)
  assert np.array_equal(read.logits(train.images), expected)
  pytest.importorskip("jax2onnx")
  session = pytest.importorskip("onnxruntime").InferenceSession(
    onnx_file.write(read, tmp_path / "x.onnx")
  )
  found = dict(zip([o.name for o in session.get_outputs()],
                   session.run(None, {"images": train.images}), strict=True))  # fmt: skip
  assert found["logits"] == pytest.approx(np.asarray(expected), abs=1e-4)


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
  model = models.create("bit_resnet50", num_classes=2, image_size=32)
  said = "a BitResNet cannot be pruned; allowed: ResNet, EfficientNet, ConvNeXt, ViT"
  with pytest.raises(ValueError, match=said):
    pruning.choose(model, {}, ("stem",))
