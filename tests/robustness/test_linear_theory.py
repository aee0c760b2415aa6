"""The linear theory of LP, FT and LP-FT: geometry, flows, table, bounds and picture."""

import io
import math
import pathlib
import re
import types

import jax
import jax.numpy as jnp
from matplotlib import image
import numpy as np
import pytest
from scipy import integrate, linalg, optimize
from sklearn import linear_model

from subtune_jax.report import charts, style
from subtune_jax.robustness import (
  gradient_flow,
  linear_theory,
  linear_toy,
  subtuning_bound,
  theory_table,
)

DOC = pathlib.Path(__file__).parents[2] / "docs" / "theory.md"


def orthonormal(rng, k, d):
  return np.linalg.qr(rng.normal(size=(d, k)))[0].T


@pytest.fixture(scope="module")
def snippet(tmp_path_factory):
  """The Python of the doc page, run in an empty folder: its names, what it printed, its figure."""
  folder = tmp_path_factory.mktemp("theory")
  (folder / "docs" / "images").mkdir(parents=True)
  (code,) = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
  printed, names = [], {}
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    patch.setattr(charts, "DPI", 160)
    exec(code, {"print": printed.append}, names)
  png = (folder / "docs" / "images" / "linear_theory_toy.png").read_bytes()
  return types.SimpleNamespace(results=names["results"], printed=printed[0], png=png)


@pytest.fixture(scope="module")
def results(snippet):
  return snippet.results


@pytest.fixture(scope="module")
def problem():
  """Five problems of a small distance, stacked."""
  return linear_theory.stack([linear_theory.make_problem(s, epsilon=0.1) for s in range(5)])


@pytest.fixture(scope="module")
def path(problem):
  return gradient_flow.fine_tune(problem, [0, 0.3, 3, 30])


# Geometry


@pytest.mark.parametrize("epsilon", [0.0, 1e-7, 0.056, 0.533, 1.3])
def test_problems_are_as_ordered(epsilon):
  p = linear_theory.make_problem(3, epsilon=epsilon, target_norm=2.0)
  distance = linear_theory.feature_distance(p.features, p.target_features)
  assert distance == pytest.approx(epsilon, abs=3e-15)
  for rows in (p.features, p.target_features, p.basis.T):
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-14)
  np.testing.assert_allclose(p.inputs @ p.basis @ p.basis.T, p.inputs, atol=1e-14)
  assert np.linalg.matrix_rank(p.inputs) == 10
  assert np.linalg.norm(p.target) == pytest.approx(2)
  np.testing.assert_allclose(p.labels, p.inputs @ p.target_features.T @ p.target_head)


def test_distance_is_the_minimum_over_two_by_two_rotations():
  rng = np.random.default_rng(0)
  angle = np.linspace(0, 2 * np.pi, 40_001)
  c, s = np.cos(angle), np.sin(angle)
  turns = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)
  all_of_them = np.concatenate([turns, turns * [1, -1]])  # rotations, reflections
  for _ in range(3):
    one, two = orthonormal(rng, 2, 5), orthonormal(rng, 2, 5)
    least = np.linalg.norm(one - all_of_them @ two, 2, axis=(1, 2)).min()
    distance = linear_theory.feature_distance(one, two)
    assert distance <= least <= distance + 1e-4
    largest = linalg.subspace_angles(one.T, two.T)[0]
    assert distance == pytest.approx(2 * math.sin(largest / 2), abs=1e-12)
    closest = np.linalg.norm(one - all_of_them @ two, axis=(1, 2)).min()
    assert closest > distance + 1e-3  # another norm would not pass


def test_distance_is_the_minimum_over_rotations_of_three_features():
  rng = np.random.default_rng(1)
  one, two = orthonormal(rng, 3, 7), orthonormal(rng, 3, 7)
  found = []
  for sign in (1, -1):
    flip = np.diag([1, 1, sign])

    def size(x, flip=flip):
      turn = linalg.expm(np.array([[0, x[0], x[1]], [-x[0], 0, x[2]], [-x[1], -x[2], 0]]))
      return np.linalg.norm(one - turn @ flip @ two, 2)

    for _ in range(4):
      start = rng.normal(size=3)
      options = {"xatol": 1e-7, "fatol": 1e-9, "maxiter": 600}
      found.append(optimize.minimize(size, start, method="Nelder-Mead", options=options).fun)
  distance = linear_theory.feature_distance(one, two)
  assert min(found) == pytest.approx(distance, abs=1e-5)
  assert min(found) >= distance - 1e-12


