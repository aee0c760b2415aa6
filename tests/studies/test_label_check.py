"""The images and labels that a run keeps for its page, end to end on a small network."""

import io

import numpy as np
import pytest

from subtune_jax.runner import examples
from subtune_jax.studies.compare import chosen, errors
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import run as compare
from tests.studies import test_compare


@pytest.mark.slow
def test_a_run_keeps_its_worst_errors_and_checks_labels(tmp_path, monkeypatch):
  config = test_compare.make_config()
  config.methods, config.data.ood, config.save_model = ("lp",), ("emoji_domains/fluent",), False
  most = "subtune_jax.studies.compare.label_check._MOST_SECONDS"
  monkeypatch.setattr(most, 1e9)  # however busy the machine
  compare.run(config, tmp_path, stream=io.StringIO())
  run = compare_record.load(tmp_path)
  stored = errors.load(tmp_path)
  train, validation, _, _ = examples.load_data(config)
  tests, _ = examples.load_tests(config, train.class_names)
  row = chosen.training(run.record)
  for test in tests:
    logits = np.load(tmp_path / row["test"][test.name]["logits"])["logits"].astype(np.float64)
    own = logits[np.arange(len(logits)), test.labels]
    loss = np.log(np.exp(logits - own[:, None]).sum(1))
    wrong = np.where(logits.argmax(1) == test.labels, -1, loss)
    first = int(wrong.argmax())
    assert stored[test.name].ids[0] == test.ids[first]
    np.testing.assert_array_equal(stored[test.name].images[0], test.images[first])
  read = np.load(tmp_path / chosen.CROSS_VALIDATION)
  ids = np.concatenate([train.ids, validation.ids])
  np.testing.assert_array_equal(read["ids"], ids)
  np.testing.assert_array_equal(read["labels"], np.concatenate([train.labels, validation.labels]))
  found, crossed = chosen.answers_on_labelled(run, row)
  assert crossed
  place = errors.in_turns(found, errors.suspects(found))[0]
  both = [*train.images, *validation.images]
  np.testing.assert_array_equal(stored[errors.LABELS].images[0], both[place])
  assert (tmp_path / "figures/labels.png").is_file()
  # A probe that is too slow: no cross-validation, and what an earlier start wrote is gone.
  monkeypatch.setattr(most, -1)
  compare.run(config, tmp_path, stream=io.StringIO())
  assert not (tmp_path / chosen.CROSS_VALIDATION).exists()
  found, crossed = chosen.answers_on_labelled(run, row)
  assert not crossed
  np.testing.assert_array_equal(found.ids, validation.ids)
  splits_of = dict(zip(ids, both, strict=True))
  again = errors.load(tmp_path)[errors.LABELS]
  np.testing.assert_array_equal(again.images[0], splits_of[again.ids[0]])
