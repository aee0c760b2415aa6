"""Ranges of blocks, modes of BatchNorm, precision, and the layers against XLA's own."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import models, weights
from subtune_jax.models import batch_norm, convolution, efficientnet

_SMALL = efficientnet.EfficientNet(
  num_classes=5,
  blocks=(
    efficientnet.BlockSpec(3, 1, 1, 8, 8),
    efficientnet.BlockSpec(5, 2, 2, 8, 12),
    efficientnet.BlockSpec(3, 1, 2, 12, 12),
    efficientnet.BlockSpec(5, 1, 2, 12, 12),
  ),
  stem_features=8,
  features=16,
)


@functools.cache
def _small():
  """Variables of the small model, drawn by numpy: kernels about as large as initialised ones."""
  rng = np.random.default_rng(1)
  images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  shapes = jax.eval_shape(_SMALL.init, jax.random.key(0), images)

  def draw(path, leaf):
    if leaf.ndim > 1:
      value = rng.normal(size=leaf.shape) * np.prod(leaf.shape[:-1]) ** -0.5
    else:
      value = rng.uniform(0.5, 1.5, leaf.shape) - (path[-1].key in ("bias", "mean"))
    return jnp.asarray(value, jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def _lite0():
  model = models.create("efficientnet_lite0", 45)
  return model, weights.load_pretrained("efficientnet_lite0/imagenet", model).variables


def _images(n: int, size: int) -> jax.Array:
  images = np.random.default_rng(2).uniform(-1, 1, (n, size, size, 3))
  return jnp.asarray(images, jnp.float32)


def _normal(seed: int, *shape: int) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# ------------------------------------------------------------------ ranges


def test_one_unit_after_the_other_is_the_whole_bit_for_bit():
  model, variables = _lite0()
  units = (*model.block_names, "head")

  @jax.jit
  def both(variables, x):
    whole, features = model.apply(variables, x), model.apply(variables, x, stop="head")
    between = {}
    for start, stop in zip(units, (*units[1:], None), strict=True):
      x = between[start] = model.apply(variables, x, start=start, stop=stop)
    rest = model.apply(variables, between["block7"], start="block8")
    return whole, features, between, rest

  whole, features, between, rest = both(variables, _images(2, 32))
  assert whole.shape == (2, 45)
  assert features.shape == (2, 1280)
  np.testing.assert_array_equal(between["head"], whole)
  np.testing.assert_array_equal(between["top"], features)
  np.testing.assert_array_equal(rest, whole)
  shapes = [between[name].shape[1:] for name in ("stem", "block0", "block1", "block8", "block15")]
  assert shapes == [(16, 16, 32), (16, 16, 16), (8, 8, 24), (2, 2, 112), (1, 1, 320)]
  assert np.ptp(whole) > 0.1


@pytest.mark.parametrize(
  ("start", "stop", "message"),
  [
    ("block4", None, r"start='block4' is not a unit.*stem, block0.*block3, top, head"),
    (None, "Top", r"stop='Top' is not a unit"),
    ("", None, r"start='' is not a unit"),
    ("block1", "block1", "stop must be a later unit"),
    ("top", "block0", "stop must be a later unit"),
    (None, "stem", "stop must be a later unit"),
    ("head", "head", "stop must be a later unit"),
  ],
)
def test_a_range_that_does_not_exist_is_an_error(start, stop, message):
  with pytest.raises(ValueError, match=message):
    _SMALL.apply(_small(), _images(1, 16), start=start, stop=stop)


@pytest.mark.parametrize(
  ("train_blocks", "message"),
  [
    ({"block9", "stem"}, r"unknown \['block9'\]; blocks: stem, block0"),
    ({"head"}, r"unknown \['head'\]"),
    ("block1", "is a string"),
  ],
)
def test_train_blocks_that_do_not_exist_are_an_error(train_blocks, message):
  with pytest.raises(ValueError, match=message):
    _SMALL.apply(_small(), _images(1, 16), train_blocks=train_blocks, mutable=["batch_stats"])


# ------------------------------------------------------------------ modes of BatchNorm


def test_only_train_blocks_update_their_running_statistics():
  variables = _small()
  apply = jax.jit(_SMALL.apply, static_argnames=("train_blocks", "mutable"))
  _, new = apply(
    variables, _images(4, 16), train_blocks=frozenset({"block3"}), mutable=("batch_stats",)
  )
  before, after = variables["batch_stats"], new["batch_stats"]
  assert set(after) == set(_SMALL.block_names)
  for name in set(after) - {"block3"}:
    jax.tree.map(np.testing.assert_array_equal, after[name], before[name])
  changed = jax.tree.map(lambda a, b: bool((a != b).all()), after["block3"], before["block3"])
  assert all(jax.tree.leaves(changed)), changed


def test_a_train_block_normalises_by_the_batch():
  """So that its result does not depend on the running statistics, and a frozen block's does."""
  variables, x = _small(), _images(4, 16)
  other = jax.tree.map(lambda s: s + 1, variables["batch_stats"])
  both = (variables, {**variables, "batch_stats": other})
  options = {"stop": "block0", "mutable": ["batch_stats"]}
  train, frozen = (
    [jax.jit(functools.partial(_SMALL.apply, train_blocks=t, **options))(v, x)[0] for v in both]
    for t in ({"stem"}, ())
  )
  np.testing.assert_array_equal(*train)
  assert np.abs(frozen[0] - frozen[1]).max() > 0.1