def test_head_alignment_error_follows_the_rotation_of_the_features():
  p = linear_theory.make_problem(5, epsilon=0.2)
  turn = orthonormal(np.random.default_rng(2), 3, 3)
  turned = p._replace(features=turn @ p.features, head=turn @ p.head)
  phi = linear_theory.head_alignment_error(p)
  assert linear_theory.head_alignment_error(turned) == pytest.approx(phi, abs=1e-12)
  assert abs(linear_theory.head_alignment_error(p._replace(head=turned.head)) - phi) > 0.01
  same = p._replace(features=p.target_features, head=p.target_head)
  assert linear_theory.head_alignment_error(same) < 1e-7
  by_hand = p._replace(features=p.target_features, head=3 * p.target_head)
  assert linear_theory.head_alignment_error(by_hand) == pytest.approx(math.sqrt(8))


def one_feature(pretrained_degrees, v0):
  """B* = e1, S = span(e2, e3) in five dimensions, v* = 2."""
  turn = math.radians(pretrained_degrees)
  return linear_theory.Problem(
    inputs=np.eye(5)[1:3],
    basis=np.eye(5)[:, 1:3],
    target_head=np.array([2.0]),
    target_features=np.eye(5)[:1],
    features=np.array([[math.cos(turn), 0, 0, math.sin(turn), 0]]),
    head=np.array([v0]),
  )


def test_bound_by_hand():
  # phi^2 = |(3 * 2)^2 - (2 * 2)^2| = 20 > phi |w*|; cos theta_max = 1, k = 1.
  part = math.sqrt(20) / 9
  assert linear_theory.ood_lower_bound(one_feature(0, 3.0)) == pytest.approx(part, abs=1e-12)
  sigma = np.diag([9.0, 4, 4, 5, 6])
  scaled = linear_theory.ood_lower_bound(one_feature(10, 3.0), sigma)
  epsilon = 2 * math.sin(math.radians(5))
  assert scaled == pytest.approx(2 * (part - epsilon), abs=1e-12)
  # phi^2 = |4.2^2 - 4^2| = 1.64 < phi |w*|: the other branch.
  assert linear_theory.ood_lower_bound(one_feature(0, 2.1)) == pytest.approx(
    1.64 / 2 / 9, abs=1e-12
  )


def test_bound_takes_the_largest_angle():
  # Of two features one is orthogonal to S = span(e2, e3), the other 60 degrees off its complement.
  p = linear_theory.Problem(
    inputs=np.eye(6)[1:3],
    basis=np.eye(6)[:, 1:3],
    target_head=np.array([1.0, 0]),
    target_features=np.array([[1.0, 0, 0, 0, 0, 0], [0, math.sqrt(0.75), 0, 0.5, 0, 0]]),
    features=np.array([[1.0, 0, 0, 0, 0, 0], [0, math.sqrt(0.75), 0, 0.5, 0, 0]]),
    head=np.array([3.0, 1]),
  )
  # phi = sqrt 8, so 0.5 / sqrt 2 * sqrt 8 / 4
  assert linear_theory.ood_lower_bound(p) == pytest.approx(0.25, abs=1e-12)


def test_errors_by_hand():
  p = one_feature(0, 3.0)
  w = np.array([1.0, 2, 0, 1, 0])  # off w* = 2 e1 by (-1, 2, 0, 1, 0)
  assert linear_theory.id_error(p, w) == pytest.approx(4)
  assert linear_theory.ood_error(p, w) == pytest.approx(6)
  assert linear_theory.ood_error(p, w, np.diag([3.0, 1, 1, 2, 1])) == pytest.approx(9)
  over_time = linear_theory.ood_error(p, np.stack([w, p.target]))
  np.testing.assert_allclose(over_time, [6, 0], atol=1e-12)


# Flows


def test_velocity_is_minus_the_gradient_of_the_loss(problem):
  with jax.enable_x64(True):
    for i in range(5):
      p = linear_theory.Problem(*(jnp.asarray(x[i]) for x in problem))
      moment = p.inputs.T @ p.inputs / len(p.inputs)
      target, labels = jnp.asarray(problem.target[i]), jnp.asarray(problem.labels[i])
      found = gradient_flow.velocity(p.head, p.features, moment, target)
      expected = jax.grad(gradient_flow.loss, (0, 1))(p.head, p.features, p.inputs, labels)
      for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, -two, atol=1e-13)
        assert np.abs(two).max() > 0.01


