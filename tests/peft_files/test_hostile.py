"""Folders that are not adapters of the model: one error each, nothing executed, nothing loaded."""

import json
import re
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from subtune_jax import adapters, peft_files
from subtune_jax.models import vit
from tests.peft_files import hostile_folders

IMAGES = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
FIX = re.compile(
  r"\b(give|save|get it|read it|merge|take it out|make the|train|allowed|move it)\b", re.I
)


@pytest.fixture(scope="module")
def net():
  model = vit.ViT(width=16, depth=2, heads=2, patch_size=16, num_classes=3, image_size=32)
  return model, jax.jit(model.init)(jax.random.key(0), np.zeros(IMAGES.shape, np.float32))


@pytest.fixture(scope="module")
def good(net, tmp_path_factory):
  model, variables = net
  rules = adapters.LoRA(["attention/qkv", "embedding/patch"], rank=4, alpha=8)
  adapted, tree = adapters.add(model, variables, rules, jax.random.key(0), IMAGES)
  head = {name: leaf + 1 for name, leaf in variables["params"]["head"].items()}
  tree = adapters.with_leaves(tree, {"head": head})
  folder = tmp_path_factory.mktemp("good") / "adapter"
  peft_files.write(folder, adapted, tree, variables)
  config = json.loads((folder / "adapter_config.json").read_text())
  config["target_modules"] = ["attn.qkv", "patch_embed.proj"]
  return folder, config


def _read(net, folder):
  model, variables = net
  return peft_files.read(folder, model, variables, IMAGES)


def test_the_folder_that_they_are_made_from_is_read(net, good):
  folder, config = good
  (folder / "adapter_config.json").write_text(json.dumps(config))
  _, tree = _read(net, folder)
  assert {"encoderblock_0/attention/qkv", "embedding/patch", "head"} < set(tree)


def test_each_of_500_is_one_error(net, good, tmp_path):
  folder, config = good
  marker = tmp_path / "executed"
  cases = hostile_folders.cases(marker)
  assert len(cases) == hostile_folders.NUMBER
  before = jax.device_get(net[1])
  wrong = []
  for i, case in enumerate(cases):
    own = tmp_path / str(i)
    case.make(own, dict(config), load_file(folder / "adapter_model.safetensors"))
    start = time.process_time()
    try:
      _read(net, own)
      said = "it was read"
    except ValueError as e:
      said = _odd(str(e), case.told)
    if time.process_time() - start > 3:
      said = "it takes long"
    if said:
      wrong.append(f"{case.name}: {said}")
  assert wrong == []
  assert not marker.exists()
  jax.tree.map(np.testing.assert_array_equal, before, net[1])


def _odd(message, told):
  """What is wrong with an error; "" if nothing is."""
  if "\n" in message or len(message) > 900:
    return f"{len(message)} characters: {message[:300]!r}"
  if told not in message:
    return f"{told!r} is not in {message!r}"
  return "" if FIX.search(message) else f"no fix in {message!r}"
