"""A fresh head is fresh, also for a network that was trained from a head of the same seed."""

import jax
import numpy as np

from subtune_jax import methods
from subtune_jax.models import heads
from subtune_jax.training import loop
from tests import tiny


def accuracy(model, variables):
  test = tiny.examples(30, 1)
  return np.mean(tiny.engine(model).predict(variables, test.images).argmax(-1) == test.labels)


def test_a_head_is_a_function_of_seed_and_weights():
  model, variables = tiny.make()
  drawn = {
    (seed, weights): np.asarray(
      heads.init_head(model, variables, seed, weights)["params"]["head"]["kernel"]
    )
    for seed in (0, 1) for weights in ("", "a", "b")
  }  # fmt: skip
  again = heads.init_head(model, variables, 1, "b")["params"]
  np.testing.assert_array_equal(drawn[1, "b"], again["head"]["kernel"])
  assert len({kernel.tobytes() for kernel in drawn.values()}) == 6
  assert jax.tree.all(jax.tree.map(np.array_equal, again["block0"], variables["params"]["block0"]))


def test_the_head_that_a_network_grew_with_is_not_drawn_again():
  model, variables = tiny.make()
  grown = loop.fit(
    tiny.engine(model), heads.init_head(model, variables, 0, "random"),
    methods.full_fine_tuning(1e-2, epochs=8), tiny.examples(48), None,
  ).variables  # fmt: skip
  assert accuracy(model, heads.init_head(model, grown, 0, "random")) > 0.8  # the trap
  assert accuracy(model, heads.init_head(model, grown, 0, "grown")) < 0.7
