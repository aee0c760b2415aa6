"""Closed forms against refits, and against scikit-learn."""

import dataclasses

import numpy as np
import pytest
from sklearn import kernel_ridge, linear_model

from subtune_jax.search import kernels, predicted, ridge

RNG = np.random.default_rng(0)
COUNT, CLASSES = 40, 3
GROUPS = np.repeat(np.arange(COUNT // 4), 4)


def random_kernels(names="abc", count=COUNT):
  rng = np.random.default_rng(1)

  def one(size):
    x = rng.normal(size=(count, size)).astype(np.float32)
    return x @ x.T

  return kernels.Kernels(
    one(5), {n: one(7) for n in names}, dict.fromkeys(names, 7), dict.fromkeys(names, 1.0),
    base=np.zeros((count, 1), np.float32),
  )  # fmt: skip


def make(labels=None, **options):
  labels = np.arange(COUNT) % CLASSES if labels is None else labels
  rows = np.arange(COUNT)
  folds = [(rows[rows % 4 != k], rows[rows % 4 == k]) for k in range(4)]
  return predicted.Predictor(random_kernels(), labels, folds, **options)


def test_the_ridge_is_that_of_scikit_learn():
  x = RNG.normal(size=(COUNT, 6))
  y = RNG.normal(size=(COUNT, 2))
  new = RNG.normal(size=(9, 6))
  values = np.linalg.eigvalsh(ridge.centre(x @ x.T))
  found = ridge.fit(x @ x.T, y, np.arange(COUNT), [0.3])
  assert found.strength == pytest.approx(0.3 * values.mean())
  wanted = linear_model.Ridge(alpha=found.strength).fit(x, y).predict(new)
  ours = found.predict(new @ x.T, x @ x.T)
  np.testing.assert_allclose(ours, wanted, atol=1e-10)


@pytest.mark.parametrize("groups", [np.arange(COUNT), GROUPS, RNG.integers(0, 6, COUNT)])
def test_left_out_groups_equal_refits(groups):
  x = RNG.normal(size=(COUNT, 60))
  y = RNG.normal(size=(COUNT, 2))
  kernel = x @ x.T
  scale = np.linalg.eigvalsh(ridge.centre(kernel)).mean()
  errors = {}
  for strength in (0.01, 0.1, 1.0):
    inverse = np.linalg.inv(ridge.centre(kernel) + strength * scale * np.eye(COUNT))
    members = ridge.group_rows(groups)
    ours = ridge.left_out(inverse, strength * scale, y - y.mean(axis=0), members)
    brute = np.empty_like(y)
    for group in np.unique(groups):
      out = groups == group
      refit = linear_model.Ridge(alpha=strength * scale).fit(x[~out], y[~out])
      brute[out] = y[out] - refit.predict(x[out])
    np.testing.assert_allclose(ours, brute, rtol=0, atol=1e-8)
    errors[strength] = np.mean(brute**2)
  best = min(errors, key=errors.get)
  found = ridge.fit(kernel, y, groups, list(errors))
  assert found.strength == pytest.approx(best * scale)
  assert found.error == pytest.approx(errors[best], abs=1e-8)
  for first in range(3):  # three strengths have one valley here
    assert ridge.fit(kernel, y, groups, list(errors), first).strength == found.strength


@pytest.mark.parametrize("groups", [np.arange(COUNT), GROUPS])
def test_landmarks_give_the_ridge_of_the_kernel_that_they_span(groups):
  x = RNG.normal(size=(COUNT, 60))
  y = RNG.normal(size=(COUNT, 2))
  kernel, new = x @ x.T, RNG.normal(size=(9, 60)) @ x.T
  chosen = np.sort(RNG.permutation(COUNT)[:15])
  own = kernel[np.ix_(chosen, chosen)]
  spanned = kernel[:, chosen] @ np.linalg.solve(own, kernel[chosen])
  wanted = ridge.fit(spanned, y, groups)
  found = ridge.fit_landmarks(kernel[:, chosen], own, y, groups)
  assert found.place == wanted.place
  assert found.error == pytest.approx(wanted.error, rel=1e-6)
  others = new[:, chosen] @ np.linalg.solve(own, kernel[chosen])
  np.testing.assert_allclose(
    found.predict(new[:, chosen], kernel[:, chosen]), wanted.predict(others, spanned), atol=1e-7
  )
  whole = ridge.fit_landmarks(kernel, kernel, y, groups)  # every image is one: nothing is lost
  exact = ridge.fit(kernel, y, groups)
  np.testing.assert_allclose(whole.predict(new, kernel), exact.predict(new, kernel), atol=1e-7)


def test_predictions_from_landmarks_of_each_fold():
  whole = make(groups=GROUPS)
  landmarks = np.sort(RNG.permutation(COUNT)[:30])
  cut = dataclasses.replace(
    whole.kernels, head=whole.kernels.head[:, landmarks],
    groups={n: k[:, landmarks] for n, k in whole.kernels.groups.items()}, landmarks=landmarks,
  )  # fmt: skip
  some = predicted.Predictor(cut, whole.labels, whole.folds, groups=GROUPS)
  rest, held = some.folds[1]
  columns = np.flatnonzero(np.isin(landmarks, rest))
  rows = landmarks[columns]
  kernel = some.kernel(("a", "c"), rest)
  centred = np.eye(len(rows)) - 1 / len(rows)
  one = kernel - whole.kernels.head[:, landmarks] * np.float32(
    len(rows) / np.trace(centred @ whole.kernels.head[np.ix_(rows, rows)] @ centred)
  )
  assert np.trace(centred @ one[np.ix_(rows, columns)] @ centred) == pytest.approx(
    2 * len(rows), rel=1e-4
  )
  own = kernel[np.ix_(rows, columns)]
  found = ridge.fit_landmarks(kernel[np.ix_(rest, columns)], own, some.targets[rest], GROUPS[rest])
  np.testing.assert_allclose(
    some.outputs(("a", "c"), 1),
    found.predict(kernel[np.ix_(held, columns)], kernel[np.ix_(rest, columns)]), atol=1e-9,
  )  # fmt: skip
  labels = whole.labels.copy()
  labels[held] = (labels[held] + 1) % CLASSES
  poisoned = predicted.Predictor(cut, labels, whole.folds, groups=GROUPS)
  np.testing.assert_array_equal(poisoned.outputs(("b",), 1), some.outputs(("b",), 1))
  few = dataclasses.replace(cut, landmarks=np.concatenate([held[:5], rest[:1]]),
                            head=cut.head[:, :6])  # fmt: skip
  with pytest.raises(ValueError, match="a fold has 1 of 6 landmarks"):
    predicted.Predictor(few, whole.labels, whole.folds[1:2])


def test_a_set_is_a_ridge_on_the_sum_of_its_scaled_kernels():
  predictor = make(groups=GROUPS, rates=(0.5,))
  rest, held = predictor.folds[1]
  centred = np.eye(len(rest)) - 1 / len(rest)
  total = 0.0
  for weight, kernel in [(1, predictor.kernels.head)] + [
    (0.5, predictor.kernels.groups[name]) for name in "ac"
  ]:
    kernel = np.asarray(kernel, np.float64)
    total = total + weight * kernel * len(rest) / np.trace(
      centred @ kernel[np.ix_(rest, rest)] @ centred
    )
  ours = predictor.outputs(("a", "c"), 1)
  strength = predictor.choices[("a", "c"), 1].strength
  model = kernel_ridge.KernelRidge(alpha=strength, kernel="precomputed")
  own = centred @ total[np.ix_(rest, rest)] @ centred
  mean = predictor.targets[rest].mean(axis=0)
  model.fit(own, predictor.targets[rest] - mean)
  others = (total[np.ix_(held, rest)] - total[np.ix_(rest, rest)].mean(axis=0)) @ centred
  np.testing.assert_allclose(ours, mean + model.predict(others), atol=2e-6)
  score = predictor.evaluate([("a", "c")])[("a", "c")]
  assert score.complete
  np.testing.assert_array_equal(score.cells[1], ours.argmax(1) == predictor.labels[held])


def test_labels_that_a_fold_holds_out_change_nothing_but_the_score():
  clean = make(groups=GROUPS, rates=(0.3, 1.0))
  rest, held = clean.folds[2]
  labels = clean.labels.copy()
  labels[held] = (labels[held] + 1 + np.arange(len(held)) % 2) % CLASSES
  poisoned = make(labels, groups=GROUPS, rates=(0.3, 1.0))
  np.testing.assert_array_equal(clean.outputs(("b",), 2), poisoned.outputs(("b",), 2))
  assert clean.choices == poisoned.choices
  labels = clean.labels.copy()
  labels[rest[0]] = (labels[rest[0]] + 1) % CLASSES  # the test can fail
  assert not np.array_equal(clean.outputs(("b",), 2), make(labels).outputs(("b",), 2))


def test_images_and_units_in_another_order_give_the_same_answers():
  one = make(groups=GROUPS)
  order = np.random.default_rng(5).permutation(COUNT)
  back = np.argsort(order)
  moved = kernels.Kernels(
    one.kernels.head[np.ix_(order, order)],
    {n: one.kernels.groups[n][np.ix_(order, order)] for n in "cab"},
    one.kernels.num_params, one.kernels.square_norms,
  )  # fmt: skip
  folds = [(back[rest], back[held]) for rest, held in one.folds]
  other = predicted.Predictor(moved, one.labels[order], folds, groups=GROUPS[order])
  for units in [(), ("a",), ("a", "b", "c")]:
    np.testing.assert_allclose(one.outputs(units, 0), other.outputs(units, 0), atol=1e-5)


def test_what_the_start_knows_already_is_not_fitted():
  labels = np.arange(COUNT) % CLASSES
  start = np.eye(CLASSES)[labels]
  known = make(start=lambda features: start[: len(features)])
  assert known.evaluate([()])[()].mean == 1.0
  np.testing.assert_allclose(known.outputs(("a",), 0), start[known.folds[0][1]], atol=1e-12)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"labels": np.zeros(3, int)}, "kernels of 40 images, 3 labels"),
    ({"rates": ()}, r"rates are \(\)"),
    ({"start": lambda _: np.zeros((3, 2))}, r"start gives \(3, 2\)"),
  ],
)
def test_bad_input_is_one_clear_error(change, message):
  with pytest.raises(ValueError, match=message):
    make(**change)


