"""The registry: a row of parameter counts for every model, and the errors of `create`."""

import jax
import jax.numpy as jnp
import pytest

from subtune_jax import masks, models

# Parameters with 1000 classes, parameters of the head, running statistics, blocks.
_COUNTS = {
  "efficientnet_lite0": (4_652_008, 1_281_000, 42_016, 18),
}


def _shapes(name: str, num_classes: int, dtype=jnp.float32):
  model = models.create(name, num_classes, dtype)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  return model, jax.eval_shape(model.init, jax.random.key(0), images)


@pytest.mark.parametrize("name", models.names())
def test_every_registered_model_has_its_row_of_counts(name):
  assert name in _COUNTS, f"{name} is registered without a row in _COUNTS: add one"
  model, shapes = _shapes(name, 1000)
  got = (
    masks.count_params(shapes["params"]),
    masks.count_params(shapes["params"]["head"]),
    masks.count_params(shapes["batch_stats"]),
    len(model.block_names),
  )
  assert got == _COUNTS[name]


def test_no_row_outlives_its_model():
  assert set(_COUNTS) == set(models.names())


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("num_classes", [1, 45])
def test_only_the_head_depends_on_the_number_of_classes(name, num_classes):
  _, shapes = _shapes(name, num_classes)
  total, head, _, _ = _COUNTS[name]
  assert masks.count_params(shapes["params"]) == total - head + num_classes * head // 1000
  assert shapes["params"]["head"]["bias"].shape == (num_classes,)


@pytest.mark.parametrize("name", models.names())
def test_the_variables_are_the_blocks_and_a_head(name):
  model, shapes = _shapes(name, 45)
  assert set(shapes) == {"params", "batch_stats"}
  assert set(shapes["params"]) == {*model.block_names, "head"}
  assert set(shapes["batch_stats"]) == set(model.block_names)


@pytest.mark.parametrize("name", models.names())
def test_parameters_are_float32_whatever_the_computation_is(name):
  _, shapes = _shapes(name, 45, jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


def test_an_unknown_name_is_an_error_with_the_nearest_ones():
  with pytest.raises(ValueError, match=r"'efficientnet_lite'.*did you mean 'efficientnet_lite0'"):
    models.create("efficientnet_lite", 45)
  with pytest.raises(ValueError, match=r"'zzz'; registered: .*efficientnet_lite0"):
    models.create("zzz", 45)


@pytest.mark.parametrize("num_classes", [0, -1, 1.0, "45", True, None])
def test_a_number_of_classes_that_is_no_positive_integer_is_an_error(num_classes):
  with pytest.raises(ValueError, match=f"num_classes={num_classes!r}"):
    models.create("efficientnet_lite0", num_classes)
