from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import masks
from subtune_jax.search import kernels
from subtune_jax.training import mesh
from tests import tiny


def network(count=10):
  model, variables = tiny.make()
  images = tiny.examples(count).images.astype(np.float32) / 64

  def apply(params, x):
    return model.apply({**variables, "params": params}, x, stop="head")

  units = {name: (name,) for name in model.block_names}
  return apply, variables["params"], images, kernels.unit_labels(variables["params"], units)


def exact(apply, params, images, group):
  """[n, n] tr(J J') from the whole Jacobian of every image."""

  def features(own):
    return apply({**params, group: own}, images)

  jacobian = jax.jit(jax.jacrev(features))(params[group])
  flat = [np.asarray(x, np.float64).reshape(len(images), x.shape[1], -1)
          for x in jax.tree.leaves(jacobian)]  # fmt: skip
  flat = np.concatenate(flat, axis=2).reshape(len(images), -1)
  return flat @ flat.T


def test_every_feature_as_a_probe_gives_the_kernel_of_the_whole_jacobian():
  apply, params, images, labels = network()
  size = apply(params, images[:1]).shape[1]
  found = kernels.gradient_kernels(
    apply, params, images, labels, probes=np.eye(size), buckets=None, batch_size=4
  )
  assert list(found.groups) == ["block0", "block1", "block2"]
  for name, kernel in found.groups.items():
    wanted = exact(apply, params, images, name)
    np.testing.assert_allclose(kernel, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
    assert found.num_params[name] == sum(x.size for x in jax.tree.leaves(params[name]))
  phi = np.asarray(apply(params, images), np.float64)
  np.testing.assert_allclose(found.head, phi @ phi.T, rtol=1e-4, atol=1e-6)


def relative(kernel, wanted):
  """Frobenius error with the better of all scales taken out: a ridge scales kernels anyway."""
  scale = np.sum(kernel * wanted) / np.sum(kernel**2)
  return np.linalg.norm(scale * kernel - wanted) / np.linalg.norm(wanted)


def test_random_probes_and_sketches_come_near_it():
  apply, params, images, labels = network()
  size = apply(params, images[:1]).shape[1]
  options = {"batch_size": 10, "seed": 3}
  full = kernels.gradient_kernels(
    apply, params, images, labels, probes=np.eye(size), buckets=None, **options
  )
  probed = kernels.gradient_kernels(
    apply, params, images, labels, probes=200, buckets=None, **options
  )
  sketched = kernels.gradient_kernels(
    apply, params, images, labels, probes=200, buckets=64, **options
  )
  for name, wanted in full.groups.items():
    np.testing.assert_allclose(
      np.trace(probed.groups[name]) * size, np.trace(wanted), rtol=0.1
    )  # unbiased: tr(J J') / D
    assert relative(probed.groups[name], wanted) < 0.1
    assert relative(sketched.groups[name], wanted) < 0.15


def test_images_in_another_order_and_more_of_them_change_no_value():
  apply, params, images, labels = network()
  order = np.random.default_rng(0).permutation(len(images))
  one = kernels.gradient_kernels(apply, params, images, labels, batch_size=4)
  other = kernels.gradient_kernels(apply, params, images[order], labels, batch_size=7)
  for name, kernel in one.groups.items():
    np.testing.assert_allclose(
      other.groups[name], kernel[np.ix_(order, order)], rtol=1e-3, atol=1e-4 * np.trace(kernel)
    )
  again = kernels.gradient_kernels(apply, params, images, labels, batch_size=4)
  assert all(np.array_equal(again.groups[name], one.groups[name]) for name in one.groups)
  seeded = kernels.gradient_kernels(apply, params, images, labels, batch_size=4, seed=1)
  assert not np.allclose(seeded.groups["block0"], one.groups["block0"], rtol=1e-3)


def test_landmarks_are_columns_of_the_whole():
  apply, params, images, labels = network()
  whole = kernels.gradient_kernels(apply, params, images, labels, batch_size=4, probes=2)
  some = kernels.gradient_kernels(
    apply, params, images, labels, batch_size=4, probes=2, landmarks=4
  )
  columns = some.landmarks
  assert len(set(columns)) == 4
  np.testing.assert_allclose(some.base, whole.base, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(some.head, whole.head[:, columns], rtol=1e-4, atol=1e-5)
  for name, kernel in whole.groups.items():
    np.testing.assert_allclose(
      some.groups[name], kernel[:, columns], rtol=1e-3, atol=1e-4 * np.trace(kernel)
    )
  more = kernels.gradient_kernels(apply, params, images, labels, probes=1, landmarks=99)
  assert more.landmarks is None


def test_devices_share_the_batch():
  apply, params, images, labels = network()
  one = kernels.gradient_kernels(apply, params, images, labels, probes=1)
  four = kernels.gradient_kernels(apply, params, images, labels, probes=1, mesh=mesh.make_mesh())
  for name, kernel in one.groups.items():
    np.testing.assert_allclose(four.groups[name], kernel, rtol=1e-4, atol=1e-5)


def test_an_nnx_state_has_kernels_too():
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.first, self.second = nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 4, rngs=rngs)

    def __call__(self, x):
      return self.second(jnp.tanh(self.first(x)))

  graph, state = nnx.split(Net(nnx.Rngs(0)))
  x = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
  labels = masks.label(state, {"a": "first", "b": "second"})
  found = kernels.gradient_kernels(
    lambda state, x: nnx.merge(graph, state)(x), state, x, labels, probes=np.eye(4), buckets=None
  )
  hidden = np.tanh(
    x @ np.asarray(state["first"]["kernel"][...]) + np.asarray(state["first"]["bias"][...])
  )
  np.testing.assert_allclose(found.groups["b"], 4 * (hidden @ hidden.T + 1), rtol=1e-4)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"probes": 0}, "probes is 0"),
    ({"probes": np.eye(3)}, r"probes have shape \(3, 3\); the features need \[m, 8\]"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"landmarks": 1}, "landmarks is 1; give at least 2"),
    ({"images": np.zeros((1, 16, 16, 3), np.float32)}, "1 images"),
    ({"labels": "frozen"}, "labels name no group"),
    ({"apply": lambda params, x: x}, r"apply gives \(1, 16, 16, 3\)"),
    ({"images": np.full((4, 16, 16, 3), np.nan, np.float32)}, "are not finite"),
  ],
)
def test_bad_input_is_one_clear_error(change, message):
  apply, params, images, labels = network(4)
  given = {"apply": apply, "params": params, "images": images, "labels": labels} | change
  if given["labels"] == "frozen":
    given["labels"] = jax.tree.map(lambda _: "frozen", params)
  with pytest.raises(ValueError, match=message):
    kernels.gradient_kernels(**given)
