"""docs/claims.md is what its rows say of the answers that are kept, and differences are right."""

import pathlib

import numpy as np
import pytest

from benchmarks.claims_parts import archive as archive_lib
from benchmarks.claims_parts import effects, render, rows
from subtune_jax.report import estimate
from subtune_jax.statistics import intervals

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_the_document_is_made_of_the_kept_answers():
  assert (ROOT / "docs" / "claims.md").read_text() == render.document()


@pytest.mark.slow
def test_enough_rows_and_most_of_them_decided():
  found = [effect.verdict for _, effect in render.answered()]
  assert len(found) >= 25
  assert found.count(estimate.UNDECIDED) <= len(found) / 3


def test_every_kept_run_is_read_and_small():
  kept = {path.stem for path in archive_lib.FOLDER.glob("*.npz")}
  assert kept == {row.archive for row in rows.table()}
  assert sum(path.stat().st_size for path in archive_lib.FOLDER.glob("*.npz")) < 2e6


@pytest.fixture
def answers() -> archive_lib.Archive:
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 6, 90)
  hit = lambda p, k: np.where(rng.random((k, 90)) < p, labels, (labels + 1) % 6)  # noqa: E731
  own = archive_lib.Answers(labels, np.arange(90) // 3, {"a": hit(0.8, 3), "b": hit(0.4, 1)})
  absent = np.array([[1, 0, 1, 0, 1, 0], [0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 1]], bool)
  return archive_lib.Archive({"data": {}}, {"s": own}, absent)


def test_the_difference_of_one_set_is_that_of_the_paired_bootstrap(answers):
  own = answers.sets["s"]
  right = {name: np.broadcast_to(p, (3, 90)) == own.labels for name, p in own.predicted.items()}
  expected = intervals.paired_bootstrap(right, own.groups, reference="b").differences["a"]
  found = effects.difference(answers, ["s"], "a", "b")
  np.testing.assert_allclose((found.mean, found.low, found.high), expected, atol=1e-12)


def test_among_absent_classes_each_seed_has_its_own_images(answers):
  own = answers.sets["s"]
  gaps = []
  for seed in range(3):
    mask = answers.absent[seed][own.labels]
    right = [own.predicted[n][min(seed, len(own.predicted[n]) - 1)] == own.labels for n in "ab"]
    gaps.append(right[0][mask].mean() - right[1][mask].mean())
  found = effects.difference(answers, ["s"], "a", "b", effects.ABSENT)
  np.testing.assert_allclose(found.mean, np.mean(gaps))
  assert found.low < found.mean < found.high


def test_an_archive_is_read_as_it_was_written(answers, tmp_path, monkeypatch):
  monkeypatch.setattr(archive_lib, "FOLDER", tmp_path)
  archive_lib.write("x", answers)
  found = archive_lib.read("x")
  assert found.facts == answers.facts
  np.testing.assert_array_equal(found.absent, answers.absent)
  np.testing.assert_array_equal(found.sets["s"].predicted["a"], answers.sets["s"].predicted["a"])
  np.testing.assert_array_equal(found.sets["s"].groups, answers.sets["s"].groups)
