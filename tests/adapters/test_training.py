"""Adapters as methods: on the library's backbones, in its train loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import adapters, masks, methods
from subtune_jax.data import preprocess
from subtune_jax.models import adapted as adapted_lib
from subtune_jax.models import resnet, vit
from subtune_jax.training import loop, prefix
from subtune_jax.training import mesh as mesh_lib

NAMES = ("lora", "dora", "ssf", "adaptformer", "houlsby", "convpass", "repadapter", "vpt")
_SLOW = ("dora", "houlsby", "convpass", "repadapter")
CASES = [pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in NAMES]
SMALL = {"rank": 2, "prompts": 2}
EXACT = ("lora", "dora", "ssf", "repadapter")


def transformer():
  return vit.ViT(num_classes=3, image_size=8, width=8, depth=2, heads=2, patch_size=4)


def convolutional():
  return resnet.ResNet(
    num_classes=3, image_size=8, stage_sizes=(1, 1), bottleneck=False, stem="cifar", width=4
  )


@pytest.fixture(scope="module", params=["transformer", "convolutional"])
def backbone(request):
  model = {"transformer": transformer, "convolutional": convolutional}[request.param]()
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  return model, {"batch_stats": {}, **variables}


@pytest.fixture(scope="module")
def examples():
  random = np.random.default_rng(0)
  return loop.Examples(random.integers(0, 256, (16, 8, 8, 3), np.uint8), np.arange(16) % 3)


def changed(name, model, variables):
  declared = methods.DECLARED[name]
  options = methods.options_of(declared, {k: v for k, v in SMALL.items() if k in declared.options})
  return declared.prepare(model, variables, jax.random.key(1), options)


def leaves_of(tree):
  return dict(masks.tree.flatten(tree)[0])


@pytest.mark.parametrize("name", CASES)
def test_a_method_trains_its_adapters_and_the_head_alone(name, backbone, examples):
  model, variables = backbone
  if name == "vpt" and not isinstance(model, vit.ViT):
    with pytest.raises(ValueError, match="needs a transformer"):
      changed(name, model, variables)
    return
  own, start = changed(name, model, variables)
  images = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
  fresh = jax.jit(own.apply)(start, images)
  before = jax.jit(model.apply)(variables, images)
  if name == "vpt":
    assert np.abs(fresh - before).max() > 1e-4
  else:
    np.testing.assert_allclose(fresh, before, atol=1e-6)
  method = methods.adapter_tuning(
    1e-2, epochs=2, norm_mode="running", weight_decay=0.1, clip_norm=1.0
  )
  engine = loop.Engine(own, preprocess.Preprocessing((127.5,) * 3, (64.0,) * 3), batch_size=8)
  result = loop.fit(engine, start, method, examples, None)
  after, given = leaves_of(result.variables), leaves_of(start)
  for path, leaf in given.items():
    trained = path.startswith("params/head") or (
      "adapters" in path.split("/") and not path.endswith("scaling")
    )
    assert np.array_equal(after[path], leaf) != trained, path
  if name in EXACT:
    merged = own.merged(result.variables)
    assert jax.tree.structure(merged) == jax.tree.structure(variables)
    y = jax.jit(own.apply)(result.variables, images)
    np.testing.assert_allclose(jax.jit(model.apply)(merged, images), y, atol=1e-5)
  else:
    with pytest.raises(ValueError, match="merging is not exact"):
      own.merged(result.variables)


@pytest.mark.parametrize("name", ["lora", pytest.param("ssf", marks=pytest.mark.slow)])
def test_programs_of_blocks_kept_activations_and_devices_change_nothing(name, examples):
  model = convolutional()
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  rule = {"lora": adapters.LoRA, "ssf": adapters.SSF}[name]("/block2")
  own, start = adapted_lib.add(model, variables, rule, jax.random.key(1))
  engine = loop.Engine(own, preprocess.Preprocessing((127.5,) * 3, (64.0,) * 3), batch_size=8)
  method = methods.adapter_tuning(1e-2, epochs=1)
  one = mesh_lib.make_mesh(jax.devices()[:1])
  runs = {
    "whole": engine,
    "no cache": dataclasses.replace(engine, prefix_cache=False),
    "in pieces": dataclasses.replace(engine, in_pieces=True),
    "one device": dataclasses.replace(engine, mesh=one),
  }
  found = {what: loop.fit(own_, start, method, examples, None) for what, own_ in runs.items()}
  assert found["whole"].stages[0]["blocks"][0] == "block2/unit1"
  wanted = leaves_of(found["whole"].variables)
  for what, result in found.items():
    for path, leaf in leaves_of(result.variables).items():
      np.testing.assert_allclose(
        leaf, wanted[path], rtol=1e-4, atol=1e-5, err_msg=f"{what}: {path}"
      )


def test_an_adapter_outside_all_blocks_is_an_error():
  model = convolutional()
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  for rule in (adapters.Houlsby("/block2"), adapters.LoRA("head")):
    with pytest.raises(ValueError, match="lies in none of the blocks; select modules in stem"):
      adapted_lib.add(model, variables, rule, jax.random.key(1))


def test_kept_activations_of_a_search_know_the_adapters(examples):
  model = convolutional()
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  own, start = adapted_lib.add(model, variables, adapters.LoRA("/block1"), jax.random.key(1))
  start = jax.tree.map(lambda x: x + 0.05, start)
  means = preprocess.Preprocessing((127.5,) * 3, (64.0,) * 3)
  kept = prefix.Prefix(
    own, start, examples.images, preprocessing=means, batch_size=8, mesh=mesh_lib.make_mesh(),
    memory_bytes=1 << 20,
  )  # fmt: skip
  x = preprocess.normalize(jnp.asarray(examples.images), means)
  wanted = jax.jit(lambda v, x: own.apply(v, x, stop="block2/unit1"))(start, x)
  np.testing.assert_allclose(kept.at("block2/unit1"), wanted, atol=1e-5)
