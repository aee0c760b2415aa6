"""Multiply-adds against hand counts, the literature's figures and torch's counter."""

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import masks, models
from subtune_jax.models import backbone, convolution, efficientnet, flops

# Of ResNet-50's forward pass at 224 pixels: before each of its residual blocks.
_RESNET50_SHARES = (
  *(0.029, 0.085, 0.139, 0.192, 0.283, 0.337, 0.390, 0.444),
  *(0.535, 0.588, 0.641, 0.695, 0.748, 0.802, 0.893, 0.946),
)
_SPEC = efficientnet.BlockSpec


def _bottleneck(side: int, c: int, inner: int, stride: int, conv2_side: int) -> int:
  """A bottleneck that changes the shape, on a map of `side`; the 3x3's output has `conv2_side`."""
  out = (side // stride) ** 2
  first = side**2 * c * inner + conv2_side**2 * 9 * inner**2
  return first + out * inner * 4 * inner + out * c * 4 * inner


# name, options, unit -> multiply-adds by hand; 5 classes.
_BY_HAND = [
  (
    "efficientnet_lite0",
    {
      "image_size": 32,
      "blocks": (_SPEC(3, 1, 1, 8, 8), _SPEC(5, 2, 6, 8, 12)),
      "stem_features": 8,
      "features": 20,
    },
    {
      "stem": 16**2 * 9 * 3 * 8,
      "block0": 16**2 * (9 * 8 + 8 * 8),
      "block1": 16**2 * 8 * 48 + 8**2 * (25 * 48 + 48 * 12),
      "top": 8**2 * 12 * 20,
      "head": 20 * 5,
    },
  ),
  (
    "convnext_tiny",
    {"image_size": 32, "depths": (2, 1), "widths": (8, 12)},
    {
      "stem": 8**2 * 16 * 3 * 8,
      "block1/unit1": 8**2 * (49 * 8 + 2 * 8 * 32),
      "block1/unit2": 8**2 * (49 * 8 + 2 * 8 * 32),
      "block2/unit1": 4**2 * (4 * 8 * 12 + 49 * 12 + 2 * 12 * 48),
      "top": 0,
      "head": 12 * 5,
    },
  ),
  (
    "resnet26",
    {"image_size": 16, "stage_sizes": (1, 1), "width": 4},
    {
      "stem": 16**2 * 9 * 3 * 4,
      "block1/unit1": 16**2 * 2 * 9 * 4 * 4,
      "block2/unit1": 8**2 * (9 * 4 * 8 + 9 * 8 * 8 + 4 * 8),
      "head": 8 * 5,
    },
  ),
  (
    "bit_resnet50",
    {"image_size": 32, "stage_sizes": (1, 1), "width": 32},
    {
      "stem": 16**2 * 49 * 3 * 32,
      "block1/unit1": _bottleneck(8, 32, 32, 1, 8),
      "block2/unit1": _bottleneck(8, 128, 64, 2, 4),
      "top": 0,
      "head": 256 * 5,
    },
  ),
  (
    "clip_resnet50",
    {"image_size": 64, "stage_sizes": (1, 1, 1, 1), "width": 8, "heads": 4, "features": 10},
    {
      "stem": 32**2 * 9 * (3 * 4 + 4 * 4 + 4 * 8),
      "block1/unit1": _bottleneck(16, 8, 8, 1, 16),
      "block2/unit1": _bottleneck(16, 32, 16, 2, 16),
      "block3/unit1": _bottleneck(8, 64, 32, 2, 8),
      "block4/unit1": _bottleneck(4, 128, 64, 2, 4),
      # One query; keys and values of the mean and 4 positions.
      "attention_pool": 256**2 + 2 * 5 * 256**2 + 2 * 5 * 256 + 256 * 10,
      "head": 10 * 5,
    },
  ),
  (
    "vit_ti16",
    {"image_size": 32, "patch_size": 8, "width": 12, "heads": 2, "depth": 2},
    {
      "embedding": 16 * 8**2 * 3 * 12,
      **{f"encoderblock_{i}": 17 * 12 * 12 * (4 + 8) + 2 * 17**2 * 12 for i in (0, 1)},
      "encoder_norm": 0,
      "head": 12 * 5,
    },
  ),
]


@pytest.mark.parametrize(("name", "options", "expected"), _BY_HAND, ids=lambda v: str(v)[:14])
def test_small_models_have_the_counts_that_the_hand_gives(name, options, expected):
  got = flops.count_macs(models.create(name, 5, **options))
  assert got == expected
  assert list(got) == list(expected)


def test_every_family_is_counted_by_hand():
  families = {type(models.create(name, 5)) for name in models.names()}
  assert families == {type(models.create(name, 5)) for name, *_ in _BY_HAND}


def test_resnet50_has_the_known_shares_before_each_block():
  macs = flops.count_macs(models.create("resnet50", 1000))
  total = sum(macs.values())
  assert total == pytest.approx(4.09e9, rel=0.01)
  starts = (np.cumsum(list(macs.values())) / total)[:16]
  np.testing.assert_allclose(starts, _RESNET50_SHARES, rtol=0.01, atol=5e-4)


@pytest.mark.parametrize(
  ("name", "gigamacs"),
  [
    ("resnet18", 1.81),
    ("resnet34", 3.66),
    ("resnet101", 7.80),
    ("vit_b16", 17.56),
    ("vit_b32", 4.41),
    ("convnext_tiny", 4.46),
    ("convnext_small", 8.68),
    ("convnext_base", 15.36),
  ],
)
def test_totals_at_1000_classes_are_those_that_torchvision_publishes(name, gigamacs):
  total = sum(flops.count_macs(models.create(name, 1000)).values())
  assert total / 1e9 == pytest.approx(gigamacs, abs=0.006)


def test_convnext_is_what_torchs_counter_counts():
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  from torch.utils import flop_counter

  config = transformers.ConvNextConfig(
    depths=[2, 1, 3, 1], hidden_sizes=[8, 12, 16, 24], num_labels=7
  )
  net = transformers.ConvNextForImageClassification(config).eval()
  with torch.no_grad(), flop_counter.FlopCounterMode(display=False) as counter:
    net(torch.zeros(1, 3, 96, 96))
  model = models.create(
    "convnext_tiny", 7, depths=(2, 1, 3, 1), widths=(8, 12, 16, 24), image_size=96
  )
  assert 2 * sum(flops.count_macs(model).values()) == counter.get_total_flops()


def test_efficientnet_lite_is_what_torchs_counter_counts():
  torch = pytest.importorskip("torch")
  peer = pytest.importorskip("efficientnet_lite_pytorch")
  from torch.utils import flop_counter

  net = peer.EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
  with torch.no_grad(), flop_counter.FlopCounterMode(display=False) as counter:
    net(torch.zeros(1, 3, 224, 224))
  macs = flops.count_macs(models.create("efficientnet_lite0", 1000))
  assert 2 * sum(macs.values()) == counter.get_total_flops()


@pytest.mark.parametrize("name", ["resnet18", "vit_ti16", "convnext_tiny", "efficientnet_lite0"])
def test_parameters_of_the_units_are_the_models(name):
  model = models.create(name, 10)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  counted = {unit.name: unit.parameters for unit in flops.units(model)}
  assert sum(counted.values()) == masks.count_params(params)
  first = model.block_names[0]
  assert counted[first] == masks.count_params(params[first])


def test_the_counts_are_those_of_bfloat16_too():
  small = {"image_size": 32, "depths": (1, 1), "widths": (8, 12)}
  counts = [
    flops.count_macs(models.create("convnext_tiny", 5, dtype, **small))
    for dtype in (jnp.float32, jnp.bfloat16)
  ]
  assert counts[0] == counts[1]


# ------------------------------------------------------------------ programs


class _Program(nn.Module):
  """Products inside of control flow."""

  kind: str

  @nn.compact
  def __call__(self, x):
    x = jnp.mean(x, (1, 2))
    w = self.param("w", nn.initializers.ones, (3, 3))
    if self.kind == "scan":
      x = lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]
    if self.kind == "remat":
      x = jax.checkpoint(lambda x: x @ w @ w)(x)
    if self.kind == "cond":
      x = lax.cond(jnp.sum(x) > 0, lambda x: x @ w, lambda x: x @ w @ w, x)
    if self.kind == "while":
      x = lax.while_loop(lambda x: jnp.sum(x) > 0, lambda x: x @ w, x)
    if self.kind == "jit of vmap":
      x = jax.jit(jax.vmap(lambda x: x @ w))(x)
    if self.kind == "platforms":
      x = convolution.depthwise(x[:, None, None], w.reshape(3, 1, 1, 3)[:1], 1)[:, 0, 0]
    return x


class _Backbone(backbone.Backbone, kw_only=True):
  kind: str
  image_size: int = 4

  @property
  def block_names(self):
    return (self.kind,)

  @nn.nowrap
  def make_block(self, block, name, use_batch_statistics):
    return _Program(block, name=name)


@pytest.mark.parametrize(
  ("kind", "expected"),
  [("scan", 5 * 9), ("remat", 2 * 9), ("cond", 2 * 9), ("jit of vmap", 9), ("platforms", 3)],
)
def test_products_inside_of_control_flow_count(kind, expected):
  assert flops.count_macs(_Backbone(num_classes=2, kind=kind)) == {kind: expected, "head": 6}


def test_a_while_loop_with_products_is_an_error():
  with pytest.raises(ValueError, match=r"while loop .* lax\.scan"):
    flops.count_macs(_Backbone(num_classes=2, kind="while"))
