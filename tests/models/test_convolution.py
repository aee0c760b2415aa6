"""The convolutions under transformations, and what each platform runs; values: test_ranges.py."""

import functools

import jax
from jax import export, lax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax.models import convolution


def _depthwise(stride):
  return lambda x, kernel: convolution.depthwise(x, kernel, stride)


def _random(seed, *shape, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def _value_and_gradients(function, x, kernel):
  """The result, and both gradients of its product with fixed random numbers."""
  y, pullback = jax.vjp(function, x, kernel)
  return y, *pullback(_random(9, *y.shape, dtype=y.dtype))


@pytest.mark.parametrize(("height", "k", "stride"), [(8, 5, 1), (2, 5, 1), (6, 3, 2)])
def test_depthwise_in_bfloat16_adds_in_float32(height, k, stride):
  x = _random(0, 16, height, height, 8, dtype=jnp.bfloat16)
  kernel = _random(1, k, k, 1, 8, dtype=jnp.bfloat16)

  def exact(x, w):
    return lax.conv_general_dilated(
      x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=8,
    )  # fmt: skip

  got = jax.jit(functools.partial(_value_and_gradients, _depthwise(stride)))(x, kernel)
  exact = jax.jit(functools.partial(_value_and_gradients, exact))
  wanted = exact(x.astype(jnp.float32), kernel.astype(jnp.float32))
  for a, b in zip(got, wanted, strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(a), b, rtol=2**-7, atol=2**-8 * np.abs(b).max())


def test_vmap_over_inputs_and_kernels_equals_a_loop():
  x, kernel = _random(0, 2, 3, 6, 6, 4), _random(1, 2, 3, 3, 1, 4)
  function = functools.partial(_value_and_gradients, _depthwise(1))
  got = jax.jit(jax.vmap(function))(x, kernel)
  for i in range(2):
    one = jax.jit(function)(x[i], kernel[i])
    for a, b in zip(got, one, strict=True):
      np.testing.assert_allclose(a[i], b, atol=1e-5)


def test_a_batch_split_over_four_devices_gives_the_same_gradients():
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("data",))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  for height, k, stride in [(8, 5, 1), (8, 3, 2), (2, 5, 1)]:
    x, kernel = _random(0, 8, height, height, 6), _random(1, k, k, 1, 6)
    function = functools.partial(_value_and_gradients, _depthwise(stride))
    one = jax.jit(function)(x, kernel)
    four = jax.jit(function)(jax.device_put(x, split), jax.device_put(kernel, everywhere))
    assert len(four[0].sharding.device_set) == 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), four, one)


# ------------------------------------------------------------------ what each platform runs


def _operations(height: int):
  x = jax.ShapeDtypeStruct((2, height, height, 3), jnp.float32)
  depthwise = jax.ShapeDtypeStruct((3, 3, 1, 3), jnp.float32)
  full = jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32)
  return {
    "depthwise": (_depthwise(1), x, depthwise),
    "full": (lambda x, w: convolution.full(x, w, 2), x, full),
  }


@pytest.mark.parametrize("name", ["depthwise", "full"])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_run_xlas_convolution(platform, name):
  function, *arguments = _operations(8)[name]
  traced = jax.jit(functools.partial(_value_and_gradients, function))
  lowered = export.export(traced, platforms=[platform])(*arguments).mlir_module()
  assert lowered.count("stablehlo.convolution") == 3  # forward, and a gradient for each argument
  for other in ("stablehlo.while", "stablehlo.optimization_barrier", "stablehlo.concatenate"):
    assert other not in lowered


@pytest.mark.parametrize("name", ["depthwise", "full"])
@pytest.mark.parametrize("height", [2, 8])
def test_cpu_runs_no_convolution_and_branches_nowhere(height, name):
  function, *arguments = _operations(height)[name]
  traced = jax.jit(functools.partial(_value_and_gradients, function))
  compiled = traced.lower(*arguments).compile().as_text()
  assert " convolution(" not in compiled
  assert " conditional(" not in compiled


def test_one_program_for_several_platforms_lowers():
  function, *arguments = _operations(8)["depthwise"]
  traced = jax.jit(functools.partial(_value_and_gradients, function))
  exported = export.export(traced, platforms=["cpu", "tpu", "cuda"])(*arguments)
  x, kernel = _random(0, 2, 8, 8, 3), _random(1, 3, 3, 1, 3)
  got, wanted = exported.call(x, kernel), traced(x, kernel)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, wanted)


def test_gradients_that_nobody_asks_for_are_not_computed():
  x, kernel = _random(0, 4, 8, 8, 16), _random(1, 5, 5, 1, 16)

  def loops(argnums):
    loss = jax.grad(lambda x, w: jnp.sum(convolution.depthwise(x, w, 1) ** 2), argnums)
    text = jax.jit(loss).lower(x, kernel).compile().as_text()
    return text.count(" while(")

  assert loops(0) == 0  # the kernel's gradient is the loop
  assert loops(1) == 1
