"""The examples on models of others: frozen leaves stay, own no state; the trained ones move."""

import functools
import importlib

import jax
import numpy as np
import pytest

from subtune_jax import masks
from tests import marks

_EXAMPLES = {"linen_model": "flaxmodels", "nnx_model": "mamba2_jax", "scanned_model": "flax"}


@functools.cache
def _run(name: str):
  with jax.numpy_rank_promotion("allow"):  # the models of others broadcast
    return importlib.import_module(f"examples.masks.{name}").run()


@pytest.fixture(scope="module", params=marks.first(2, _EXAMPLES))
def result(request):
  needed = _EXAMPLES[request.param]
  pytest.importorskip(needed, reason=f"{needed} is not installed")
  return _run(request.param)


def _leaves(tree) -> dict[str, np.ndarray]:
  return dict(zip(masks.paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))


def test_frozen_leaves_are_bit_equal_and_trained_ones_moved(result):
  before, after = (_leaves(result[when]["params"]) for when in ("before", "after"))
  label_of = masks.labels_by_path(result["after"]["params"], result["labels"])
  assert set(label_of.values()) == {masks.HEAD, masks.TUNED, masks.FROZEN}
  for path, label in label_of.items():
    same = before[path].tobytes() == after[path].tobytes()
    assert same == (label == masks.FROZEN), path


def test_the_optimiser_keeps_nothing_of_frozen_leaves(result):
  counts = masks.count_params(result["after"]["params"], result["labels"])
  trained = counts[masks.HEAD] + counts[masks.TUNED]
  floats = [x for x in jax.tree.leaves(result["after"]["opt_state"]) if x.dtype == np.float32]
  assert sum(x.size for x in floats) == 2 * trained  # Adam's two moments
  assert counts[masks.FROZEN] > 0


def test_what_is_no_parameter_stays(result):
  others = set(result["before"]) - {"params", "opt_state"}
  for name in others:
    jax.tree.map(np.testing.assert_array_equal, result["before"][name], result["after"][name])


def test_verify_passes_and_the_loss_falls(result):
  report = result["report"]
  label_of = masks.labels_by_path(result["after"]["params"], result["labels"])
  assert report.num_frozen == list(label_of.values()).count(masks.FROZEN)
  assert report.flops < report.full_flops
  assert result["losses"][-1] < result["losses"][0]


def test_the_scanned_model_takes_its_stacked_parameters_back():
  example, result = importlib.import_module("examples.masks.scanned_model"), _run("scanned_model")
  tokens = jax.random.randint(jax.random.key(2), (3, 12), 0, example.MODEL.vocabulary)

  @jax.jit
  def both(stacked, unstacked):
    own = example.MODEL.apply({"params": stacked}, tokens)
    return own, example.forward(unstacked, tokens, result["labels"])

  with jax.numpy_rank_promotion("allow"):
    own, ours = both(result["stacked"], result["after"]["params"])
  np.testing.assert_allclose(ours, own, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_adapters_on_a_linen_model_that_is_not_ours():
  pytest.importorskip("flaxmodels")
  with jax.numpy_rank_promotion("allow"):
    result = importlib.import_module("examples.adapters.linen_model").run()
  assert result["error"] < 1e-3
  assert result["losses"][-1] < result["losses"][0]


def test_adapters_on_an_nnx_model():
  result = importlib.import_module("examples.adapters.nnx_model").run()
  assert result["fresh"]
  assert result["error"] < 1e-5
