"""The search experiment end to end: records, resuming, kills, errors."""

import io
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from subtune_jax import data
from subtune_jax.data import registry
from subtune_jax.runner import recipes
from subtune_jax.studies.compare import run as compare
from subtune_jax.studies.search import config as search_config
from subtune_jax.studies.search import record as search_records
from subtune_jax.studies.vtab import config as vtab_config
from tests.studies import small_search

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(registry, "_REGISTERED", {})
    patch.setenv("SUBTUNE_JAX_COMPILE_CACHE", "")
    yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("search") / "run"
  stream = io.StringIO()
  made = small_search.config(kinds=("profile", "windows2", "pairs", "greedy"), start="both")
  return folder, small_search.run(folder, made, stream), stream.getvalue()


def ledger(folder):
  lines = (folder / "search/ledger.jsonl").read_text().splitlines()
  return {row["key"]: row for row in map(json.loads, lines)}


def result(record):
  """What must not depend on when and how fast it was computed."""
  drop = ("created", "command", "cost", "final")
  sets = [{k: v for k, v in s.items() if "seconds" not in k} for s in record["sets"]]
  return {k: v for k, v in record.items() if k not in drop} | {"sets": sets}


def test_the_record_is_what_reports_read(finished):
  folder, record, _ = finished
  search_records.check(record)
  assert (record["kind"], record["record_version"]) == ("search", 1)
  assert search_records.load(folder) == json.loads((folder / "results.json").read_text())
  assert (folder / "report.html").stat().st_size > 10_000
  assert [s["kind"] for s in record["searches"]] == [
    "profile", "windows", "pairs", "greedy", "greedy"
  ]  # fmt: skip
  names = {tuple(s["units"]) for s in record["sets"]}
  assert names == {
    (), ("early",), ("mid",), ("late",), ("early", "mid"), ("mid", "late"), ("early", "late"),
    ("early", "mid", "late"),
  }  # fmt: skip


def test_scores_are_the_ledgers(finished):
  folder, record, _ = finished
  rows = ledger(folder).values()
  for entry in record["sets"]:
    own = sorted((r for r in rows if r["units"] == entry["units"]), key=lambda r: r["fold"])
    assert [r["accuracy"] for r in own] == pytest.approx(entry["by_fold"])
  assert record["cost"]["trainings"] == len(rows) == 3 * len(record["sets"])
  assert record["cost"]["flops"] < record["cost"]["plain_flops"]
  assert record["cost"]["dropped_by_race"] == 0


def test_the_final_comparison_trains_what_was_chosen(finished):
  folder, record, _ = finished
  final = json.loads((folder / "final/results.json").read_text())
  blocks = [b for u in record["units"] if u["name"] in record["chosen"] for b in u["blocks"]]
  trained = next(m for m in final["methods"] if m["name"] == "subtuning")["stages"][0]["blocks"]
  assert trained == [*blocks, "head"]
  assert final["data"]["num_train"] == small_search.SIZES["train"]


def test_what_a_person_sees(finished):
  _, record, text = finished
  assert "references: head alone" in text
  assert "profile: mid 0." in text
  assert "(3 trainings), best so far" in text
  assert "trainings left of this step, about" in text
  assert record["certificate"]["text"] in text


def test_a_second_start_trains_nothing(finished):
  folder, record, _ = finished
  before = ledger(folder)
  stream = io.StringIO()
  made = small_search.config(kinds=("profile", "windows2", "pairs", "greedy"), start="both")
  again = small_search.run(folder, made, stream)
  assert "will not be repeated" in stream.getvalue()
  assert ledger(folder) == before
  assert result(again) == result(record)


def test_searches_share_a_store(finished, tmp_path):
  folder, _, _ = finished
  shared = tmp_path / "store"
  shutil.copytree(folder / "search", shared)
  before = (shared / "ledger.jsonl").read_bytes()
  made = small_search.config(
    kinds=("greedy",), rule="gain", epsilon=0.0, store=str(shared), final=False
  )
  small_search.run(tmp_path / "other", made)
  assert (shared / "ledger.jsonl").read_bytes() == before


def test_the_search_never_reads_the_test_split(tmp_path, monkeypatch):
  real = small_search.load

  def guarded(split, image_size, **options):
    assert split != "test"
    return real(split, image_size, **options)

  monkeypatch.setattr(registry, "_REGISTERED", {})
  data.register(small_search.NAME, guarded)
  record = small_search.run(tmp_path, small_search.config(kinds=("profile",), final=False))
  assert record["final"] is None


