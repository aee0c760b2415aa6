"""The real client: peft in torch reads our folders and writes those that we read."""

import copy
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from subtune_jax import adapters, masks, peft_files
from tests import peft_peers

peft = peft_peers.load()
torch = pytest.importorskip("torch")

MAKE = {
  "timm_vit": peft_peers.timm_vit,
  "transformers_vit": peft_peers.transformers_vit,
  "timm_resnet": peft_peers.timm_resnet,
}


@functools.cache
def peer(name):
  return MAKE[name]()


def on_torch(own, folder):
  return peft.PeftModel.from_pretrained(copy.deepcopy(own.net), folder).eval()


def of_torch(own, folder, **fields):
  """A PEFT model after some steps of AdamW, saved."""
  net = peft.get_peft_model(copy.deepcopy(own.net), peft.LoraConfig(**fields)).eval()
  peft_peers.shake(net)
  peft_peers.train(net, torch.optim.AdamW(peft_peers.trained(net), lr=1e-2), steps=3)
  net.save_pretrained(folder)
  return net


def close(a, b, atol=1e-4):
  a, b = (x.detach().numpy() if hasattr(x, "detach") else np.asarray(x) for x in (a, b))
  np.testing.assert_allclose(a, b, atol=atol, rtol=0)


def same_files(a, b):
  ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (a, b))
  assert ours.keys() == theirs.keys()
  for key, value in ours.items():
    np.testing.assert_allclose(value, theirs[key], atol=1e-6)
  ours, theirs = (json.loads((folder / "adapter_config.json").read_text()) for folder in (a, b))
  assert ours | {"lora_dropout": 0} == theirs | {"lora_dropout": 0}


def some_slow(cases, fast):
  return [pytest.param(case, marks=[] if case in fast else [pytest.mark.slow]) for case in cases]


LORA = functools.partial(adapters.LoRA, rank=2, alpha=4.0)
ATTENTION = "attention/qkv"
WRITTEN = {
  "lora": ("timm_vit", LORA(ATTENTION)),
  "lora everywhere": ("timm_vit", LORA(rank_pattern={"mlp": 3, "head": 1},
                                       alpha_pattern={"out": 1})),
  "rslora": ("timm_vit", LORA("mlp", rslora=True, rank_pattern={"encoderblock_1": 5})),
  "dora": ("timm_vit", adapters.DoRA(rank=2, alpha=4.0, exclude="head")),
  "query and value": ("timm_vit", [
    adapters.Part(rule=LORA(ATTENTION, name="q"), index=0),
    adapters.Part(rule=LORA(ATTENTION, name="v", alpha=1.0), index=2),
  ]),
  "dora of query and value": ("timm_vit", [
    adapters.Part(rule=adapters.DoRA(ATTENTION, rank=2, name=name), index=i)
    for name, i in (("q", 0), ("v", 2))
  ]),
  "two sums": ("timm_vit", [LORA("mlp", name="a"), LORA("mlp/in", rank=3, name="b")]),
  "split": ("transformers_vit", LORA(ATTENTION)),
  "split query": ("transformers_vit", adapters.Part(rule=LORA(ATTENTION), index=0)),
  "split dora": ("transformers_vit", adapters.DoRA(rank=2, exclude="head")),
  "convolutions": ("timm_resnet", LORA(exclude="head", rank_pattern={"stem": 3})),
  "dora of convolutions": ("timm_resnet", adapters.DoRA(rank=2, select=["block2", "block3"])),
}  # fmt: skip


FAST = ("lora everywhere", "dora of query and value", "split", "convolutions")


@pytest.mark.parametrize("case", some_slow(WRITTEN, FAST))
def test_peft_gives_our_logits(case, tmp_path):
  name, rules = WRITTEN[case]
  own, x = peer(name), peft_peers.images()
  adapted, tree = adapters.add(own.model, own.variables, rules, jax.random.key(0), x)
  tree = peft_peers.draw(tree, scale=0.03 if name == "timm_resnet" else 0.2)
  ours = peft_peers.apply(adapted, own, tree, x)
  assert np.abs(ours - own.model.apply(own.variables, x)).max() > 0.05  # the adapters do something
  peft_files.write(tmp_path, adapted, tree, own.variables, layout=own.layout)
  net = on_torch(own, tmp_path)
  close(peft_peers.logits(net, x), ours)
  again, read = peft_files.read(tmp_path, own.model, own.variables, x)
  peft_files.write(tmp_path / "again", again, read, own.variables, layout=own.layout)
  same_files(tmp_path, tmp_path / "again")


def test_query_and_value_become_one_of_twice_the_rank_and_alpha(tmp_path):
  name, rules = WRITTEN["query and value"]
  rules = [rules[0], adapters.Part(rule=LORA(ATTENTION, name="v"), index=2)]
  own, x = peer(name), peft_peers.images()
  adapted, tree = adapters.add(own.model, own.variables, rules, jax.random.key(0), x)
  peft_files.write(tmp_path, adapted, tree, own.variables)
  said = json.loads((tmp_path / "adapter_config.json").read_text())
  assert (said["r"], said["lora_alpha"], said["rank_pattern"]) == (4, 8, {})
  assert said["target_modules"] == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]


