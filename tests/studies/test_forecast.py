"""The cost of a run, said before it starts: counts against what the run then does."""

import io
import re

import pytest

from subtune_jax.report import words
from subtune_jax.runner import progress as progress_lib
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.compare import run as compare
from subtune_jax.studies.search import forecast as search_forecast
from subtune_jax.studies.search import run as search
from tests import command
from tests.studies import small_search


def config(**fields):
  small_search.register()
  made = compare_config.default()
  made.methods, made.batch_size, made.tensorboard = ("lp", "ft", "subtuning"), 8, False
  made.data.train, made.data.ood, made.data.image_size = small_search.NAME, (), 16
  made.backbone.update(name="resnet14", weights="random", preprocessing="half",
                       options="stage_sizes=(1,1,2),width=8")  # fmt: skip
  made.lp.l2, made.ft.epochs, made.subtuning.epochs = (0.1,), 2, 1
  made.ft.learning_rates, made.subtuning.blocks = (1e-3, 1e-2), ("block3/unit2",)
  made.seeds, made.save_model = (0, 1), False
  made.update(fields)
  return made


def lines(workdir) -> int:
  return len((workdir / "ledger.jsonl").read_text().splitlines())


@pytest.mark.parametrize("retrain", [False, True])
def test_the_counts_are_what_the_run_does(tmp_path, retrain):
  made = config()
  made.data.retrain = retrain
  workdir, out = tmp_path / "run", io.StringIO()
  forecast = compare.dry_run(made, workdir, stream=out)
  assert not workdir.exists()  # nothing is written
  assert "dry run, nothing was trained" in out.getvalue()
  stream = io.StringIO()
  record = compare.run(made, workdir, stream=stream)
  assert forecast.trainings == lines(workdir) == (1 + 2 + 1 + 1 + 4 if retrain else 1 + 3 + 2)
  if not retrain:
    assert forecast.epochs == sum(len(row["history"]) for row in record["trainings"][1:])
  assert f"to do: {forecast.trainings} trainings, {forecast.epochs} epochs, about" in (
    stream.getvalue()
  )
  assert "of memory (measured in" in stream.getvalue()
  assert re.search(r"took .*, forecast .* \(\d+\.\d\d times\)", stream.getvalue())
  out = io.StringIO()
  assert compare.dry_run(made, workdir, stream=out) is None
  assert "nothing: all trainings are in the ledger" in out.getvalue()


def test_what_an_earlier_start_has_done_is_not_counted(tmp_path):
  made = config()
  workdir = tmp_path / "run"
  whole = compare.dry_run(made, workdir, stream=io.StringIO())
  compare.run(made, workdir, stream=io.StringIO())
  ledger = workdir / "ledger.jsonl"
  kept = ledger.read_text().splitlines(keepends=True)
  ledger.write_text("".join(kept[:-2]))  # both of SubTuning
  left = compare.dry_run(made, workdir, stream=io.StringIO())
  assert (left.trainings, whole.trainings) == (2, 6)
  assert left.epochs == 2


@pytest.mark.parametrize(
  ("fields", "number"),
  [
    ({"kinds": ("profile",)}, 3 * 3 + 2 * 3),
    ({"kinds": ("profile", "greedy")}, (3 + 2) * 3 + 2 * 3),  # greedy: 2 sets of two units more
    ({"kinds": ("windows2",), "references": False}, 2 * 3),
    ({"kinds": ("greedy",), "size": 1, "references": False, "seeds": (0, 1)}, 3 * 3 * 2),
  ],
)
def test_a_searchs_trainings(tmp_path, fields, number):
  made = small_search.config(final=False, **fields)
  out = io.StringIO()
  small_search.register()
  search.dry_run(made, tmp_path / "run", stream=out)
  assert f"the search: {number} trainings, " in out.getvalue()
  assert not (tmp_path / "run").exists()
  search.run(made, tmp_path / "run", stream=io.StringIO())
  assert lines(tmp_path / "run/search") == number


def test_a_race_is_a_bound_and_a_gain_is_open(tmp_path):
  out = io.StringIO()
  small_search.register()
  made = small_search.config(kinds=("greedy",), racing=True, size=1, references=False)
  search.dry_run(made, tmp_path, stream=out)
  assert "the search: at most 9 trainings" in out.getvalue()
  assert "the comparison after it: to do: 2 trainings, 2 epochs" in out.getvalue()
  assert "the whole run: at most about" in out.getvalue()
  made = search_forecast.Forecast(3, 3, 10.0, bound=False, more=True, compiling=0.0, spent=1.0)
  assert "at least 3 trainings" in made.text()


def test_the_time_left_is_of_the_whole_run(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(progress_lib.time, "monotonic", lambda: now[0])
  shown = progress_lib.Progress(10, io.StringIO())
  shown.expect(1000.0)
  row = {"epoch": 1, "validation_accuracy": None}
  now[0] = 10.0
  shown.epoch("lp", row, cost=10.0)  # as forecast
  assert shown.left() == "about 16 min left"  # of the 990 seconds that dear epochs will take
  now[0] = 1000.0
  shown.epoch("ft", row, cost=490.0)  # twice as slow
  assert shown.left() == f"about {words.duration(500 * 1050 / 550)} left"


def test_durations():
  assert [words.duration(x) for x in (0.4, 99.4, 99.6, 5940, 9000)] == [
    "0 s", "99 s", "2 min", "99 min", "2.5 h"
  ]  # fmt: skip


def test_another_study_has_no_dry_run(tmp_path):
  done = command.run("--config=configs/robustness.py", "--dry_run", f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 2
  assert done.stderr.startswith("error: --dry_run is of the studies compare and search, not of rob")
  assert not (tmp_path / "run").exists()
