import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax.data import preprocess
from subtune_jax.models import heads
from subtune_jax.search import brief_fit, criteria, kernels, plasticity, predicted, ridge
from subtune_jax.training import loop
from tests.search import small

COUNT, CLASSES = 36, 3
NAMES = ("a", "b", "c")
LABELS = np.arange(COUNT) % CLASSES


def make(seed=0):
  """Three units; "b" knows the classes, the others and the head do not."""
  rng = np.random.default_rng(seed)

  def gram(x):
    return (x @ x.T).astype(np.float32)

  known = np.eye(CLASSES)[LABELS] + 0.3 * rng.normal(size=(COUNT, CLASSES))
  groups = {"a": gram(rng.normal(size=(COUNT, 4))), "b": gram(known)}
  groups["c"] = gram(rng.normal(size=(COUNT, 5)))
  found = kernels.Kernels(
    gram(rng.normal(size=(COUNT, 3))), groups, {"a": 5, "b": 4, "c": 3}, dict.fromkeys(NAMES, 2.0)
  )
  rows = np.arange(COUNT)
  folds = [(rows[rows // 3 % 3 != k], rows[rows // 3 % 3 == k]) for k in range(3)]
  return criteria.Problem(predicted.Predictor(found, LABELS, folds))


@pytest.mark.parametrize("name", ["predicted", "pursuit", "alignment", "residual_alignment",
                                  "square_gradient", "signal_to_noise"])  # fmt: skip
def test_the_unit_that_knows_the_classes_is_found(name):
  values = criteria.CRITERIA[name](make(), ())
  assert int(np.argmax(values)) == 1
  after = criteria.CRITERIA[name](make(), ("b",))
  assert np.isnan(after[1])
  assert np.isfinite(after[[0, 2]]).all()


def test_pursuit_is_the_slope_of_the_objective():
  problem = make()
  predictor, rows = problem.predictor, problem.rows
  kernel = ridge.centre(predictor.kernel(("a",), rows))
  strength = criteria._fit(problem, ("a",)).strength
  y = predictor.targets - predictor.targets.mean(axis=0)

  def objective(weight):  # of ridge: strength * y' (K + strength I)^-1 y, here without the factor
    own = ridge.centre(predictor.kernels.groups["c"])
    own = own / np.trace(own)
    return np.sum(y * np.linalg.solve(kernel + weight * own + strength * np.eye(COUNT), y))

  slope = (objective(1e-4) - objective(-1e-4)) / 2e-4
  found = criteria.CRITERIA["pursuit"](problem, ("a",))[2]
  assert found == pytest.approx(-slope, rel=1e-4)


def test_alignment_is_the_cosine_of_centred_matrices():
  problem = make()
  centred = np.eye(COUNT) - 1 / COUNT
  target = problem.predictor.targets @ problem.predictor.targets.T
  wanted = [
    np.sum((centred @ k @ centred) * (centred @ target @ centred))
    / np.linalg.norm(centred @ k @ centred) / np.linalg.norm(centred @ target @ centred)
    for k in problem.predictor.kernels.groups.values()
  ]  # fmt: skip
  np.testing.assert_allclose(criteria.CRITERIA["alignment"](problem, ()), wanted, rtol=1e-6)


def test_rules_without_labels():
  problem = make()
  assert list(criteria.CRITERIA["few_parameters"](problem, ())) == [-5, -4, -3]
  assert list(criteria.CRITERIA["last"](problem, ())) == [0, 1, 2]
  other = dataclasses.replace(problem, seed=1)
  assert not np.array_equal(
    criteria.CRITERIA["random"](problem, ()), criteria.CRITERIA["random"](other, ())
  )
  largest = criteria.CRITERIA["largest_eigenvalue"](problem, ())
  own = ridge.centre(problem.predictor.kernels.groups["a"])
  assert largest[0] == pytest.approx(np.linalg.norm(own, 2))


def test_greedy_sets_grow_by_the_best_next_unit():
  sets = criteria.greedy_sets(criteria.CRITERIA["predicted"], make(), 3)
  assert sets[0] == ("b",)
  assert [len(units) for units in sets] == [1, 2, 3]
  assert sets[2] == NAMES


@pytest.mark.parametrize(
  ("name", "field"), [("head2toe", "relevance"), ("plasticity", "plasticity")]
)
def test_a_measured_criterion_reads_what_it_is_given(name, field):
  problem = dataclasses.replace(make(), **{field: {"a": 1.0, "b": 5.0, "c": 0.0}})
  np.testing.assert_array_equal(criteria.CRITERIA[name](problem, ("b",)), [1, np.nan, 0])
  for values in (None, {"a": 1.0, "b": 2.0}):
    with pytest.raises(ValueError, match=rf"needs Problem\.{field} .* of a, b, c"):
      criteria.CRITERIA[name](dataclasses.replace(problem, **{field: values}), ())


def test_a_criterion_after_a_fit_reads_the_gradients_of_the_chosen_set():
  asked = []

  def fitted(chosen):
    asked.append(chosen)
    return brief_fit.Gradients({"a": 1.0, "b": 5.0, "c": 0.0}, {"a": 4.0, "b": 5.0, "c": 6.0})

  problem = dataclasses.replace(make(), fitted=fitted)
  relative = criteria.CRITERIA["fitted_relative_gradient"](problem, ("b",))
  signal = criteria.CRITERIA["fitted_signal_to_noise"](problem, ("a",))
  np.testing.assert_array_equal(relative, [1, np.nan, 0])
  np.testing.assert_array_equal(signal, [np.nan, 5, 6])
  assert asked == [("b",), ("a",)]
  with pytest.raises(ValueError, match=r"fitted_signal_to_noise' needs Problem\.fitted"):
    criteria.CRITERIA["fitted_signal_to_noise"](make(), ())


def test_gradients_after_a_fit_are_those_of_the_trained_network():
  """The set trained by hand; gradients from the logits' own formula, with autograd of one loss."""
  net = small.model()
  problem, recipe = small.problem(net), small.recipe(epochs=1)
  engine = small.engine(net)
  found = brief_fit.BriefFit(problem, recipe, engine, seed=1)(("block2/unit1",))
  images, labels = problem.train.images, np.asarray(problem.train.labels)
  start = heads.init_head(net, problem.variables, 1, problem.weights)
  method = recipe.method(("block2/unit1",))
  trained = loop.fit(engine, start, method, problem.train, None, seed=1).variables
  size = engine.batch_size
  order = np.random.default_rng(1).permutation(len(labels))

  @jax.jit
  def gradient(params, x, y):
    def loss(params):
      logits = net.apply({**trained, "params": params}, x)
      return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(y, 3), axis=1))

    return jax.grad(loss)(params)["block1"]["unit1"]

  own = [
    np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient(
      trained["params"], preprocess.normalize(images[rows], engine.preprocessing), labels[rows]))])
    for rows in order[: len(order) // size * size].reshape(-1, size)
  ]  # fmt: skip
  mean, spread = np.mean(own, axis=0), np.mean(np.var(own, axis=0).sum())
  theta = np.concatenate(
    [np.ravel(x) for x in jax.tree.leaves(trained["params"]["block1"]["unit1"])]
  )
  wanted = np.linalg.norm(mean) / np.linalg.norm(theta)
  assert found.relative["block1/unit1"] == pytest.approx(wanted, rel=1e-4)
  assert found.signal["block1/unit1"] == pytest.approx(np.sum(mean**2) / spread, rel=1e-3)
  assert tuple(found.relative) == problem.network.names


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda p, r, e: (p, dataclasses.replace(r, by_rate={1e-3: r.method}), e), "recipe of one"),
    (lambda p, r, e: (p, r, dataclasses.replace(e, batch_size=32)), "40 images; two batches of 32"),
  ],
)
def test_a_fit_that_cannot_be_measured_is_one_clear_error(change, message):
  net = small.model()
  with pytest.raises(ValueError, match=message):
    brief_fit.BriefFit(*change(small.problem(net), small.recipe(), small.engine(net)))


