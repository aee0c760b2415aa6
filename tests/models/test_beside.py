"""A network beside its frozen self: what the head reads, what never moves, what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from subtune_jax import methods
from subtune_jax.data import preprocess
from subtune_jax.deploy import folder
from subtune_jax.models import beside
from subtune_jax.training import engine as engine_lib
from subtune_jax.training import loop, prefix
from tests import tiny
from tests.multitask import made

BLOCK = "block2/unit2"  # a block behind it stays frozen, and runs twice
EXAMPLES = loop.Examples(made.images(24, 1), (np.arange(24) % 2).astype(np.int32))
OPTIONS = {"epochs": 2, "optimizer": "adam", "weight_decay": 0.1}


@pytest.fixture(scope="module")
def base():
  return made.backbone(made.RESNET)


@pytest.fixture(scope="module")
def wrapped(base):
  return beside.wrap(base.model, base.variables, (BLOCK,))


def engine(model, **fields):
  options = {"mesh": tiny.one_device(), "batch_size": 8, **fields}
  return engine_lib.Engine(model, made.SEEN, **options)


@pytest.fixture(scope="module")
def trained(wrapped):
  model, variables = wrapped
  method = methods.sub_tuning((BLOCK,), 1e-2, **OPTIONS)
  return loop.fit(engine(model), variables, method, EXAMPLES, EXAMPLES, seed=0)


def features(model, variables):
  x = preprocess.normalize(EXAMPLES.images, made.SEEN)
  return np.asarray(jax.jit(lambda v, x: model.apply(v, x, stop="head"))(variables, x))


@pytest.mark.parametrize(
  "network",
  [made.RESNET, *(pytest.param(n, marks=pytest.mark.slow)
                  for n in (made.VIT, made.LITE, made.CONVNEXT))],
  ids=lambda n: n.name,
)  # fmt: skip
def test_a_fresh_one_has_the_features_twice_and_the_same_logits(network):
  own = made.backbone(network)
  model, variables = beside.wrap(own.model, own.variables, own.model.block_names[-2:-1])
  once, twice = features(own.model, own.variables), features(model, variables)
  np.testing.assert_array_equal(twice, np.concatenate([once, once], axis=1))
  head, both = (tree["params"]["head"]["kernel"] for tree in (own.variables, variables))
  np.testing.assert_allclose(
    twice @ np.asarray(both), once @ np.asarray(head), rtol=1e-5, atol=1e-5
  )
  images = np.zeros((1, 32, 32, 3), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  assert jax.tree.map(np.shape, dict(shapes)) == jax.tree.map(
    np.shape, {name: variables[name] for name in shapes}
  )


def test_its_fresh_head_is_a_probe_of_both_features(base, wrapped):
  linear_model = pytest.importorskip("sklearn.linear_model")
  model, variables = wrapped
  moved = made.moved(variables, lambda name: f"/{BLOCK}/" in name, 0)
  method = methods.linear_probing(l2=(0.1,), standardize="none")
  found = loop.fit(engine(model), moved, method, EXAMPLES, None, seed=0).variables
  tuned = {
    kind: {**base.variables[kind], "block2": {**base.variables[kind]["block2"],
                                              "unit2": moved[kind]["block2"]["unit2"]}}
    for kind in ("params", "batch_stats")
  }  # fmt: skip
  x = np.concatenate([features(base.model, tuned), features(base.model, base.variables)], axis=1)
  np.testing.assert_allclose(features(model, moved), x, rtol=1e-5, atol=1e-6)
  # Its weights are the difference of two columns, whose squares sum to half of its own.
  peer = linear_model.LogisticRegression(C=2 / (0.1 * len(x)), tol=1e-10, max_iter=10_000)
  peer.fit(x.astype(np.float64), EXAMPLES.labels)
  head = found["params"]["head"]
  kernel, bias = (np.asarray(head[name]) for name in ("kernel", "bias"))
  own = (x @ kernel + bias) @ np.array([-1.0, 1.0])
  np.testing.assert_allclose(own, peer.decision_function(x), rtol=2e-3, atol=2e-3)


def test_nothing_frozen_moves(base, wrapped, trained):
  once = features(base.model, base.variables)
  size = once.shape[1]
  after = features(wrapped[0], trained.variables)
  np.testing.assert_array_equal(after[:, size:], once)
  assert np.abs(after[:, :size] - once).max() > 0.1
  before, now = (folder.flatten(tree) for tree in (wrapped[1], trained.variables))
  moved = {name for name, leaf in before.items() if not np.array_equal(leaf, now[name])}
  assert moved == {name for name in before if f"/{BLOCK}/" in name or "/head/" in name}


def test_batch_statistics_are_of_the_tuned_block_alone(base, wrapped):
  model, variables = wrapped
  x = preprocess.normalize(EXAMPLES.images, made.SEEN)
  run = jax.jit(lambda v, x: model.apply(v, x, stop="head", train_blocks={BLOCK},
                                         mutable=["batch_stats"]))  # fmt: skip
  found, updated = run(variables, x)
  once = features(base.model, base.variables)
  np.testing.assert_allclose(found[:, once.shape[1] :], once, rtol=1e-5, atol=1e-6)
  assert np.abs(found[:, : once.shape[1]] - once).max() > 0.1
  before, now = (folder.flatten({"batch_stats": tree["batch_stats"]})
                 for tree in (variables, updated))  # fmt: skip
  moved = {name for name, leaf in before.items() if not np.array_equal(leaf, now[name])}
  assert moved == {name for name in before if f"/{BLOCK}/" in name}


def test_the_prefix_is_shared_up_to_the_first_tuned_block(base, wrapped, monkeypatch):
  model, variables = wrapped
  shared = prefix.Prefix(
    base.model, base.variables, EXAMPLES.images, preprocessing=made.SEEN, batch_size=8,
    mesh=tiny.one_device(), memory_bytes=1 << 30,
  )  # fmt: skip
  rows = prefix.Rows(shared, EXAMPLES.labels, np.arange(24))
  asked, real = [], shared.at
  monkeypatch.setattr(shared, "at", lambda unit: asked.append(unit) or real(unit))
  method = methods.lp_ft(1e-2, l2=(0.1,), epochs=1)[:1] + methods.sub_tuning(
    (BLOCK,), 1e-2, epochs=1
  )
  found = loop.fit(engine(model), variables, method, rows, None, seed=0)
  assert asked == [BLOCK]  # the probe before reads features of both, which the prefix has not
  plain = loop.fit(
    engine(model, prefix_cache=False), variables, method, EXAMPLES, None, seed=0
  )  # fmt: skip
  for a, b in zip(jax.tree.leaves(found.variables), jax.tree.leaves(plain.variables), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3)


def test_pieces_are_no_pieces(wrapped, trained):
  model, _ = wrapped
  whole, pieces = (
    engine(model, in_pieces=each).predict(trained.variables, EXAMPLES.images)
    for each in (False, True)
  )
  np.testing.assert_array_equal(whole, pieces)


@pytest.mark.slow
def test_a_frozen_copy_of_a_network_that_draws_drops_nothing():
  network = dataclasses.replace(made.VIT, options={**made.VIT.options, "drop_path": 0.5})
  own = made.backbone(network)
  model, variables = beside.wrap(own.model, own.variables, ("encoderblock_1",))
  x = preprocess.normalize(made.images(8), made.SEEN)
  once = own.model.apply(own.variables, x, stop="head")
  size = once.shape[1]
  drawn = model.apply(variables, x, stop="head", train_blocks={"encoderblock_1"},
                      rngs={"dropout": jax.random.key(1)})  # fmt: skip
  assert model.is_random
  np.testing.assert_array_equal(drawn[:, size:], once)
  assert np.abs(drawn[:, :size] - once).max() > 1e-3


@pytest.mark.parametrize(
  ("blocks", "text"),
  [((), r"blocks is \(\)"), ("stem", "blocks is 'stem'"), (("block9",), "block9")],
)
def test_blocks_that_make_no_sense(base, blocks, text):
  with pytest.raises(ValueError, match=text):
    beside.wrap(base.model, base.variables, blocks)


def test_a_block_without_a_frozen_copy_is_not_trained(wrapped):
  model, variables = wrapped
  with pytest.raises(ValueError, match=r"block3/unit1.*give beside\.wrap all blocks"):
    loop.fit(
      engine(model), variables, methods.sub_tuning((BLOCK, "block3/unit1"), 1e-2, epochs=1),
      EXAMPLES, None, seed=0,
    )  # fmt: skip