def test_flow_equals_another_solver(problem, path):
  p = linear_theory.Problem(*(x[2] for x in problem))
  moment = p.inputs.T @ p.inputs / 40

  def field(_, state):
    v, b = state[:3], state[3:].reshape(3, 24)
    pull = moment @ (b.T @ v - p.target)
    return -2 * np.concatenate([b @ pull, np.outer(v, pull).ravel()])

  start = np.concatenate([p.head, p.features.ravel()])
  other = integrate.solve_ivp(
    field, (0, 30), start, "DOP853", t_eval=path.times, rtol=1e-12, atol=1e-13
  )
  np.testing.assert_allclose(path.head[2], other.y[:3].T, atol=1e-9)
  np.testing.assert_allclose(path.features[2], other.y[3:].T.reshape(-1, 3, 24), atol=1e-9)


def test_float64_whatever_the_flag(path, problem):
  assert not jax.config.jax_enable_x64
  probe = gradient_flow.linear_probe(problem)
  for x in (*path, probe, linear_theory.ood_lower_bound(problem)):
    assert x.dtype == np.float64
  assert jnp.ones(2).dtype == jnp.float32


def test_stopping_at_a_time_is_a_point_of_the_path(problem, path):
  stopped = gradient_flow.fine_tune(problem, [0.3, 30])
  np.testing.assert_allclose(stopped.weights, path.weights[:, [1, 3]], atol=1e-10)
  np.testing.assert_array_equal(path.head[:, 0], problem.head)
  assert np.abs(path.weights[:, 1] - path.weights[:, 3]).max() > 0.01


def test_probe_equals_least_squares(problem):
  probe = gradient_flow.linear_probe(problem)
  for i in range(5):
    seen, labels = problem.inputs[i] @ problem.features[i].T, problem.labels[i]
    expected = np.linalg.lstsq(seen, labels, rcond=None)[0]
    np.testing.assert_allclose(probe[i], expected, atol=1e-13)
    fitted = linear_model.LinearRegression(fit_intercept=False).fit(seen, labels)
    np.testing.assert_allclose(probe[i], fitted.coef_, atol=1e-12)


def test_stopped_probe_equals_the_matrix_exponential(problem):
  for time in (0.0, 0.4, 5.0):
    probe = gradient_flow.linear_probe(problem, time)
    for i in range(5):
      seen = problem.inputs[i] @ problem.features[i].T
      limit = np.linalg.lstsq(seen, problem.labels[i], rcond=None)[0]
      rest = linalg.expm(-2 * time * seen.T @ seen / 40) @ (problem.head[i] - limit)
      np.testing.assert_allclose(probe[i], limit + rest, atol=1e-12)


def test_probe_without_a_unique_solution():
  p = linear_theory.make_problem(0, epsilon=0.3)
  p = p._replace(inputs=p.inputs[:2])  # two inputs, three features
  seen = p.inputs @ p.features.T
  unseen = np.eye(3) - np.linalg.pinv(seen) @ seen
  probe = gradient_flow.linear_probe(p)
  np.testing.assert_allclose(seen @ probe, p.labels, atol=1e-12)
  np.testing.assert_allclose(unseen @ probe, unseen @ p.head, atol=1e-12)
  from_zero = gradient_flow.linear_probe(p._replace(head=np.zeros(3)))
  np.testing.assert_allclose(from_zero, np.linalg.pinv(seen) @ p.labels, atol=1e-12)


def test_probe_stopped_and_then_fine_tuned(problem, path):
  np.testing.assert_allclose(
    gradient_flow.lp_ft(problem, path.times, probe_time=0).weights, path.weights, atol=1e-13
  )
  errors = []
  for time in (0, 0.5, 2, math.inf):
    end = gradient_flow.lp_ft(problem, path.times, probe_time=time).weights[:, -1]
    errors.append(linear_theory.ood_error(problem, end))
  assert (np.diff(np.mean(errors, 1)) < 0).all()
  head = gradient_flow.linear_probe(problem)
  by_hand = gradient_flow.fine_tune(problem, path.times, head=head).weights[:, -1]
  np.testing.assert_allclose(linear_theory.ood_error(problem, by_hand), errors[-1], atol=1e-14)


def test_a_solver_that_stops_early_is_found_out(problem, monkeypatch):
  monkeypatch.setattr(gradient_flow, "_MAX_STEPS", 5)
  with pytest.raises(FloatingPointError, match="the solver failed"):
    gradient_flow.fine_tune(problem, [0, 30], rtol=1.1e-12)


# The table