def test_bfloat16_is_near_float32_and_parameters_stay_float32():
  variables, x = _small(), _images(4, 16)
  half = _SMALL.clone(dtype=jnp.bfloat16)
  made = jax.eval_shape(half.init, jax.random.key(0), x)
  features = jax.eval_shape(functools.partial(half.apply, stop="head"), variables, x)
  assert features.dtype == jnp.bfloat16
  options = {"train_blocks": frozenset({"block3"}), "mutable": ["batch_stats"]}
  exact, (logits, new) = (
    jax.jit(functools.partial(model.apply, **options))(variables, x) for model in (_SMALL, half)
  )
  assert {leaf.dtype for leaf in jax.tree.leaves((made, new))} == {jnp.dtype(jnp.float32)}
  assert logits.dtype == jnp.float32
  error = np.abs(logits - exact[0]).max() / np.abs(exact[0]).max()
  assert 1e-4 < error < 0.05  # it is not float32 in disguise


# ------------------------------------------------------------------ convolutions


def _xla(x, kernel, stride, groups):
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
  )  # fmt: skip


def _compare(ours, reference, x, kernel):
  """Asserts equal values and equal gradients for x and the kernel, to float tolerance."""

  @jax.jit
  def run(x, kernel):
    cotangent = _normal(5, *jax.eval_shape(reference, x, kernel).shape)
    results = []
    for function in (ours, reference):
      y, pullback = jax.vjp(function, x, kernel)
      results.append((y, *pullback(cotangent)))
    return results

  for name, got, expected in zip(("y", "dx", "dkernel"), *run(x, kernel), strict=True):
    scale = max(float(np.abs(expected).max()), 1e-3)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=3e-6 * scale, err_msg=name)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(
  ("height", "width", "channels"),
  [(1, 1, 24), (2, 2, 8), (3, 3, 24), (4, 4, 8), (7, 7, 24), (8, 8, 8), (16, 16, 8), (2, 7, 8)],
)
def test_depthwise_is_xlas_convolution(height, width, channels, kernel, stride):
  _compare(
    lambda x, k: convolution.depthwise(x, k, stride),
    lambda x, k: _xla(x, k, stride, channels),
    _normal(3, 3, height, width, channels),
    _normal(4, kernel, kernel, 1, channels),
  )


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize(("channels", "features"), [(8, 24), (24, 8)])
def test_pointwise_is_xlas_convolution(size, channels, features):
  _compare(
    convolution.pointwise,
    lambda x, k: _xla(x, k, 1, 1),
    _normal(3, 3, size, size, channels),
    _normal(4, 1, 1, channels, features),
  )


