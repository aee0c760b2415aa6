"""Confusion matrices and galleries of errors: what is picked, kept and shown."""

import json

from cleanlab import filter as cleanlab_filter
import numpy as np
import pytest
from sklearn import metrics

from subtune_jax.report import document, html, terminal
from subtune_jax.studies.compare import chosen, errors, errors_figures, errors_page
from subtune_jax.studies.compare import page as compare_page
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import summary as summary_lib
from tests.report import fake_run

NOTO = "emoji_domains/noto"


def answers(labels, probabilities) -> chosen.Answers:
  labels = np.asarray(labels)
  return chosen.Answers(
    labels, np.array([f"i{n}" for n in range(len(labels))]), np.log(np.asarray(probabilities))
  )


def random_answers(n: int, classes: int, seed: int) -> chosen.Answers:
  rng = np.random.default_rng(seed)
  labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
  logits = rng.normal(size=(n, classes)) + 1.0 * np.eye(classes)[labels]
  shifted = np.exp(logits)
  return answers(labels, shifted / shifted.sum(1, keepdims=True))


def test_classes_take_turns_and_the_loss_decides_within_them():
  given = [0.01, 0.02, 0.03, 0.4, 0.3]  # the probability of the true class
  own = answers([0, 0, 0, 1, 1], [[p, 1 - p] for p in given[:3]] + [[1 - p, p] for p in given[3:]])
  assert errors.wrong(own).tolist() == [0, 1, 2, 4, 3]
  assert errors.in_turns(own, errors.wrong(own), 2).tolist() == [0, 4]
  assert errors.in_turns(own, errors.wrong(own), 3).tolist() == [0, 1, 4]
  assert errors.in_turns(own, errors.wrong(own), 9).tolist() == [0, 1, 2, 4, 3]
  assert errors.in_turns(own, np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (3, 1), (10, 2)])
def test_doubted_labels_are_those_of_cleanlab(classes, seed):
  own = random_answers(300, classes, seed)
  wanted = cleanlab_filter.find_label_issues(
    own.labels, np.exp(own.log_probabilities), filter_by="confident_learning", n_jobs=1,
    return_indices_ranked_by="self_confidence",
  )  # fmt: skip
  assert len(wanted) > 5
  np.testing.assert_array_equal(errors.suspects(own), wanted)


def test_wrong_labels_are_doubted_and_right_ones_are_not():
  labels = np.repeat([0, 1], 50)
  right = np.where(np.eye(2)[labels] == 1, 0.9, 0.1)
  given = labels.copy()
  given[[3, 70]] = 1 - given[[3, 70]]
  assert set(errors.suspects(answers(given, right))) == {3, 70}
  assert not len(errors.suspects(answers(labels, right)))


def test_pairs_are_the_largest_cells_off_the_diagonal():
  matrix = np.array([[90, 3, 1], [3, 0, 0], [0, 5, 7]])
  assert errors.pairs(matrix) == [(2, 1, 5), (1, 0, 3), (0, 1, 3)]  # 3 of 3 before 3 of 94
  assert errors.pairs(matrix, number=1) == [(2, 1, 5)]
  assert errors.pairs(np.eye(3, dtype=int)) == []


def test_many_classes_are_condensed_to_those_with_the_most_errors():
  rng = np.random.default_rng(0)
  counts = rng.integers(0, 3, (9, 9)) + 50 * np.eye(9, dtype=int)
  counts[2, 7] = 40
  names = [f"c{i}" for i in range(9)]
  small = errors_figures.condensed(errors_figures.Confusion("", counts, names), most=3)
  assert small.rest
  assert small.names[-1] == "6 other classes"
  assert {"c2", "c7"} <= set(small.names)
  kept = [names.index(name) for name in small.names[:-1]]
  np.testing.assert_array_equal(small.counts[:3, :3], counts[np.ix_(kept, kept)])
  assert small.counts.sum() == counts.sum()
  np.testing.assert_array_equal(small.counts.sum(1)[:3], counts.sum(1)[kept])
  whole = errors_figures.Confusion("", counts, names)
  assert errors_figures.condensed(whole, most=9) is whole


def drawn_counts(run: compare_record.Run) -> list[np.ndarray]:
  """The numbers in the cells of the matrices that a page of few classes draws."""
  row = chosen.training(run.record)
  names = run.record["data"]["class_names"]
  made = [
    errors_figures.Confusion(
      name, metrics.confusion_matrix(own.labels, own.predicted, labels=range(len(names))), names
    )
    for name in run.tests
    for own in [chosen.answers_on(run, row, name)]
  ]
  figure = errors_figures.confusions(made)
  for axes, own in zip(figure.axes, made, strict=True):
    cells = {t.get_position(): int(t.get_text()) for t in axes.texts}
    for (i, j), count in np.ndenumerate(own.counts):
      assert cells[(j, i)] == count
    assert [t.get_text() for t in axes.get_xticklabels()] == names
    assert axes.get_yticklabels()[0].get_text() == f"{names[0]} ({own.counts[0].sum()})"
  return made


def images_of(run: compare_record.Run) -> dict:
  """A grey image for each position, of its own shade, larger than what is kept."""

  def take(rows):
    shades = np.asarray(rows, np.uint8) % 251
    return np.broadcast_to(shades[:, None, None, None], (len(rows), 200, 200, 3))

  return {**dict.fromkeys(run.tests, take), errors.LABELS: take}