def test_table(results):
  assert results.lp_ood.shape == (5, 10)
  for name in ("ft_id", "lp_ft_id"):  # of the solver: 0
    assert getattr(results, name).max() < 1e-18, name
    assert np.median(getattr(results, name), 1).max() < 1e-22, name
  assert (results.lp_ft_ood <= results.lp_ood + 1e-20).all()
  medians = {name: np.median(getattr(results, name), 1) for name in results._fields[1:]}
  # Far below FT while features are good; half of it where they are hardly related.
  assert (medians["ft_best_ood"] > np.array([1e9, 100, 20, 4, 2]) * medians["lp_ood"]).all()
  assert (medians["ft_best_ood"] > np.array([1e9, 100, 20, 5, 2]) * medians["lp_ft_ood"]).all()
  assert (medians["ft_best_ood"] > 0.9 * medians["ft_ood"]).all()  # no time is a good one
  assert (medians["lp_ood"][1:] > 1.2 * medians["lp_ft_ood"][1:]).all()
  assert (np.diff(medians["lp_ood"]) > 0).all()
  assert (np.diff(medians["lp_id"]) > 0).all()
  assert (medians["ft_moved"] > medians["lp_ft_moved"]).all()
  assert (np.diff(medians["lp_ft_moved"]) > 0).all()


def test_table_agrees_with_gradient_descent_of_other_seeds(results):
  """Medians of ten other seeds by plain gradient descent: the same to the noise of the seeds."""
  expected = {
    "lp_ood": [2.3e-3, 4.0e-2, 0.21, 0.65],
    "lp_ft_ood": [1.5e-3, 2.6e-2, 0.14, 0.49],
    "lp_id": [5e-4, 9e-3, 7e-2, 0.22],
    "ft_ood": [2.42, 2.44, 1.74, 1.55],
  }
  for name, values in expected.items():
    ratio = np.median(getattr(results, name), 1)[1:] / values
    assert (ratio > 0.5).all(), (name, ratio)
    assert (ratio < 2).all(), (name, ratio)


def test_perfect_features(results):
  assert results.epsilons[0] == 0
  assert results.lp_ood[0].max() < 1e-28
  assert results.lp_ft_ood[0].max() < 1e-20
  assert results.lp_ft_moved[0].max() < 1e-10
  assert results.ft_best_ood[0].min() > 0.01


def test_what_the_flow_keeps(results, problem, path):
  assert results.drift.max() < 1e-8
  assert results.orthogonal.max() < 1e-12
  along = np.einsum("...tkd,...dm->...tkm", path.features, problem.basis)
  assert np.abs(along - along[:, :1]).max(axis=(1, 2, 3)).min() > 0.01  # features did move


def test_a_loose_solver_would_be_seen_to_drift(problem):
  loose = gradient_flow.fine_tune(problem, [0, 0.3, 3, 30], rtol=1e-8, atol=1e-8)
  assert loose.drift.max() > 1e-8


def test_bound_holds_where_it_says_something(results):
  tight = theory_table.results((0.0, 0.01, 0.03, 0.1), d=40, k=1, m=2)
  assert tight.informative.mean() > 0.5
  assert (tight.informative.mean(1) >= 0.5).all()
  assert not tight.violated().any()
  assert not results.violated().any()
  # Without its factor (1 + |w*|)^2 = 4 the bound is wrong, and the comparison sees it.
  assert tight.violated(4.0).sum() >= 10


def test_table_of_the_doc_is_what_comes_out(snippet):
  (documented,) = re.findall(r"\| epsilon .*?\n\n", DOC.read_text(), re.DOTALL)
  old, new = documented.strip().split("\n"), snippet.printed.split("\n")
  assert old[:2] == new[:2]
  for one, two in zip(old[2:], new[2:], strict=True):
    first, second = (np.array([float(x) for x in re.findall(r"\d[\d.e-]*", s)]) for s in (one, two))
    np.testing.assert_allclose(second, first, rtol=0.02, atol=1e-9)


# The picture


def test_toy_ends_where_the_theory_says():
  t = linear_toy.toy()
  assert t.lp[0] == pytest.approx(t.target[0])
  np.testing.assert_allclose(t.lp / np.linalg.norm(t.lp), t.pretrained, atol=1e-12)
  np.testing.assert_allclose(t.lp_ft, t.lp, atol=1e-10)
  np.testing.assert_allclose(t.ft[:, -1, 0], t.target[0], atol=1e-10)
  np.testing.assert_allclose(t.ft_features[..., 1], t.pretrained[1], atol=1e-14)
  assert np.abs(t.ft_features[:, -1, 0] - t.pretrained[0]).min() > 0.1
  # v^2 - |B|^2 = v0^2 - 1 and v B_x = w*_x leave a quadratic in v^2.
  rest = t.heads**2 - 1 + t.pretrained[1] ** 2
  square = (rest + np.sqrt(rest**2 + 4 * t.target[0] ** 2)) / 2
  height = np.sign(t.heads) * np.sqrt(square) * t.pretrained[1]
  np.testing.assert_allclose(t.ft[:, -1, 1], height, atol=1e-9)
  np.testing.assert_allclose(t.ft_error[:, -1], (height - t.target[1]) ** 2, atol=1e-9)
  assert t.lp_error == pytest.approx((t.lp[1] - t.target[1]) ** 2)


