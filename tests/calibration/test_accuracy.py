"""Acc_A/B, eq. 3 and NCM against hand values, scikit-learn and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics, neighbors

from subtune_jax import calibration


def case(seed=0, n=80, c=6):
  generator = np.random.default_rng(seed)
  logits = generator.integers(-4, 5, (n, c)) / 4
  labels = generator.integers(0, c, n)
  return logits, labels, generator.random((3, c)) < 0.6, generator.random((4, c)) < 0.6


def loop(logits, labels, true, allowed, top_k, balanced):
  """Acc_A/B as its formula reads."""
  allowed = np.flatnonzero(allowed)
  hits = {c: [] for c in np.flatnonzero(true)}
  for z, y in zip(logits, labels, strict=True):
    if y in hits:
      best = sorted(allowed, key=lambda c: (-z[c], c))[:top_k]
      hits[y].append(y in best)
  if balanced:
    return np.mean([np.mean(h) for h in hits.values() if h])
  return np.mean([hit for of_class in hits.values() for hit in of_class])


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("top_k", [1, 3])
def test_accuracy_matrix_is_its_formula(top_k, balanced):
  logits, labels, sets, spaces = case()
  options = {"top_k": top_k, "balanced": balanced}
  got = calibration.accuracy_matrix(logits, labels, sets, spaces, **options)
  expected = [[loop(logits, labels, a, b, top_k, balanced) for b in spaces] for a in sets]
  np.testing.assert_allclose(got, expected, atol=1e-12)

  def traced(z, y):
    return calibration.accuracy_matrix(z, y, sets, spaces, **options)

  z = jnp.asarray(logits, jnp.float32)
  np.testing.assert_allclose(traced(z, labels), expected, atol=1e-12)
  both = jax.jit(jax.vmap(traced))(jnp.stack([z, -z]), np.stack([labels, labels]))
  np.testing.assert_allclose(both, [expected, traced(-logits, labels)], atol=1e-6)


def test_balanced_is_scikit_learns():
  logits, labels, _, _ = case(1)
  everything = np.ones((1, 6), bool)
  got = calibration.accuracy_matrix(logits, labels, everything, everything, balanced=True)
  expected = metrics.balanced_accuracy_score(labels, logits.argmax(1))
  assert got[0, 0] == pytest.approx(expected, abs=1e-12)


def test_table_with_a_third_group():
  logits, labels, _, _ = case(2)
  absent, third = np.arange(6) >= 4, np.arange(6) < 1
  table = calibration.accuracy_table(logits, labels, absent, third)
  assert list(table) == ["Y/Y", "S/Y", "U/Y", "R/Y", "S/S", "U/U", "R/R"]
  assert table["R/R"] == 1
  sizes = {"S": (~(absent | third))[labels].sum(), "U": absent[labels].sum(),
           "R": third[labels].sum()}  # fmt: skip
  whole = sum(table[f"{g}/Y"] * n for g, n in sizes.items()) / len(labels)
  assert table["Y/Y"] == pytest.approx(whole, abs=1e-12)


def test_what_is_ruled_out_is_never_right():
  z = [[0.0, -np.inf], [0.0, -np.inf]]
  everything = [[True, True]]
  assert calibration.accuracy_matrix(z, [0, 1], everything, everything, top_k=2)[0, 0] == 0.5


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"true_sets": [[True, False]]}, "boolean array of sets x 3"),
    ({"true_sets": [[False] * 3]}, "set 0 of true_sets is empty"),
    ({"true_sets": [[False, True, False]]}, "no example has the label of set 0 of true_sets"),
    ({"label_spaces": [[1, 0, 1]]}, "label_spaces must be a boolean"),
    ({"top_k": 0}, "top_k is 0"),
    ({"logits": [[0.0, np.nan, 0.0]] * 2}, "NaN"),
  ],
)
def test_accuracy_refuses(change, message):
  everything = [[True] * 3]
  good = {
    "logits": np.zeros((2, 3)),
    "labels": [0, 2],
    "true_sets": everything,
    "label_spaces": everything,
  }
  with pytest.raises(ValueError, match=message):
    calibration.accuracy_matrix(**(good | change))


@pytest.mark.parametrize("xp", [np, jnp])
def test_decomposition_multiplies_to_the_softmax(xp):
  logits = np.random.default_rng(3).normal(size=(2, 5, 6)) * 3
  absent = np.arange(6) >= 4
  parts = jax.jit(calibration.decompose)(logits, absent) if xp is jnp else None
  parts = parts or calibration.decompose(logits, absent)
  group = np.where(absent, parts.log_absent[..., None], parts.log_seen[..., None])
  np.testing.assert_allclose(group + parts.log_within, jax.nn.log_softmax(logits), atol=2e-5)
  np.testing.assert_allclose(np.exp(parts.log_within)[..., absent].sum(-1), 1, rtol=1e-5)
  np.testing.assert_allclose(np.exp(parts.log_absent) + np.exp(parts.log_seen), 1, rtol=1e-5)


def test_decomposition_does_not_underflow():
  parts = calibration.decompose([[5000.0, 0.0, -1.0]], [False, True, True])
  assert parts.log_absent[0] == pytest.approx(-5000 + np.log1p(np.exp(-1)))
  np.testing.assert_allclose(parts.log_within[0, 1:], -np.log1p(np.exp([-1, 1])))


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_nearest_class_mean(distance):
  generator = np.random.default_rng(4)
  labels = generator.integers(0, 5, 300)
  features = generator.normal(size=(300, 8)) + generator.normal(size=(5, 8))[labels] + 3
  x = features / np.linalg.norm(features, axis=1, keepdims=True)
  x = x if distance == "cosine" else features
  means, counts = calibration.class_means(features, labels, 6, distance=distance)
  np.testing.assert_array_equal(counts, np.bincount(labels, minlength=6))
  answers = calibration.ncm_logits(features, means, counts, distance=distance).argmax(1)
  if distance == "euclidean":
    expected = neighbors.NearestCentroid().fit(x, labels).predict(x)
  else:
    centres = np.stack([x[labels == c].mean(0) for c in range(5)])
    expected = metrics.pairwise.cosine_similarity(x, centres).argmax(1)
  np.testing.assert_array_equal(answers, expected)

  def traced(z):
    means, counts = calibration.class_means(z, labels, 6, distance=distance)
    return calibration.ncm_logits(z, means, counts, distance=distance)

  scores = calibration.ncm_logits(features, means, counts, distance=distance)
  np.testing.assert_allclose(jax.jit(traced)(features), scores, rtol=2e-4, atol=1e-5)


def test_classes_without_samples_never_win():
  """The mean of an empty class would be the origin, nearest to the feature."""
  means, counts = calibration.class_means([[9.0, 0.0]], [1], 3, distance="euclidean")
  scores = calibration.ncm_logits([[0.1, 0.0]], means, counts, distance="euclidean")
  assert scores.argmax() == 1
  assert np.isneginf(scores[0, [0, 2]]).all()


def test_means_of_long_arrays_in_float32():
  features = np.full((300_000, 1), 0.1, np.float32)
  traced = jax.jit(lambda x, y: calibration.class_means(x, y, 1, distance="euclidean"))
  means, _ = traced(features, np.zeros(300_000, int))
  assert float(means[0, 0]) == pytest.approx(float(np.float32(0.1)), abs=1e-8)


def test_nearest_class_mean_refuses():
  with pytest.raises(ValueError, match="one of"):
    calibration.class_means([[1.0]], [0], 1, distance="l1")
  with pytest.raises(ValueError, match="label 1 is out of range"):
    calibration.class_means([[1.0]], [1], 1)
  with pytest.raises(ValueError, match="counts are all 0"):
    calibration.ncm_logits([[1.0]], np.zeros((2, 1)), [0, 0])
  with pytest.raises(ValueError, match=r"\[N, D\]"):
    calibration.ncm_logits([[1.0]], np.zeros((2, 3)), [1, 1])