def test_plasticity_by_hand():
  """Outputs by one forward pass up to each block; a group of blocks has their mean."""
  net = small.model()
  problem = small.problem(net, spec="early: stem block1/unit1; late: block3/unit1")
  engine, images = small.engine(net), small.dataset(6).images
  found = plasticity.plasticity(engine, problem.variables, images, problem.network, seed=3)
  x = preprocess.normalize(images, engine.preprocessing)
  names = (*net.block_names, "head")
  whole = jax.jit(lambda x: [net.apply(problem.variables, x, stop=stop) for stop in names[1:]])
  outputs = [x, *whole(x)]
  order = np.random.default_rng(3).permutation(6)
  pairs = list(zip(order, np.roll(order, -1), strict=True))

  def far(values, i, j):
    return float(np.sqrt(np.sum((np.asarray(values[i]) - np.asarray(values[j])) ** 2)))

  ratios = {
    name: np.mean([far(after, i, j) / far(before, i, j) for i, j in pairs])
    for name, before, after in zip(names[:-1], outputs[:-1], outputs[1:], strict=True)
  }
  assert found["late"] == pytest.approx(ratios["block3/unit1"], rel=1e-4)
  assert found["early"] == pytest.approx((ratios["stem"] + ratios["block1/unit1"]) / 2, rel=1e-4)
