"""The cost of a run, said before it starts: counts against what the run then does."""

import io
import itertools
import types

import pytest

from subtune_jax.report import words
from subtune_jax.runner import progress as progress_lib
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.compare import run as compare
from subtune_jax.studies.search import forecast as search_forecast
from subtune_jax.studies.search import run as search
from tests import command
from tests.search import tables
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


def trained(made, workdir) -> str:
  """What is shown by a run up to its last training."""
  stream = io.StringIO()
  compare.train_all(compare.start(made, workdir, stream))
  return stream.getvalue()


@pytest.mark.slow
def test_the_counts_are_what_the_run_does(tmp_path):
  made = config()
  workdir, out = tmp_path / "run", io.StringIO()
  forecast = compare.dry_run(made, workdir, stream=out)
  assert not workdir.exists()  # nothing is written
  assert "dry run, nothing was trained" in out.getvalue()
  text = trained(made, workdir)
  assert f"to do: 6 trainings, {1 + 3 * 2 + 2} epochs, about" in text
  assert "the largest step takes" in text
  assert (forecast.trainings, forecast.epochs) == (6, 9)
  assert lines(workdir) == 1 + 3 + 2
  ledger = workdir / "ledger.jsonl"
  kept = ledger.read_text().splitlines(keepends=True)
  out = io.StringIO()
  assert compare.dry_run(made, workdir, stream=out) is None
  assert "nothing: all trainings are in the ledger" in out.getvalue()
  ledger.write_text("".join(kept[:-2]))  # without both of SubTuning
  left = compare.dry_run(made, workdir, stream=io.StringIO())
  assert (left.trainings, left.epochs) == (2, 2)


@pytest.mark.slow
def test_the_counts_where_methods_are_trained_again_on_all_labels(tmp_path):
  made = config(methods=("lp", "subtuning"))
  made.data.retrain = True
  forecast = compare.dry_run(made, tmp_path / "run", stream=io.StringIO())
  trained(made, tmp_path / "run")
  assert forecast.trainings == lines(tmp_path / "run") == (1 + 1) + (1 + 2)
  assert compare.dry_run(made, tmp_path / "run", stream=io.StringIO()) is None


@pytest.mark.parametrize(
  ("fields", "number"),
  [
    ({"kinds": ("profile", "greedy")}, (3 + 2) * 3 + 2 * 3),  # greedy: 2 sets of two units more
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


def test_the_sets_that_are_counted():
  trainer = types.SimpleNamespace(problem=types.SimpleNamespace(network=tables.network()))
  options = {"final": False, "references": False, "rule": "gain"}
  made = small_search.config(kinds=("windows2", "pairs"), **options)
  sets, more = search_forecast.planned(made, trainer)
  names = tables.network().names
  assert sorted(sets) == sorted(itertools.combinations(names, 2))  # windows are pairs, once
  assert not more
  made = small_search.config(kinds=("greedy",), start="both", baseline="head", **options)
  sets, more = search_forecast.planned(made, trainer)
  assert {len(units) for units in sets} == {0, 1, len(names) - 1, len(names)}
  assert len(sets) == 2 + 2 * len(names)
  assert more


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
  assert shown.left() == f"about {words.duration(500 * 1200 / 700)} left"
  shown.compare()
  assert shown.stream.getvalue() == "took 17 min, forecast 17 min (1.00 times)\n"


def test_durations():
  assert [words.duration(x) for x in (0.4, 99.4, 99.6, 5940, 9000)] == [
    "0 s", "99 s", "2 min", "99 min", "2.5 h"
  ]  # fmt: skip


def test_another_study_has_no_dry_run(tmp_path):
  arguments = "--config=configs/robustness.py", "--dry_run", f"--workdir={tmp_path / 'run'}"
  done = command.run_forked(*arguments)
  assert done.returncode == 2
  assert done.stderr.startswith("error: --dry_run is of the studies compare and search, not of rob")
  assert not (tmp_path / "run").exists()