def test_an_unknown_unit_is_named():
  with pytest.raises(ValueError, match="unit 'd'"):
    make().evaluate([("d",)])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"groups": np.zeros(COUNT)}, "all images are of one group"),
    ({"strengths": (0.0,)}, "strengths are"),
    ({"targets": np.full((COUNT, 2), np.nan)}, "not finite"),
  ],
)
def test_a_bad_ridge_is_one_clear_error(change, message):
  given = {"kernel": np.eye(COUNT), "targets": np.ones((COUNT, 2)), "groups": np.arange(COUNT)}
  with pytest.raises(ValueError, match=message):
    ridge.fit(**(given | change))


def test_a_kernel_of_equal_images_adds_nothing():
  base = make()
  flat = dataclasses.replace(base.kernels, groups={"a": np.ones((COUNT, COUNT), np.float32)})
  predictor = predicted.Predictor(flat, base.labels, base.folds)
  np.testing.assert_allclose(predictor.outputs(("a",), 0), predictor.outputs((), 0), atol=1e-6)


def test_the_head_of_a_set_reads_what_its_units_change():
  rng = np.random.default_rng(3)
  base, a, b = rng.normal(size=(3, COUNT, 5)).astype(np.float32)
  kernel = (base @ base.T).astype(np.float32)
  given = dataclasses.replace(
    random_kernels(), head=kernel, base=base, features={"a": a, "b": b}
  )  # fmt: skip
  weights = rng.normal(size=(5, CLASSES))
  start = lambda features: features @ weights  # noqa: E731
  plain = make()
  predictor = predicted.Predictor(given, plain.labels, plain.folds, start=start)
  without = predicted.Predictor(
    dataclasses.replace(given, features={}), plain.labels, plain.folds, start=start
  )
  rows, both = np.arange(COUNT), a + b - base
  np.testing.assert_allclose(predictor.head(("a", "b")), both @ both.T, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(predictor.head(("a",)), a @ a.T, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(predictor.head(("c",)), kernel)
  left = plain.targets - both @ weights
  np.testing.assert_allclose(predictor.residual(("a", "b"), rows), left, rtol=1e-5, atol=1e-5)
  assert np.abs(predictor.outputs(("a",), 0) - without.outputs(("a",), 0)).max() > 0.01
  for units in ((), ("c",)):
    np.testing.assert_array_equal(predictor.outputs(units, 0), without.outputs(units, 0))
  with pytest.raises(ValueError, match="base is None"):
    predicted.Predictor(
      dataclasses.replace(given, base=None), plain.labels, plain.folds, start=start
    )
