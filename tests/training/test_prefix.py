"""Shared activations: what they hold, and that they stay within their budget."""

import gc

import jax
import numpy as np
import pytest

from subtune_jax import methods
from subtune_jax.training import evaluate, loop
from subtune_jax.training import prefix as prefix_lib
from tests import tiny
from tests.search import small

UNITS = ("block1/unit1", "block2/unit1", "block3/unit1", "head")


def make(net, variables, n=21, **fields):
  options = {"memory_bytes": 1 << 30, **fields}
  return prefix_lib.Prefix(
    net, variables, tiny.examples(n).images, preprocessing=tiny.PREPROCESSING, batch_size=8,
    mesh=tiny.one_device(), **options,
  )  # fmt: skip


@pytest.fixture(scope="module")
def network():
  net = small.model()
  return net, small.variables(net)


def test_holds_what_the_network_computes(network):
  net, variables = network
  prefix = make(net, variables)
  for unit in UNITS:
    wanted = evaluate.run_units(
      net, variables, tiny.examples(21).images, stop=unit, preprocessing=tiny.PREPROCESSING,
      batch_size=8, mesh=tiny.one_device(),
    )  # fmt: skip
    np.testing.assert_allclose(prefix.at(unit), wanted, rtol=1e-5, atol=1e-5)
  assert prefix.at(net.block_names[0]) is None


def test_the_bits_do_not_depend_on_what_was_kept(network):
  net, variables = network
  chain, direct = make(net, variables), make(net, variables)
  kept = [chain.at(unit) for unit in UNITS]
  assert np.array_equal(direct.at("head"), kept[-1])
  assert np.array_equal(direct.at("block2/unit1"), kept[1])


def test_memory_stays_within_the_budget(network):
  """Live bytes on the device, beside the images and the network, never exceed the budget."""
  net, variables = network
  probe = make(net, variables)
  sizes = {unit: probe.nbytes(unit) for unit in UNITS}
  budget = sizes["block1/unit1"] + sizes["block3/unit1"]
  prefix = make(net, variables, memory_bytes=budget)
  prefix.images_on_device()
  gc.collect()
  before = sum(x.nbytes for x in jax.live_arrays())
  rng = np.random.default_rng(0)
  for unit in [UNITS[i] for i in rng.integers(0, 4, 40)]:
    prefix.at(unit)
    assert prefix.nbytes_kept <= budget
    live = sum(x.nbytes for x in jax.live_arrays()) - before
    assert live <= budget + 1024  # and a few scalars
  assert prefix.peak_bytes <= budget
  assert prefix.peak_bytes > sizes["block1/unit1"]


def test_a_budget_too_small_recomputes_and_says_so(network):
  net, variables = network
  prefix = make(net, variables, memory_bytes=10)
  assert prefix.at("block2/unit1") is None
  assert "block2/unit1 is run in every step" in prefix.notes["block2/unit1"]


def test_on_disk(network, tmp_path):
  net, variables = network
  wanted = make(net, variables)
  size = wanted.nbytes("block1/unit1")
  prefix = make(net, variables, memory_bytes=size // 8, disk_bytes=4 * size, directory=tmp_path)
  kept = prefix.at("block1/unit1")
  assert isinstance(kept, np.memmap)
  assert np.array_equal(kept, wanted.at("block1/unit1"))
  assert np.array_equal(prefix.at("head"), wanted.at("head"))
  prefix.close()
  assert not list(tmp_path.iterdir())


METHOD = methods.sub_tuning(("block2/unit1",), 1e-2, epochs=2)


def run(network, memory_bytes, method=METHOD, rows=True, **fields):
  net, variables = network
  examples = tiny.examples(21)
  prefix = make(net, variables, memory_bytes=memory_bytes, **fields)
  train, held = np.arange(0, 21, 2), np.arange(1, 21, 2)
  sets = [prefix_lib.Rows(prefix, np.asarray(examples.labels), rows) for rows in (train, held)]
  if not rows:
    sets = [loop.Examples(x.images, x.labels) for x in sets]
  logits = []
  result = loop.fit(
    tiny.engine(net), variables, method, *sets, on_epoch=lambda _, z: logits.append(z)
  )
  return result, logits


def test_a_training_on_shared_activations_equals_one_on_its_own(network):
  shared, logits = run(network, 1 << 30)
  alone, wanted = run(network, 1 << 30, rows=False)
  np.testing.assert_allclose(logits, wanted, rtol=1e-3, atol=1e-4)
  assert shared.history[-1]["train_loss"] == pytest.approx(
    alone.history[-1]["train_loss"], rel=1e-4
  )


def test_from_disk_it_is_streamed_with_the_same_bits(network, tmp_path):
  _, logits = run(network, 1 << 30)
  _, streamed = run(network, 10, disk_bytes=1 << 20, directory=tmp_path)
  assert np.array_equal(logits, streamed)


def test_activations_behind_a_tuned_block_are_not_shared(network):
  """The second stage starts behind what the first one changed."""
  method = METHOD + methods.sub_tuning(("block3/unit1",), 1e-2, epochs=1)
  _, shared = run(network, 1 << 30, method)
  _, alone = run(network, 1 << 30, method, rows=False)
  np.testing.assert_allclose(shared, alone, rtol=1e-3, atol=1e-4)


def test_validation_at_the_end_only(network):
  net, variables = network
  examples = tiny.examples(16)
  result = loop.fit(tiny.engine(net), variables, METHOD, examples, examples, validate="end")
  assert [row["validation_accuracy"] is None for row in result.history] == [True, False]
