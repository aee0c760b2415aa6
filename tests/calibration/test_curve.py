"""The seen-unseen curve against brute force, and what must not change it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from subtune_jax import calibration

INF = np.inf


def brute_force(logits, labels, absent, third):
  """Answers by argmax under one gamma between each two neighbouring differences of logits.

  Returns the bounds [G + 1] of the intervals and whether each example is right [G, N].
  """
  differences = logits[:, ~absent][:, :, None] - logits[:, absent][:, None, :]
  bounds = np.unique(differences)
  inner = (bounds[1:] + bounds[:-1]) / 2
  gammas = np.concatenate([[bounds[0] - 1], inner, [bounds[-1] + 1]])
  answers = (logits + gammas[:, None, None] * absent).argmax(-1)
  return np.concatenate([[-INF], bounds, [INF]]), answers == labels


def brute_area(seen, unseen):
  points = sorted(
    set(zip(seen.tolist(), unseen.tolist(), strict=True)), key=lambda p: (p[0], -p[1])
  )
  x, y = np.array(points).T
  return np.sum((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2)


def brute_gamma(bounds, right):
  """The rule of `best_gamma` on intervals over which no answer turns right or wrong."""
  starts = [0] + [i for i in range(1, len(right)) if (right[i] != right[i - 1]).any()]
  best = right.sum(1).max()
  found = []
  for i, end in zip(starts, [*starts[1:], len(right)], strict=True):
    low, high = bounds[i], bounds[end]
    if right[i].sum() == best:
      if low == -INF and high == INF:
        middle = 0
      elif low == -INF:
        middle = min(high - 1, 0)
      elif high == INF:
        middle = max(low + 1, 0)
      else:
        middle = (low + high) / 2
      found.append((max(low, -high, 0), low, middle))
  return min(found)[2]


def random_case(generator, num_examples=None, num_classes=None):
  """Dyadic logits with many ties; sometimes one class a side, and a third group."""
  n = num_examples or generator.integers(2, 13)
  c = num_classes or generator.integers(2, 7)
  logits = generator.integers(-4, 5, (n, c)) / 4 + generator.integers(-2, 3)
  kinds = np.concatenate([[0, 1], generator.integers(0, generator.integers(2, 4), c - 2)])
  kinds = generator.permutation(kinds)
  labels = generator.integers(0, c, n)
  labels[:2] = np.flatnonzero(kinds == 0)[0], np.flatnonzero(kinds == 1)[0]
  return logits, labels, kinds == 1, kinds == 2


def test_equals_brute_force():
  generator = np.random.default_rng(0)
  empty_products, with_third, one_class = 0, 0, 0
  for _ in range(2000):
    logits, labels, absent, third = random_case(generator)
    is_unseen, is_seen = absent[labels], ~(absent | third)[labels]
    bounds, right = brute_force(logits, labels, absent, third)
    seen, unseen = right[:, is_seen].mean(1), right[:, is_unseen].mean(1)
    curve = calibration.seen_unseen_curve(logits, labels, absent, third)
    area = brute_area(seen, unseen)
    assert curve.ausuc() == pytest.approx(area, abs=1e-12)
    assert set(zip(curve.seen, curve.unseen, strict=True)) == set(zip(seen, unseen, strict=True))
    at = np.searchsorted(curve.thresholds, (bounds[1:-2] + bounds[2:-1]) / 2)
    np.testing.assert_allclose(curve.seen[at], seen[1:-1], atol=1e-12, rtol=0)
    np.testing.assert_allclose(curve.unseen[at], unseen[1:-1], atol=1e-12, rtol=0)
    np.testing.assert_allclose(curve.overall[at], right.mean(1)[1:-1], atol=1e-12, rtol=0)
    assert curve.best_gamma() == pytest.approx(brute_gamma(bounds, right), abs=1e-12)
    harmonic = 2 * seen * unseen / np.maximum(seen + unseen, 1e-300)
    assert curve.best_harmonic_mean()[0] == pytest.approx(harmonic.max(), abs=1e-12)
    empty_products += area == 0
    with_third += third.any()
    one_class += absent.sum() == 1 or is_seen.sum() == 1
  assert min(empty_products, with_third, one_class) > 100


def test_best_gammas_reach_what_they_promise():
  generator = np.random.default_rng(1)
  for _ in range(200):
    logits, labels, absent, third = random_case(generator)
    curve = calibration.seen_unseen_curve(logits, labels, absent, third)
    answers = calibration.calibrate(logits, absent, curve.best_gamma()).argmax(-1)
    assert (answers == labels).sum() == curve.right.max()
    value, gamma = curve.best_harmonic_mean()
    right = calibration.calibrate(logits, absent, gamma).argmax(-1) == labels
    s, u = right[~(absent | third)[labels]].mean(), right[absent[labels]].mean()
    assert value == pytest.approx(2 * s * u / max(s + u, 1e-300))


def test_ausuc_is_acc_ss_times_acc_uu_times_auroc():
  generator = np.random.default_rng(2)
  logits = generator.normal(size=(400, 6)).round(1)
  labels = generator.integers(0, 6, 400)
  logits[np.arange(400), labels] += 1
  absent = np.arange(6) >= 3
  table = calibration.accuracy_table(logits, labels, absent)
  margin = calibration.margins(logits, absent)
  inside = np.where(absent[labels][:, None] == absent, logits, -INF).argmax(1) == labels
  auroc = metrics.roc_auc_score(~absent[labels][inside], margin[inside])
  expected = table["S/S"] * table["U/U"] * auroc
  assert calibration.ausuc(logits, labels, absent) == pytest.approx(expected, abs=1e-12)


def test_end_points_are_infinite_gammas():
  logits, labels, _, _ = random_case(np.random.default_rng(3), 200, 6)
  absent, third = np.arange(6) % 3 == 1, np.arange(6) % 3 == 2
  curve = calibration.seen_unseen_curve(logits, labels, absent, third)
  for end, gamma in ((0, -INF), (-1, INF)):
    right = calibration.calibrate(logits, absent, gamma).argmax(-1) == labels
    assert curve.seen[end] == right[~(absent | third)[labels]].mean()
    assert curve.unseen[end] == right[absent[labels]].mean()
  table = calibration.accuracy_table(logits, labels, absent, third)
  assert (curve.seen[-1], curve.unseen[0], curve.unseen[-1]) == (0, 0, table["U/U"])
  two = calibration.seen_unseen_curve(logits, labels, absent)
  assert two.seen[0] == calibration.accuracy_table(logits, labels, absent)["S/S"]


def same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


def test_what_leaves_the_curve_as_it_is():
  generator = np.random.default_rng(4)
  logits, labels, absent, third = random_case(generator, 100, 6)
  curve = calibration.seen_unseen_curve(logits, labels, absent, third)
  per_row = generator.integers(-8, 9, (100, 1)) / 4
  same(curve, calibration.seen_unseen_curve(logits + per_row, labels, absent, third))
  order = generator.permutation(100)
  same(curve, calibration.seen_unseen_curve(logits[order], labels[order], absent, third))
  moved = calibration.calibrate(logits, absent, 0.75)
  moved = calibration.seen_unseen_curve(moved, labels, absent, third)
  np.testing.assert_array_equal(moved.thresholds, curve.thresholds - 0.75)
  np.testing.assert_array_equal(moved.seen, curve.seen)
  np.testing.assert_array_equal(moved.unseen, curve.unseen)
  assert moved.ausuc() == curve.ausuc()


def test_blocks_of_rows_do_not_show(monkeypatch):
  logits, labels, absent, third = random_case(np.random.default_rng(5), 100, 6)
  whole = calibration.seen_unseen_curve(logits, labels, absent, third)
  monkeypatch.setattr(calibration.curve.arrays, "BLOCK_BYTES", 7 * 6 * 8)
  same(whole, calibration.seen_unseen_curve(logits, labels, absent, third))


def test_classes_that_are_ruled_out():
  logits = np.array([[1.0, 0.0, -INF], [0.0, 1.0, -INF], [-INF, -INF, 1.0]])
  curve = calibration.seen_unseen_curve(logits, [0, 1, 2], [False, False, True])
  assert curve.ausuc() == 1  # the absent class is out wherever it would be wrong
  assert curve.best_gamma() == 0
  flipped, first = logits[:, ::-1], [True, False, False]
  never = calibration.seen_unseen_curve(flipped, [2, 0, 0], first)
  assert never.unseen[-1] == 0.5  # -inf is no right answer, under no gamma
  never = calibration.seen_unseen_curve(logits, [0, 1, 2], [False, False, True])
  assert never.seen[0] == 1
  never = calibration.seen_unseen_curve(logits, [0, 2, 0], [False, False, True])
  assert never.seen[0] == 0.5


def test_jit_and_vmap_equal_numpy():
  generator = np.random.default_rng(6)
  cases = [random_case(generator, 12, 5) for _ in range(20)]
  logits, labels, absent, third = map(np.stack, zip(*cases, strict=True))

  def summary(*case):
    curve = calibration.seen_unseen_curve(*case)
    return curve.ausuc(), curve.best_gamma(), curve.best_harmonic_mean(), curve

  got = jax.jit(jax.vmap(summary))(jnp.asarray(logits, jnp.float32), labels, absent, third)
  for i, case in enumerate(cases):
    area, gamma, harmonic, curve = jax.tree.map(lambda x, i=i: np.asarray(x)[i], got)
    expected = summary(*case)
    np.testing.assert_allclose(area, expected[0], atol=2e-7)
    np.testing.assert_allclose(harmonic[0], expected[2][0], atol=2e-7)
    assert gamma == expected[1]
    n = len(expected[3].thresholds)
    np.testing.assert_array_equal(curve.thresholds[:n], expected[3].thresholds)
    np.testing.assert_array_equal(curve.unseen_right[: n + 1], expected[3].unseen_right)
    assert np.isinf(curve.thresholds[n:]).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_device_arrays_are_counted_on_the_host(dtype):
  logits, labels, absent, third = random_case(np.random.default_rng(7), 64, 5)
  curve = calibration.seen_unseen_curve(jnp.asarray(logits, dtype), labels, absent, third)
  assert isinstance(curve.seen, np.ndarray)
  assert curve.thresholds.dtype == np.float64
  same(curve, calibration.seen_unseen_curve(logits, labels, absent, third))


def test_sharded_logits():
  logits, labels, absent, _ = random_case(np.random.default_rng(8), 64, 5)
  mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
  z = jax.device_put(jnp.asarray(logits, jnp.float32), spread)
  area = calibration.ausuc(logits, labels, absent)
  assert calibration.ausuc(z, labels, absent) == area
  assert jax.jit(calibration.ausuc)(z, labels, absent) == pytest.approx(area, abs=1e-6)


def test_area_is_accurate_in_float32_under_jit():
  generator = np.random.default_rng(9)
  labels = generator.integers(0, 2, 200_000)
  logits = generator.normal(size=(200_000, 2)).astype(np.float32)
  logits[:, 1] += 0.5 * labels
  absent = np.array([False, True])
  traced = jax.jit(calibration.ausuc)(logits, labels, absent)
  assert float(traced) == pytest.approx(calibration.ausuc(logits, labels, absent), abs=1e-6)


GOOD = {
  "logits": np.zeros((4, 3)),
  "labels": np.array([0, 1, 2, 2]),
  "absent": np.array([False, False, True]),
}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"logits": np.zeros((4, 1))}, "label 2 is out of range: the 1 classes"),
    ({"logits": np.zeros((0, 3)), "labels": np.zeros(0, int)}, "logits are empty"),
    ({"logits": np.full((4, 3), np.nan)}, "NaN, first in row 0"),
    ({"logits": np.full((4, 3), INF)}, r"\+inf"),
    ({"logits": np.full((4, 3), -INF)}, "row 0 of logits is -inf"),
    ({"logits": np.zeros(3)}, "examples, classes"),
    ({"logits": np.array([["a"]])}, "real numbers"),
    ({"labels": np.array([0, 1, 2, 3])}, "label 3 is out of range"),
    ({"labels": np.array([0, 1, 2, -1])}, "label -1 is out of range"),
    ({"labels": np.zeros(4)}, "integers"),
    ({"labels": np.zeros(3, int)}, r"shape \(4,\)"),
    ({"labels": np.zeros(4, int)}, "no example has the label of an absent class"),
    ({"labels": np.full(4, 2)}, "no example has the label of a seen class"),
    ({"absent": np.array([False, True])}, r"shape \(3,\) of the classes, got \(2,\)"),
    ({"absent": np.array([2])}, "np.isin"),
    ({"absent": np.zeros(3, bool)}, "marks 0 of the 3"),
    ({"absent": np.ones(3, bool)}, "marks 3 of the 3"),
    ({"third": np.array([False, False, True])}, "both absent and third"),
    ({"third": np.array([True, True, False])}, "leave at least one seen"),
  ],
)
def test_errors(change, message):
  with pytest.raises(ValueError, match=message):
    calibration.seen_unseen_curve(**(GOOD | change))


def test_one_class_is_refused():
  with pytest.raises(ValueError, match="marks 1 of the 1 classes"):
    calibration.ausuc(np.zeros((2, 1)), [0, 0], [True])


@pytest.mark.parametrize(
  ("low", "high", "gamma"),
  [
    (1, 2, 1.5),
    (-3, -1, -2),
    (-1, 5, 2),
    (1, INF, 2),
    (-3, INF, 0),
    (-INF, -1, -2),
    (-INF, 0.5, -0.5),
    (-INF, 3, 0),
  ],
)
def test_gamma_of_an_interval(low, high, gamma):
  examples = {"low": ([low, 0], 1), "high": ([high, 0], 0)}
  chosen = [examples[k] for k, v in (("low", low), ("high", high)) if np.isfinite(v)]
  if len(chosen) == 1:  # one of the other kind, which no gamma makes right
    chosen.append(([0, -INF], 1) if chosen[0][1] == 0 else ([-INF, 0], 0))
  z, y = map(np.array, zip(*chosen, strict=True))
  assert calibration.best_gamma(z, y, [False, True]) == gamma