def test_racing_saves_trainings_and_says_so(tmp_path):
  made = small_search.config(
    kinds=("greedy",), racing=True, regret=0.3, final=False, references=False, size=1
  )
  record = small_search.run(tmp_path, made)
  search_records.check(record)
  cost = record["cost"]
  assert cost["dropped_by_race"] > 0
  assert cost["trainings"] + cost["dropped_by_race"] == 3 * 3 == cost["plain_trainings"]
  chosen = next(s for s in record["sets"] if s["units"] == record["chosen"])
  assert chosen["complete"]


def test_one_fold_holds_the_validation_images_out(tmp_path):
  made = small_search.config(kinds=("profile",), folds=1, final=False, references=False)
  record = small_search.run(tmp_path, made)
  assert record["data"]["fold_sizes"] == [small_search.SIZES["validation"]]
  assert record["data"]["num_examples"] == 48


def test_no_unit_earns_its_place(tmp_path):
  """Then the head alone is the answer, and SubTuning is left out of the comparison."""
  made = small_search.config(
    kinds=("greedy",), rule="gain", epsilon=0.9, baseline="head", references=False
  )
  stream = io.StringIO()
  record = small_search.run(tmp_path, made, stream)
  assert record["chosen"] == []
  assert "no unit was chosen" in stream.getvalue()
  final = json.loads((tmp_path / "final/results.json").read_text())
  assert [m["name"] for m in final["methods"]] == ["lp"]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"kinds": ("profil",)}, "'profile'"),
    ({"kinds": ()}, "at least one"),
    ({"units": "early: stem; late: block9"}, "block9"),
    ({"folds": 0}, "search.folds is 0"),
    ({"folds": 99}, "num_folds=99"),
    ({"rule": "gane"}, "gain"),
    ({"epsilon": -1.0}, "epsilon is -1"),
    ({"regret": 0.0}, "search.regret is 0"),
    ({"start": "nothing"}, "none"),
    ({"head": "probed"}, "probe"),
    ({"seeds": (1, 1)}, "all different"),
    ({"learning_rate": -1.0}, "learning rate"),
    ({"learning_rates": (0.0, 1e-3)}, "search.learning_rates is .* above 0"),
    ({"learning_rates": (1e-3, 1e-3)}, "search.learning_rates is .* rising"),
    ({"learning_rates": (1e-3, "a")}, "search.learning_rates is .* rising"),
    ({"learning_rates": (1e-3, float("nan"))}, "search.learning_rates is .* rising"),
    ({"probe_l2": 0.0}, "probe_l2"),
    ({"max_params": -1}, "trained_params"),
    ({"max_fork_ms": 1.0}, "search.fork_batch 0"),
    ({"fork_batch": -1}, "search.fork_batch is -1"),
  ],
)
def test_bad_input_is_one_error_and_nothing_is_written(tmp_path, fields, message):
  made = small_search.config(**fields)
  with pytest.raises(ValueError, match=message):
    small_search.run(tmp_path / "run", made)
  assert not (tmp_path / "run").exists()


def test_a_head_that_the_weights_lack_cannot_be_kept(tmp_path):
  made = small_search.config(units="blocks")
  made.backbone.name, made.backbone.weights = "efficientnet_lite0", "efficientnet_lite0/imagenet"
  made.backbone.preprocessing, made.backbone.keep_head, made.backbone.options = "", True, ""
  with pytest.raises(ValueError, match="has no head of 3 classes"):
    small_search.run(tmp_path / "run", made)


def test_rates_chosen_inside_the_folds_are_shown_and_offered_to_the_final_comparison(tmp_path):
  made = small_search.config(kinds=("profile",), learning_rates=(1e-3, 1e-2), final=False, folds=2)
  stream = io.StringIO()
  record = small_search.run(tmp_path, made, stream)
  late = search_records.by_units(record)["late",]
  assert set(late["learning_rates"]) <= {1e-3, 1e-2}
  assert late["learning_rates"]
  assert "Learning rates chosen" in (tmp_path / "report.html").read_text()
  # 2 folds of the head, and of four sets at 2 x 14 of 18 images and on the whole: 2 + 8 * 2.56.
  assert "22 epochs" in stream.getvalue()
  assert search_config.final_config(made, ("stem",)).subtuning.learning_rates == (1e-3, 1e-2)


