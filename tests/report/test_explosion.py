"""Trainings that exploded are named wherever a comparison is reported."""

import json
import math

import pytest

from subtune_jax.report import explosion, html, terminal
from subtune_jax.studies.compare import page as compare_page
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import summary as summary_lib
from tests.report import fake_run


def row(train=1.0, validation=1.0):
  return {"train_loss": train, "validation_loss": validation}


@pytest.mark.parametrize(
  ("history", "moved", "says"),
  [
    ([row(), row(6.6e9)], 0.1, "training loss 6.6e+09"),
    ([row(), row(validation=6.6e9)], 0.1, "validation loss 6.6e+09"),
    ([row()], 101.0, "moved by 101"),
    ([row(validation=None)], 101.0, "moved by 101"),
    ([row(6.6e9), row()], 0.1, None),  # it came back
    ([row(9.9 * math.log(3), 9.9 * math.log(3))], 99.0, None),
    ([row(10.1 * math.log(3))], 0.1, "training loss"),
    ([row(validation=None)], None, None),
    ([], None, None),
  ],
)
def test_the_rule(history, moved, says):
  found = explosion.explosion(history, moved, 3)
  assert found is None if says is None else says in found


@pytest.mark.slow
def test_the_report_names_it(tmp_path):
  fake_run.write(tmp_path)
  assert "exploded" not in html.render(compare_page.report(*_read(tmp_path)))
  path = tmp_path / "results.json"
  record = json.loads(path.read_text())
  found = next(t for t in record["trainings"] if t["method"] == "ft" and t["chosen"])
  found["history"][-1]["train_loss"] = 6.6e9
  path.write_text(json.dumps(record))
  run, summary = _read(tmp_path)
  line = f"Full fine-tuning exploded at {found['learning_rate']:g} (seed {found['seed']}, chosen:"
  document = compare_page.report(run, summary)
  assert line in html.render(document)
  assert line in " ".join(terminal.render(document).split())


def _read(folder):
  run = compare_record.load(folder)
  return run, summary_lib.summarize(run, num_resamples=50)