@pytest.mark.parametrize(
  ("size", "kernel", "stride", "channels"),
  [(1, 3, 2, 3), (2, 5, 2, 3), (7, 3, 2, 3), (8, 3, 2, 3), (8, 5, 1, 3), (4, 3, 1, 8)],
)
def test_full_is_xlas_convolution(size, kernel, stride, channels):
  _compare(
    lambda x, k: convolution.full(x, k, stride),
    lambda x, k: _xla(x, k, stride, 1),
    _normal(3, 3, size, size, channels),
    _normal(4, kernel, kernel, channels, 8),
  )


# ------------------------------------------------------------------ batch mode


def _plain(x, scale, bias, act, epsilon):
  axes = tuple(range(x.ndim - 1))
  mean, var = jnp.mean(x, axes, keepdims=True), jnp.var(x, axes, keepdims=True)
  scale, bias = (v.reshape(mean.shape) for v in (scale, bias))
  y = (x - mean) / jnp.sqrt(var + epsilon) * scale + bias
  limit = batch_norm.LIMITS[act]
  return y if limit is None else jnp.clip(y, 0, limit), mean.ravel(), var.ravel()


@pytest.mark.parametrize("act", ["none", "relu", "relu6"])
@pytest.mark.parametrize("shape", [(4, 5, 5, 8), (7, 8), (2, 1, 1, 8)])
def test_batch_mode_is_the_formula_and_its_derivative(shape, act):
  x = 2 * _normal(3, *shape) + 1
  scale, bias = 2 * _normal(4, 8), 3 + _normal(5, 8)
  cotangents = (_normal(6, *shape), _normal(7, 8), _normal(8, 8))
  results = []
  for function in (batch_norm.batch_mode, _plain):
    function = jax.jit(function, static_argnums=(3, 4))
    y, pullback = jax.vjp(lambda *a, f=function: f(*a, act, 1e-2), x, scale, bias)
    results.append((*y, *pullback(cotangents)))
  if act == "relu6":  # the example reaches two pieces or all three
    y = results[1][0]
    assert (y == 0).any()
    assert ((y > 0) & (y < 6)).any()
  names = ("y", "mean", "var", "dx", "dscale", "dbias")
  for name, got, expected in zip(names, *results, strict=True):
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-5 * scale, err_msg=name)


def test_relu6_has_no_gradient_at_its_kinks():
  x = jnp.array([-1.0, 0.0, 1e-3, 3.0, 6.0, 7.0])
  np.testing.assert_array_equal(
    jax.vmap(jax.grad(lambda v: batch_norm.activate(v, "relu6")))(x), [0, 0, 1, 1, 0, 0]
  )


# ------------------------------------------------------------------ several devices


def test_a_sharded_batch_gives_the_gradients_of_one_device():
  model = _SMALL.clone(blocks=_SMALL.blocks[:2])
  train_blocks = ("stem", "block1", "top")
  variables, x = _small(), _images(8, 16)
  labels = jnp.arange(8) % 5

  def loss_fn(params, x, labels):
    logits, new = model.apply(
      {**variables, "params": params}, x, train_blocks=train_blocks, mutable=["batch_stats"]
    )
    rows = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
    return -jnp.mean(rows), new["batch_stats"]

  step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  everywhere, split = (
    jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in ((), ("data",))
  )
  params = jax.device_put(variables["params"], everywhere)
  sharded = step(params, *jax.device_put((x, labels), split))
  single = step(variables["params"], x, labels)
  assert len(sharded[0][0].sharding.device_set) == 4

  def check(got, expected):
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * scale + 1e-7)

  jax.tree.map(check, jax.device_get(sharded), jax.device_get(single))