HEADS = {"timm_vit": "head", "transformers_vit": "classifier", "timm_resnet": "fc"}
QV = ["q_proj", "v_proj"]
SAVED = {
  "lora": ("timm_vit", {"target_modules": ["qkv"], "r": 4}),
  "head": ("timm_vit", {"target_modules": ["qkv", "fc1"], "modules_to_save": ["head"]}),
  "patterns": ("timm_vit", {
    "target_modules": r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc2)", "use_rslora": True,
    "rank_pattern": {"fc2": 3, r"^blocks\.1\.attn\..*": 5}, "alpha_pattern": {"attn.qkv": 2.5},
  }),
  "layers": ("timm_vit", {"target_modules": ["qkv"], "layers_to_transform": [1],
                          "layers_pattern": "blocks"}),
  "dora": ("timm_vit", {"target_modules": ["qkv", "fc1", "patch_embed.proj"], "use_dora": True}),
  "biases": ("timm_vit", {"target_modules": ["qkv"], "bias": "all"}),
  "biases of lora": ("timm_vit", {"target_modules": ["qkv"], "bias": "lora_only"}),
  "norms": ("timm_vit", {"target_modules": ["qkv"], "modules_to_save": ["head", "norm1"]}),
  "query and value": ("transformers_vit", {"target_modules": QV,
                                           "modules_to_save": ["classifier"]}),
  "dora of query": ("transformers_vit", {"target_modules": ["q_proj"], "use_dora": True}),
  "biases of query": ("transformers_vit", {"target_modules": ["q_proj"], "bias": "lora_only"}),
  "convolutions": ("timm_resnet", {"target_modules": ["conv1", "downsample.0"],
                                   "modules_to_save": ["fc"]}),
  "dora of convolutions": ("timm_resnet", {"target_modules": r".*\.conv\d", "use_dora": True}),
}  # fmt: skip


READ_FAST = ("patterns", "query and value", "convolutions")


@pytest.mark.parametrize("case", some_slow(SAVED, READ_FAST))
def test_we_give_the_logits_of_peft(case, tmp_path):
  name, fields = SAVED[case]
  own, x = peer(name), peft_peers.images()
  net = of_torch(own, tmp_path, **{"r": 2, "lora_alpha": 4, **fields})
  theirs = peft_peers.logits(net, x)
  assert np.abs(theirs.detach().numpy() - own.model.apply(own.variables, x)).max() > 0.05
  adapted, tree = peft_files.read(tmp_path, own.model, own.variables, x)
  close(theirs, peft_peers.apply(adapted, own, tree, x))
  again = tmp_path / "again"
  peft_files.write(again, adapted, tree, own.variables, layout=own.layout)
  close(peft_peers.logits(on_torch(own, again), x), theirs)


STEPS = {
  "sgd": (lambda values, decay: torch.optim.SGD(values, lr=0.1), lambda decay: optax.sgd(0.1)),
  "adamw": (lambda values, decay: torch.optim.AdamW(values, lr=1e-2, weight_decay=decay),
            lambda decay: optax.adamw(1e-2, weight_decay=decay)),
}  # fmt: skip
TRAINED = {
  "lora": ("timm_vit", {"target_modules": ["qkv"], "modules_to_save": ["head"]}),
  "dora": ("timm_vit", {"target_modules": ["qkv", "fc1"], "use_dora": True}),
  "query and value": ("transformers_vit", {"target_modules": QV}),
  "dora of query and value": ("transformers_vit", {"target_modules": QV, "use_dora": True}),
  "convolutions": ("timm_resnet", {"target_modules": ["conv2"], "use_rslora": True}),
}  # fmt: skip


def our_step(adapted, variables, tree, optimizer, x):
  labels = adapted.labels(variables["params"], tree)["adapters"]
  trained, frozen = masks.partition(tree, labels)

  def loss(trained):
    values = adapted.apply(variables, masks.combine(trained, frozen), x)
    return optax.softmax_cross_entropy_with_integer_labels(values, jnp.arange(len(x)) % 5).mean()

  @jax.jit
  def step(trained):
    grads = jax.grad(loss)(trained)
    updates, _ = optimizer.update(grads, optimizer.init(trained), trained)
    return optax.apply_updates(trained, updates)

  return masks.combine(step(trained), frozen)


STEP_FAST = (("lora", "adamw"), ("dora of query and value", "sgd"))


@pytest.mark.parametrize(
  "step",
  some_slow([(case, method) for case in TRAINED for method in STEPS], STEP_FAST),
  ids="-".join,
)
def test_a_step_of_training_is_the_same(step, tmp_path):
  case, method = step
  name, fields = TRAINED[case]
  make, optimizer = STEPS[method]
  # PEFT's lengths decay to zero, ours, which are kept as what is added, to those of the base.
  decay = 0.0 if fields.get("use_dora") else 0.1
  own, x = peer(name), peft_peers.images()
  net = of_torch(own, tmp_path / "before", **{"r": 2, "lora_alpha": 4, **fields})
  adapted, tree = peft_files.read(tmp_path / "before", own.model, own.variables, x)
  peft_peers.train(net, make(peft_peers.trained(net), decay))
  net.save_pretrained(tmp_path / "after")
  _, theirs = peft_files.read(tmp_path / "after", own.model, own.variables, x)
  ours = our_step(adapted, own.variables, tree, optimizer(decay), x)
  assert jax.tree.structure(theirs) == jax.tree.structure(ours)
  for path, leaf in masks.tree.flatten(ours)[0]:
    moved = dict(masks.tree.flatten(tree)[0])[path]
    after = dict(masks.tree.flatten(theirs)[0])[path]
    assert path.endswith("scaling") or np.abs(leaf - moved).max() > 1e-5, path
    close(leaf, after)
