"""Frozen weights kept as bfloat16: half of their memory, and the numbers of float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import masks, methods
from subtune_jax.training import (
  frozen_storage,
  loop,
  stage_inputs,
  stage_steps,
  trainable_split,
  under_way,
)
from tests import tiny

SUBTUNING = methods.sub_tuning(("block2",), 1e-2, epochs=2)


@functools.cache
def network():
  net, variables = tiny.make()
  return net, frozen_storage.rounded(variables)


def test_rounded_is_the_nearest_number():
  """Of JAX's own cast, outside the head, in float32."""
  before, after = tiny.make()[1], network()[1]
  for path, old, new in zip(
    masks.paths(before), jax.tree.leaves(before), jax.tree.leaves(after), strict=True
  ):
    old = jnp.asarray(old)
    body = path.startswith("params/") and "/head/" not in path
    wanted = old.astype(jnp.bfloat16).astype(jnp.float32) if body else old
    assert new.dtype == np.float32
    np.testing.assert_array_equal(new, wanted)
  assert not np.array_equal(before["params"]["block0"]["conv"]["kernel"],
                            after["params"]["block0"]["conv"]["kernel"])  # fmt: skip


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_a_training_has_the_bits_of_float32(prefix_cache):
  """Weights, figures and validation logits; and frozen leaves stay as they were."""
  net, variables = network()
  fits, logits = [], []
  for dtype in frozen_storage.DTYPES:
    seen = []
    engine = tiny.engine(net, prefix_cache=prefix_cache, frozen_dtype=dtype)
    fits.append(
      loop.fit(
        engine, variables, SUBTUNING, tiny.examples(16), tiny.examples(8),
        on_epoch=lambda row, own, seen=seen: seen.append(own),
      )
    )  # fmt: skip
    logits.append(seen)
  plain, stored = fits
  jax.tree.map(np.testing.assert_array_equal, plain.variables, stored.variables)
  np.testing.assert_array_equal(*logits)
  assert plain.history == stored.history
  rows = zip(*map(jax.tree.leaves, (variables, stored.variables, stored.touched)), strict=True)
  for old, new, moved in rows:
    assert new.dtype == old.dtype
    assert moved or np.array_equal(old, new)


def prepared(dtype):
  net, variables = network()
  training = under_way.Training(
    tiny.engine(net, frozen_dtype=dtype), variables, SUBTUNING, tiny.examples(16), None, seed=0,
    on_epoch=None, saver=None, validate="end", on_variables=None,
  )  # fmt: skip
  plan = trainable_split.make_plan(net, training.variables, SUBTUNING[0])
  return stage_steps.prepare(training, 0, plan, stage_inputs.Inputs(
    training.train.images, training.train.labels, None, None
  ))  # fmt: skip


def test_frozen_arguments_take_half_and_gradients_are_float32():
  """By the compiler's count of a step's arguments."""
  plain, stored = (prepared(dtype) for dtype in frozen_storage.DTYPES)
  full = sum(leaf.nbytes for leaf in jax.tree.leaves(plain.fixed["params"]))
  counts = [r.program.memory_analysis().argument_size_in_bytes for r in (plain, stored)]
  assert counts[0] - counts[1] == full // 2 > 500
  assert {leaf.dtype for leaf in jax.tree.leaves(stored.fixed["params"])} == {jnp.dtype("bfloat16")}
  moments = jax.tree.leaves((stored.state.moving, stored.state.opt_state))
  assert {leaf.dtype for leaf in moments} <= {np.dtype(np.float32), np.dtype(np.int32)}


def test_what_an_earlier_stage_trained_stays_float32():
  """Its numbers are not those of bfloat16."""
  net, variables = network()
  method = SUBTUNING + methods.head_only(1e-2, epochs=1)
  fits = [
    loop.fit(tiny.engine(net, frozen_dtype=dtype), variables, method, tiny.examples(16), None)
    for dtype in frozen_storage.DTYPES
  ]
  jax.tree.map(np.testing.assert_array_equal, *(fit.variables for fit in fits))


def test_weights_that_are_not_rounded_are_one_error():
  net, variables = tiny.make()
  engine = tiny.engine(net, frozen_dtype="bfloat16")
  with pytest.raises(ValueError, match=r"bfloat16' and .*block0/conv/kernel holds numbers"):
    loop.fit(engine, variables, SUBTUNING, tiny.examples(16), None)
  whole = methods.full_fine_tuning(1e-2, epochs=1)  # nothing is frozen, nothing to round
  loop.fit(engine, variables, whole, tiny.examples(16), None)
  with pytest.raises(ValueError, match="frozen_dtype 'float16'"):
    tiny.engine(net, frozen_dtype="float16")
