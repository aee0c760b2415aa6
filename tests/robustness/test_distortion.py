"""Feature distortion by hand on a small network, and CKA against its definition by kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax.data import preprocess
from subtune_jax.robustness import distortion
from tests import tiny


def outputs(model, variables, images, batch_size=4):
  return distortion.unit_outputs(
    model, variables, images, preprocessing=tiny.PREPROCESSING, batch_size=batch_size,
    mesh=tiny.one_device(),
  )  # fmt: skip


def test_distances_by_hand():
  before = np.array([[3.0, 4.0], [0.0, 5.0]])
  after = np.array([[3.0, 1.0], [0.0, -5.0]])
  found = distortion.distances(before, after)
  np.testing.assert_array_equal(found.absolute, [3.0, 10.0])
  np.testing.assert_array_equal(found.relative, [3.0 / 5.0, 10.0 / 5.0])
  np.testing.assert_allclose(found.cosine, [1 - 13 / (5 * np.sqrt(10)), 2.0], rtol=1e-14)


def test_nothing_moved_is_exactly_0():
  features = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
  for values in distortion.distances(features, features):
    assert not values.any()
  assert distortion.linear_cka(features, features) == pytest.approx(1, abs=1e-12)
  zero = np.zeros((3, 2))
  assert not distortion.distances(zero, zero).relative.any()
  assert np.isinf(distortion.distances(zero, zero + 1).relative).all()


def test_distortion_at_step_0_is_0_and_by_hand_after_a_change():
  model, variables = tiny.make()
  images = tiny.examples(10).images
  before = outputs(model, variables, images)
  assert list(before) == ["block0", "block1", "block2", "head"]
  same = outputs(model, jax.tree.map(jnp.copy, variables), images)
  for unit in model.block_names:
    assert not distortion.distances(before[unit], same[unit]).absolute.any()
  changed = jax.tree.map(jnp.copy, variables)
  changed["params"]["block1"]["bn"]["bias"] += 0.5
  after = outputs(model, changed, images)
  assert not distortion.distances(before["block0"], after["block0"]).absolute.any()
  x = preprocess.normalize(images, tiny.PREPROCESSING)
  by_hand = [
    np.asarray(model.apply(v, x, stop="block2"), np.float64).mean(axis=(1, 2))
    for v in (variables, changed)
  ]
  wanted = np.sqrt(np.sum((by_hand[1] - by_hand[0]) ** 2, axis=1))
  found = distortion.distances(before["block1"], after["block1"]).absolute
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  assert wanted.min() > 0.1


def test_outputs_are_those_of_the_whole_network_and_every_row_counts():
  model, variables = tiny.make()
  images = tiny.examples(10).images
  found = outputs(model, variables, images)
  x = preprocess.normalize(images, tiny.PREPROCESSING)
  np.testing.assert_allclose(found["head"], model.apply(variables, x), atol=1e-5)
  np.testing.assert_allclose(found["block2"], model.apply(variables, x, stop="head"), atol=1e-5)
  np.testing.assert_allclose(
    found["head"], outputs(model, variables, images, 10)["head"], atol=1e-5
  )


@pytest.mark.parametrize("shape", [(40, 5, 8), (12, 30, 20)], ids=["few features", "few images"])
def test_cka_against_centred_kernels(shape):
  n, first, second = shape
  rng = np.random.default_rng(1)
  x = rng.normal(size=(n, first)) + 3.0
  y = x @ rng.normal(size=(first, second)) + rng.normal(size=(n, second))
  centre = np.eye(n) - 1 / n
  k, m = centre @ (x @ x.T) @ centre, centre @ (y @ y.T) @ centre
  wanted = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
  assert distortion.linear_cka(x, y) == pytest.approx(wanted, rel=1e-10)
  rotation, _ = np.linalg.qr(rng.normal(size=(first, first)))
  assert distortion.linear_cka(x, 2.5 * x @ rotation + 1.0) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize(
  ("before", "after", "text"),
  [
    (np.ones((2, 3)), np.ones((2, 4)), "give two"),
    (np.ones(3), np.ones(3), "give two"),
    (np.ones((2, 3)), np.array([[1, 1, 1], [1, np.nan, 1]]), "nan at row 1, column 1"),
  ],
)
def test_bad_features(before, after, text):
  with pytest.raises(ValueError, match=text):
    distortion.distances(before, after)
  with pytest.raises(ValueError, match="not defined"):
    distortion.linear_cka(np.ones((4, 2)), np.arange(8.0).reshape(4, 2))
