"""Every family of backbones trains, caches and exports through the one loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import masks, methods
from subtune_jax.models import bit_resnet, clip_resnet, convnext, resnet, vit
from subtune_jax.training import export, loop
from tests import marks, tiny

_VIT = {"width": 8, "depth": 3, "heads": 2, "mlp_width": 16, "patch_size": 8, "image_size": 16}
# A backbone, and a block in its middle.
FAMILIES = {
  "resnet": (
    resnet.ResNet(num_classes=3, stage_sizes=(1, 2), bottleneck=True, stem="cifar", width=8),
    "block2/unit1",
  ),
  "bit": (bit_resnet.BitResNet(num_classes=3, stage_sizes=(1, 1), width=32), "block2/unit1"),
  "clip_resnet": (
    clip_resnet.ClipResNet(num_classes=3, stage_sizes=(1, 1, 1, 1), width=32, image_size=32),
    "block3/unit1",
  ),
  "convnext": (convnext.ConvNeXt(num_classes=3, depths=(1, 2), widths=(8, 16)), "block2/unit2"),
  "vit": (vit.ViT(num_classes=3, **_VIT), "encoderblock_1"),
  "clip_vit": (vit.ViT(num_classes=3, pre_norm=True, projection=6, **_VIT), "encoderblock_2"),
}


_NAMES = marks.first(2, ("resnet", "vit", "convnext", "bit", "clip_resnet", "clip_vit"))


def _examples(model, n, seed=0):
  rng = np.random.default_rng(seed)
  size = model.image_size if model.image_size < 64 else 16
  images = rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
  return loop.Examples(images, np.arange(n, dtype=np.int32) % 3)


def _fit(model, variables, method, **fields):
  engine = tiny.engine(model, **fields)
  return loop.fit(engine, variables, method, _examples(model, 16), _examples(model, 8, 1))


@pytest.mark.parametrize("name", _NAMES)
def test_one_block_is_tuned_and_the_rest_stays(name, tmp_path):
  model, block = FAMILIES[name]
  images = jnp.zeros((1, *_examples(model, 1).images.shape[1:]))
  variables = jax.jit(model.init)(jax.random.key(0), images)
  # Plain SGD: Adam makes a whole step of a gradient that is zero but for rounding.
  method = methods.sub_tuning((block,), 1e-2, epochs=1, optimizer="sgd")
  cached = _fit(model, variables, method)
  whole = _fit(model, variables, method, prefix_cache=False)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5),
    cached.variables["params"], whole.variables["params"],
  )  # fmt: skip
  paths = masks.paths(variables["params"])
  before, after = (jax.tree.leaves(v["params"]) for v in (variables, cached.variables))
  moved = {p for p, a, b in zip(paths, before, after, strict=True) if (a != b).any()}
  assert moved
  assert all(p.startswith((block + "/", "head/")) for p in moved)
  assert any(p.startswith(block + "/") for p in moved)
  start = {"batch_stats": {}, **variables}
  export.save_task(tmp_path / "task", cached.variables, cached.touched, start, {})
  loaded, _ = export.load_task(tmp_path / "task", start)
  jax.tree.map(np.testing.assert_array_equal, loaded, cached.variables)


@pytest.mark.slow
@pytest.mark.parametrize("name", _NAMES)
def test_lp_ft_moves_everything(name):
  model, _ = FAMILIES[name]
  images = jnp.zeros((1, *_examples(model, 1).images.shape[1:]))
  variables = jax.jit(model.init)(jax.random.key(0), images)
  result = _fit(model, variables, methods.lp_ft(1e-3, l2=(1.0, 0.1), epochs=1))
  assert [row["stage"] for row in result.history] == [0, 1]
  assert 0 < result.moved < 1