def test_a_page_of_two_classes(tmp_path):
  fake_run.write(tmp_path, class_names=("defect", "ok"), methods=("lp", "ft"), num_test=120)
  run = compare_record.load(tmp_path)
  assert len(drawn_counts(run)) == 4
  assert [type(part).__name__ for part in errors_page.parts(run)] == ["Figure"]  # no images yet
  errors.save(run, images_of(run))
  stored = errors.load(tmp_path)
  assert list(stored) == list(run.tests)  # the fake run has no validation logits
  row = chosen.training(run.record)
  assert row["method"] == "ft"  # of the highest validation accuracy
  own = chosen.answers_on(run, row, NOTO)
  picked = errors.in_turns(own, errors.wrong(own))
  assert len(picked) == errors.SHOWN
  assert stored[NOTO].ids.tolist() == own.ids[picked].tolist()
  assert stored[NOTO].images.shape == (errors.SHOWN, 160, 160, 3)
  np.testing.assert_array_equal(stored[NOTO].images[:, 80, 80, 0], picked % 251)
  assert (own.predicted[picked] != own.labels[picked]).all()
  matrix, worst, others = errors_page.parts(run)
  assert (matrix.name, worst.name, len(others.parts)) == ("confusion", "errors_noto", 3)
  assert not matrix.parts  # the matrix is its own list of pairs
  assert others.folded
  (names,) = worst.parts
  assert names.parts[0].rows[0][0].text == own.ids[errors.wrong(own)[0]]
  assert f"{len(errors.wrong(own))} errors of Full fine-tuning, seed " in worst.caption


def test_a_page_of_many_classes_lists_the_pairs_and_folds_the_second_matrix(tmp_path):
  fake_run.write(tmp_path, methods=("lp", "ft"))
  run = compare_record.load(tmp_path)
  first, second = errors_page.parts(run)
  assert second.folded
  assert second.parts[0].name == "confusion_ood"
  inside, outside = first.parts
  assert "noto" in inside.title
  assert "the other 3 test sets together" in outside.title
  row = chosen.training(run.record)
  matrix = sum(
    metrics.confusion_matrix(own.labels, own.predicted, labels=range(45))
    for own in (chosen.answers_on(run, row, name) for name in list(run.tests)[1:])
  )
  name, taken, count, share = outside.parts[0].rows[0]
  i, j = fake_run.CLASSES.index(name), fake_run.CLASSES.index(taken)
  assert matrix[i, j] == (matrix * (1 - np.eye(45, dtype=int))).max()
  assert count == f"{matrix[i, j]} of {matrix[i].sum()}"
  assert share == f"{100 * matrix[i, j] / matrix[i].sum():.1f} %"
  text = terminal.render(document.Document("", "", [first, second]))
  assert name not in text  # the page's alone


def validation(tmp_path, run: compare_record.Run, own: chosen.Answers, key: str) -> None:
  """Validation logits of the training `key` as a run writes them."""
  folder = tmp_path / chosen.VALIDATION
  (folder / key).mkdir(parents=True)
  last = chosen.training(run.record)["history"][-1]
  logits = own.log_probabilities.astype(np.float32)
  np.savez(folder / key / f"{last['stage']}-{last['epoch']}.npz", logits=logits)
  np.savez(folder / "examples.npz", labels=own.labels, ids=own.ids, groups=own.ids)


@pytest.mark.slow
def test_labels_are_checked_on_validation_or_by_the_cross_validated_probe(tmp_path):
  record = fake_run.write(tmp_path, class_names=("a", "b", "c"), methods=("ft",), num_test=30)
  for row in record["trainings"]:
    row["key"] = f"after{row['seed']}"  # a training on all labels has no validation logits
  first = record["trainings"][0]
  record["trainings"].append({**first, "chosen": False, "key": "before"})
  (tmp_path / "results.json").write_text(json.dumps(record))
  run = compare_record.load(tmp_path)
  row = chosen.training(run.record)
  assert chosen.answers_on_labelled(run, row) is None
  own = random_answers(100, 3, 5)
  validation(tmp_path, run, own, "before")
  found, crossed = chosen.answers_on_labelled(run, row)
  assert not crossed
  np.testing.assert_allclose(found.log_probabilities, own.log_probabilities, atol=1e-6)
  errors.save(run, images_of(run))
  picked = errors.in_turns(own, errors.suspects(own))
  assert errors.load(tmp_path)[errors.LABELS].ids.tolist() == own.ids[picked].tolist()
  caption = errors_page.parts(run)[-1].caption
  assert f"Of 100 validation images, {len(errors.suspects(own))} labels are doubted" in caption
  assert "by Full fine-tuning which did not train on the image" in caption
  other = random_answers(80, 3, 6)
  np.savez(
    tmp_path / chosen.CROSS_VALIDATION, labels=other.labels, ids=other.ids,
    logits=other.log_probabilities,
  )  # fmt: skip
  errors.save(run, images_of(run))
  labels = errors_page.parts(run)[-1]
  assert "Of 80 training and validation images" in labels.caption
  assert "cross-validated" in labels.caption
  page = html.render(compare_page.report(run, summary_lib.summarize(run, num_resamples=20)))
  assert page.index("What is taken for what") < page.index("Labels to look at")


def test_a_set_without_errors_has_no_gallery(tmp_path):
  record = fake_run.write(tmp_path, class_names=("a", "b"), methods=("ft",), num_test=30)
  for row in record["trainings"]:
    path = tmp_path / row["test"][NOTO]["logits"]
    with np.load(path) as file:
      arrays = dict(file)
    arrays["logits"] = 9 * np.eye(2)[arrays["labels"]]
    np.savez(path, **arrays)
    row["test"][NOTO]["accuracy"] = 1.0
  (tmp_path / "results.json").write_text(json.dumps(record))
  run = compare_record.load(tmp_path)
  errors.save(run, images_of(run))
  assert NOTO not in errors.load(tmp_path)
  matrix, others = errors_page.parts(run)
  assert matrix.name == "confusion"
  assert len(others.parts) == 3
