import dataclasses

import numpy as np
import pytest

from subtune_jax.search import criteria, kernels, predicted, ridge

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


def test_head2toe_reads_the_relevance_that_it_is_given():
  problem = dataclasses.replace(make(), relevance={"a": 1.0, "b": 5.0, "c": 0.0})
  np.testing.assert_array_equal(criteria.CRITERIA["head2toe"](problem, ("b",)), [1, np.nan, 0])
  for relevance in (None, {"a": 1.0, "b": 2.0}):
    with pytest.raises(ValueError, match=r"needs Problem\.relevance .* of a, b, c"):
      criteria.CRITERIA["head2toe"](dataclasses.replace(problem, relevance=relevance), ())
