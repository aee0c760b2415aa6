"""What a step with adapters costs, what it may touch, and where it compiles."""

import jax
import jax.export
import jax.numpy as jnp
import optax
import pytest

from subtune_jax import adapters, masks
from subtune_jax.models import vit
from tests.adapters import models


@pytest.fixture(scope="module")
def network():
  model = vit.ViT(num_classes=4, image_size=16, width=64, depth=2, heads=2, patch_size=4)
  images = jnp.linspace(-1, 1, 2 * 16 * 16 * 3).reshape(2, 16, 16, 3)
  return model, jax.jit(model.init)(jax.random.key(0), images), images


def start(network, rules, base_rules):
  model, variables, images = network
  adapted, tree = adapters.add(model, variables, rules, jax.random.key(1), images)
  labels = adapted.labels(variables["params"], tree, base_rules)
  joint = {"base": variables["params"], "adapters": tree}
  used = set(jax.tree.leaves(labels)) - {masks.FROZEN}
  tx = masks.multi_transform({name: optax.adamw(1e-3) for name in used}, labels)
  trained, _ = masks.partition(joint, labels)
  state = {"params": joint, "opt_state": tx.init(trained)}
  return models.make_step(adapted, labels, tx), state, labels


def flops(step, state, batch):
  return jax.jit(step).lower(state, batch).compile().cost_analysis()["flops"]


def test_a_step_of_lora_computes_no_gradient_of_frozen_kernels(network):
  """Forward 1, gradients of activations 1, of weights 1: without the last, two thirds are left."""
  batch = (network[2], jnp.array([0, 1]))
  rule = adapters.LoRA("encoderblock_*", rank=2)
  step, state, _ = start(network, rule, {"head": "/head"})
  whole, full, _ = start(network, rule, {"all": lambda path, leaf: True})
  ratio = flops(step, state, batch) / flops(whole, full, batch)
  assert 0.6 < ratio < 0.75


def test_masks_verifies_a_step_and_counts_the_optimisers_bytes(network):
  batch = (network[2], jnp.array([0, 1]))
  rules = [adapters.LoRA("encoderblock_1/attention", rank=2), adapters.SSF("encoderblock_1/norm2")]
  step, state, labels = start(network, rules, {"head": "/head"})
  report = masks.verify(step, state, batch, labels)
  counts = masks.count_params(state["params"], labels)
  assert counts["adapter"] == 2 * (64 + 192 + 64 + 64) + 2 * 64
  trained = counts["adapter"] + counts["head"]
  assert 8 * trained <= report.state_bytes <= 8 * trained + 64  # two moments, and counts of steps


def test_a_step_is_lowered_for_tpu_and_cuda(network):
  batch = (network[2], jnp.array([0, 1]))
  rules = [adapters.DoRA("mlp", rank=2), adapters.VPT("/encoderblock_*", prompts=2)]
  step, state, _ = start(network, rules, {"head": "/head"})
  exported = jax.export.export(jax.jit(step), platforms=("tpu", "cuda"))(state, batch)
  assert exported.platforms == ("tpu", "cuda")