def test_figure(snippet):
  pixels = image.imread(io.BytesIO(snippet.png))
  assert pixels.shape[0] > 500
  assert pixels.shape[1] > 1500
  for method in ("lp", "ft", "lp_ft"):
    color = np.array([int(style.METHOD_COLORS[method][i : i + 2], 16) for i in (1, 3, 5)]) / 255
    assert (np.abs(pixels[..., :3] - color).max(-1) < 0.02).sum() > 50, method


# SubTuning's bound


def test_subtuning_bound_by_hand():
  # sqrt(900) * 0.5 * ln(3 * 16) / sqrt(25) = 3 ln 48
  assert subtuning_bound.subtuning_bound(900, 0.5, 3, 16, 25) == pytest.approx(11.6136030, abs=1e-6)
  assert subtuning_bound.subtuning_bound(900, 0.5, 3, 16, 25, constant=2) == pytest.approx(
    23.2272060, abs=1e-6
  )


def test_subtuning_bound_in_its_symbols():
  def bound(r_prime=100, delta=1.0, k=2, L=8, m=64):
    return subtuning_bound.subtuning_bound(r_prime, delta, k, L, m)

  assert bound(r_prime=400) == pytest.approx(2 * bound())
  assert bound(delta=3) == pytest.approx(3 * bound())
  assert bound(m=256) == pytest.approx(bound() / 2)
  assert bound(k=8, L=32) == pytest.approx(2 * bound())  # log 256 = 2 log 16


# Errors


GOOD = linear_theory.make_problem(0, epsilon=0.1)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: linear_theory.make_problem(0, epsilon=0.1, m=22), "k < m < d - k"),
    (lambda: linear_theory.make_problem(0, epsilon=0.1, n=9), "n=9"),
    (lambda: linear_theory.make_problem(0, epsilon=1.5), "epsilon is 1.5"),
    (lambda: linear_theory.make_problem(0, epsilon=0.1, head_std=0), "head_std is 0"),
    (lambda: linear_theory.stack([]), "0 problems"),
    (lambda: linear_theory.feature_distance(np.eye(2), np.eye(3)), r"\(2, 2\) and \(3, 3\)"),
    (lambda: linear_theory.feature_distance(2 * np.eye(2), np.eye(2)), "off orthonormal by 3.0"),
    (lambda: linear_theory.ood_error(GOOD, np.zeros(3)), r"w has shape \(3,\)"),
    (lambda: linear_theory.ood_error(GOOD, np.zeros(24), np.eye(3)), r"\[..., 24, 24\]"),
    (lambda: linear_theory.ood_lower_bound(GOOD, -np.eye(24)), "the eigenvalue -1"),
    (lambda: gradient_flow.linear_probe(GOOD, -1), "time is -1"),
    (lambda: gradient_flow.fine_tune(GOOD, [1, 1]), "rising"),
    (lambda: gradient_flow.fine_tune(GOOD, [-1, 1]), "from 0 on"),
    (lambda: gradient_flow.fine_tune(GOOD, []), "a row of finite numbers"),
    (lambda: gradient_flow.fine_tune(GOOD, [1], rtol=1e-17), "rtol is 1e-17"),
    (lambda: gradient_flow.fine_tune(GOOD, [1], head=np.zeros(2)), r"head has shape \(2,\)"),
    (lambda: theory_table.results((), 3), "0 epsilons and 3 seeds"),
    (lambda: linear_toy.toy([]), "heads are"),
    (lambda: linear_toy.toy(pretrained_angle=90), "pretrained_angle is 90"),
    (lambda: subtuning_bound.subtuning_bound(10, 1, 3, 2, 5), "k is 3 of L=2"),
    (lambda: subtuning_bound.subtuning_bound(0, 1, 1, 2, 5), "r_prime is 0"),
    (lambda: subtuning_bound.subtuning_bound(10, -1, 1, 2, 5), "delta is -1"),
  ],
)
def test_mistakes(call, message):
  with pytest.raises(ValueError, match=message):
    call()
