"""The registry: a row of parameter counts for every model, and the errors of `create`."""

import functools

import jax
import jax.numpy as jnp
import pytest

from subtune_jax import masks, models
from subtune_jax.training import trainable_split
from tests import marks


def _cifar_resnet(units: int) -> tuple[int, int]:
  """Parameters and running statistics of the CIFAR form, `units` a stage, 1000 classes."""
  convs = [(3, 16, 9)]
  for stage, width in enumerate((16, 32, 64)):
    before = (16, 16, 32)[stage]
    convs += [(before, width, 9)] + [(width, width, 9)] * (2 * units - 1)
    convs += [(before, width, 1)] if before != width else []
  kernels = sum(fin * fout * taps for fin, fout, taps in convs)
  norms = sum(fout for _, fout, _ in convs)
  return kernels + 2 * norms + 64 * 1000 + 1000, 2 * norms


# The published counts of DINOv2 are at 518 pixels (1,370 positions, here 257) with a mask token and
# without a head; with registers these have no positions.
def _dinov2(published: int, width: int, registers: int = 0) -> int:
  return published - (1370 - 257 + 1 - registers) * width + 2 * width * 1000 + 1000


# Parameters with 1000 classes, parameters of the head, running statistics, blocks. CLIP's published
# counts are of the visual tower; the head on its embedding is added.
_COUNTS = {
  "bit_resnet50": (25_549_352, 2_049_000, 0, 18),
  "clip_resnet50": (38_316_896 + 1_025_000, 1_025_000, 53_248, 18),
  "clip_vit_b16": (86_192_640 + 513_000, 513_000, 0, 15),
  "clip_vit_b32": (87_849_216 + 513_000, 513_000, 0, 15),
  "clip_vit_l14": (303_966_208 + 769_000, 769_000, 0, 27),
  "convnext_base": (88_591_464, 1_025_000, 0, 38),
  "convnext_small": (50_223_688, 769_000, 0, 38),
  "convnext_tiny": (28_589_128, 769_000, 0, 20),
  "dinov2_reg_vit_b14": (_dinov2(86_580_480, 768, 4), 1_537_000, 0, 14),
  "dinov2_reg_vit_l14": (_dinov2(304_368_640, 1024, 4), 2_049_000, 0, 26),
  "dinov2_reg_vit_s14": (_dinov2(22_056_576, 384, 4), 769_000, 0, 14),
  "dinov2_vit_b14": (_dinov2(86_580_480, 768), 1_537_000, 0, 14),
  "dinov2_vit_l14": (_dinov2(304_368_640, 1024), 2_049_000, 0, 26),
  "dinov2_vit_s14": (_dinov2(22_056_576, 384), 769_000, 0, 14),
  "efficientnet_lite0": (4_652_008, 1_281_000, 42_016, 18),
  "efficientnet_lite1": (5_416_680, 1_281_000, 53_664, 23),
  "efficientnet_lite2": (6_092_072, 1_281_000, 58_096, 23),
  "resnet101": (44_549_160, 2_049_000, 105_344, 34),
  "resnet14": (_cifar_resnet(2)[0], 65_000, _cifar_resnet(2)[1], 7),
  "resnet18": (11_689_512, 513_000, 9_600, 9),
  "resnet26": (_cifar_resnet(4)[0], 65_000, _cifar_resnet(4)[1], 13),
  "resnet34": (21_797_672, 513_000, 17_024, 17),
  "resnet50": (25_557_032, 2_049_000, 53_120, 17),
  "siglip_vit_b16": (92_884_224 + 769_000, 769_000, 0, 15),
  "vit_b16": (86_567_656, 769_000, 0, 14),
  "vit_b32": (88_224_232, 769_000, 0, 14),
  "vit_l16": (304_326_632, 1_025_000, 0, 26),
  "vit_l32": (306_535_400, 1_025_000, 0, 26),
  "vit_s16": (22_050_664, 385_000, 0, 14),
  "vit_s32": (22_878_952, 385_000, 0, 14),
  "vit_ti16": (5_717_416, 193_000, 0, 14),
  "vit_ti32": (6_131_560, 193_000, 0, 14),
}


# The smallest first, and before them what has no row.
_BY_SIZE = sorted(models.names(), key=lambda name: _COUNTS.get(name, (0,))[0])


@functools.cache
def _shapes(name: str, num_classes: int, dtype=jnp.float32):
  model = models.create(name, num_classes, dtype)
  images = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
  return model, jax.eval_shape(model.init, jax.random.key(0), images)


@pytest.mark.parametrize("name", marks.first(12, _BY_SIZE))
def test_every_registered_model_has_its_row_of_counts(name):
  assert name in _COUNTS, f"{name} is registered without a row in _COUNTS: add one"
  model, shapes = _shapes(name, 1000)
  got = (
    masks.count_params(shapes["params"]),
    masks.count_params(shapes["params"]["head"]),
    masks.count_params(shapes.get("batch_stats", {})),
    len(model.block_names),
  )
  assert got == _COUNTS[name]


def test_no_row_outlives_its_model():
  assert set(_COUNTS) == set(models.names())


@pytest.mark.parametrize("name", marks.first(6, models.names()))
def test_only_the_head_depends_on_the_number_of_classes(name):
  _, shapes = _shapes(name, 45, jnp.bfloat16)
  total, head, _, _ = _COUNTS[name]
  assert masks.count_params(shapes["params"]) == total - head + 45 * head // 1000
  assert shapes["params"]["head"]["bias"].shape == (45,)


@pytest.mark.parametrize("name", marks.first(8, _BY_SIZE))
def test_the_variables_are_the_blocks_and_a_head(name):
  model, shapes = _shapes(name, 45, jnp.bfloat16)
  assert set(shapes) <= {"params", "batch_stats"}
  units = (*model.block_names, "head")
  owners = [trainable_split.unit_of(path, units) for path in masks.paths(shapes["params"])]
  assert set(owners) == set(units)
  stats = masks.paths(shapes.get("batch_stats", {}))
  assert {trainable_split.unit_of(path, units) for path in stats} <= set(model.block_names)


@pytest.mark.parametrize("name", marks.first(8, _BY_SIZE))
def test_parameters_are_float32_whatever_the_computation_is(name):
  _, shapes = _shapes(name, 45, jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


def test_an_unknown_name_is_an_error_with_the_nearest_ones():
  with pytest.raises(ValueError, match=r"'resnet_50'. Did you mean 'resnet50'"):
    models.create("resnet_50", 45)
  with pytest.raises(ValueError, match=r"'zzz'. Allowed: .*'efficientnet_lite0'"):
    models.create("zzz", 45)


def test_options_change_fields_and_unknown_ones_are_an_error():
  assert models.create("resnet50", 45, image_size=96).image_size == 96
  with pytest.raises(ValueError, match=r"option of resnet50 'patch'.*'stem'"):
    models.create("resnet50", 45, patch=8)
  with pytest.raises(ValueError, match=r"option of resnet50 'dtypes'"):
    models.create("resnet50", 45, dtypes=8)


@pytest.mark.parametrize("num_classes", [0, -1, 1.0, "45", True, None])
def test_a_number_of_classes_that_is_no_positive_integer_is_an_error(num_classes):
  with pytest.raises(ValueError, match=f"num_classes={num_classes!r}"):
    models.create("efficientnet_lite0", num_classes)