@pytest.mark.slow
def test_a_budget_in_milliseconds(tmp_path):
  """Forks are timed once, and kept with the search; a profile keeps to budgets as greedy does."""
  options = {"kinds": ("profile",), "final": False, "folds": 2, "references": False}
  options |= {"fork_batch": 2, "store": str(tmp_path / "store")}
  first = small_search.run(tmp_path / "first", small_search.config(**options))
  times = first["fork_ms"]
  assert times["early"] > times["mid"] > times["late"] > times["head"] > 0
  within = (times["mid"] + times["late"]) / 2
  made = small_search.config(max_fork_ms=within, **options | {"kinds": ("profile", "greedy")})
  stream = io.StringIO()
  record = small_search.run(tmp_path / "second", made, stream)
  assert record["fork_ms"] == times
  assert record["chosen"] in (["late"], [])
  tried = {
    tuple(units["units"]) for step in record["searches"][1]["steps"] for units in step["tried"]
  }
  assert tried == {("late",)}
  alone = small_search.run(tmp_path / "third", small_search.config(max_fork_ms=within, **options))
  assert alone["chosen"] == ["late"]
  assert "at most" in (tmp_path / "third/report.html").read_text()
  with pytest.raises(ValueError, match="the cheapest fork takes"):
    small_search.run(tmp_path / "fourth", small_search.config(max_fork_ms=1e-6, **options))


def test_the_final_comparison_trains_as_the_search_did():
  made = small_search.config(head="probe", epochs=7, learning_rate=3e-3, norm_mode="running")
  final = search_config.final_config(made, ("stem",))
  first, stage = recipes.make_method(final, "subtuning", 3e-3, ())
  (searched,) = search_config.make_recipe(made).method(("stem",))
  assert first.name == "head"
  assert stage == searched
  assert tuple(final.subtuning.learning_rates) == (3e-3,)


def test_the_search_of_a_vtab_task():
  made = vtab_config.default()
  own = vtab_config.search_of(made, "dtd")
  assert own.data.train == "vtab/dtd"
  assert own.data.retrain
  assert tuple(own.search.kinds) == ("greedy",)
  assert own.search.split == "trainval"
  final = search_config.final_config(own, ("block3",))
  assert tuple(final.subtuning.blocks) == ("block3",)
  compare.check(final)


def start(folder):
  environment = os.environ | {"SUBTUNE_JAX_COMPILE_CACHE": str(folder.parent / "programs")}
  return subprocess.Popen(
    [sys.executable, "-m", "tests.studies.small_search", str(folder)], cwd=ROOT,
    env=environment, stderr=subprocess.DEVNULL,
  )  # fmt: skip


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
  """20 kills; then the ledger and the result are those of a search that was left alone."""
  whole = tmp_path / "whole/run"
  assert start(whole).wait(300) == 0
  folder, random_ = tmp_path / "killed/run", random.Random(0)
  shutil.copytree(tmp_path / "whole/programs", tmp_path / "killed/programs")
  begin = time.monotonic()
  assert start(tmp_path / "timed/run").wait(300) == 0
  length = time.monotonic() - begin
  kills = 0
  for _ in range(20):
    process = start(folder)
    time.sleep(random_.uniform(0.3, 0.9) * length)
    if process.poll() is None:
      process.send_signal(signal.SIGKILL)
      kills += 1
    process.wait()
  assert kills > 0
  assert start(folder).wait(300) == 0
  strip = lambda rows: {  # noqa: E731
    key: {k: v for k, v in row.items() if "seconds" not in k} for key, row in rows.items()
  }
  assert strip(ledger(folder)) == strip(ledger(whole))
  one, other = (json.loads((f / "results.json").read_text()) for f in (folder, whole))
  assert result(one) == result(other)


@pytest.mark.slow
def test_two_processes_share_a_search(tmp_path):
  """No training is done twice, and both end with the same record."""
  folder = tmp_path / "run"
  first = start(folder)
  while not (folder / "config.json").exists():
    time.sleep(0.05)
  second = start(folder)
  assert [first.wait(300), second.wait(300)] == [0, 0]
  lines = (folder / "search/ledger.jsonl").read_text().splitlines()
  keys = [json.loads(line)["key"] for line in lines]
  assert len(keys) == len(set(keys))
