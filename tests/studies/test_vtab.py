"""The VTAB-1k suite: what its table says, killed and resumed, and when there is a score."""

import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest

from subtune_jax import data, models
from subtune_jax.data import errors, registry, tfds_source, vtab
from subtune_jax.report import html, terminal, words
from subtune_jax.runner import executors
from subtune_jax.studies.compare import page as compare_page
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import run as compare
from subtune_jax.studies.compare import summary as summary_lib
from subtune_jax.studies.vtab import config as vtab_config
from subtune_jax.studies.vtab import page as suite
from subtune_jax.studies.vtab import record as vtab_record
from subtune_jax.studies.vtab import run as suite_run
from tests import tiny
from tests.workers import random_order

DOMAINS = {
  "vtab/dtd": "emoji_domains/noto",
  "vtab/svhn": "emoji_domains/twemoji",
}


class Net(tiny.Tiny):
  """The small backbone, with what random weights need."""

  image_size: int = 16


@pytest.fixture(scope="module", autouse=True)
def prepared():
  """Every task is prepared; two are small sets of emoji. The backbone is a small one."""

  def load(name, split, image_size, *, interpolation):
    assert interpolation == vtab.OFFICIAL
    found = registry.load(DOMAINS[name], split, image_size)
    found = found.subset(np.flatnonzero(found.labels < 8))
    names = found.class_names[:8]
    return dataclasses.replace(found, name=name, class_names=names)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(data, "load", load)
    patch.setattr(
      models, "create", lambda name, num_classes, **_: Net(num_classes=num_classes, depth=2)
    )
    patch.setattr(compare_page, "figures", lambda *_: {})
    patch.setattr(jax, "clear_caches", lambda: None)  # saves time, changes no number
    patch.setattr(tfds_source.Source, "is_prepared", lambda source: True)
    yield


def small(*tasks: str):
  config = vtab_config.default()
  config.tasks = tasks
  config.methods = ("lp", "subtuning")
  config.seeds = (0, 1)
  config.data.image_size = 16
  config.backbone.weights, config.backbone.preprocessing = "random", "half"
  config.lp.l2 = (0.01, 0.1)
  config.subtuning.blocks = ("block1",)
  config.subtuning.epochs = 1
  config.subtuning.learning_rates = (1e-2,)
  config.batch_size = 16
  config.tensorboard = False
  return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("suite") / "run"
  stream = io.StringIO()
  record = suite_run.run(small("svhn", "vtab/dtd"), workdir, command="the command", stream=stream)
  return workdir, record, stream.getvalue()


def test_the_table_is_that_of_the_tasks_own_runs(whole):
  workdir, record, text = whole
  assert record == vtab_record.load(workdir)
  assert (record["kind"], record["record_version"]) == ("vtab", 1)
  assert [row["task"] for row in record["tasks"]] == ["dtd", "svhn"]
  for row in record["tasks"]:
    own = compare_record.load(workdir / row["folder"])
    assert (own.record["kind"], own.record["record_version"]) == ("compare", 1)
    assert own.record["data"]["train"] == row["name"]
    summary = summary_lib.summarize(own)
    for method, expected in zip(row["methods"], summary.rows, strict=True):
      estimate = expected.accuracy[row["name"]]
      found = [method[name] for name in ("accuracy", "low", "high")]
      assert found == [estimate.mean, estimate.low, estimate.high]
      tests = [t["test"][row["name"]]["accuracy"] for t in own.chosen(method["name"])]
      assert method["by_seed"] == tests
      assert method["accuracy"] == pytest.approx(np.mean(tests))
      assert method["low"] <= method["accuracy"] <= method["high"]
      shown = words.percent(estimate.mean)
      assert shown in suite.task_line(row)
      assert shown in html.render(suite.report(record))
    assert f"\n{suite.task_line(row)}\n" in text
  assert terminal.render(suite.report(record)) in text


def test_methods_are_trained_again_on_all_labels(whole):
  workdir, _, text = whole
  assert text.count("on all labels: done") == 2 * 3  # per task: the probe, SubTuning with two seeds
  own = json.loads((workdir / "tasks/dtd/results.json").read_text())
  assert own["config"]["data"]["retrain"]


def test_the_page_leads_to_each_tasks_page(whole):
  workdir, _, text = whole
  page = (workdir / "report.html").read_text()
  for task in ("dtd", "svhn"):
    assert f'<a href="tasks/{task}/report.html">{task}</a>' in page
    assert (workdir / f"tasks/{task}/report.html").is_file()
  assert "2 of 19 tasks are there, so no score is given" in page
  assert "2 of 19 tasks are there, so no score is given" in text
  assert "mean of" not in text


@pytest.fixture
def replayed(whole, monkeypatch):
  """Tasks end as they did in `whole`, at once. Returns the names of those that ran."""
  ran = []

  def run(config, workdir, *, command, stream, changeable):
    assert not changeable  # a task is a part of the suite
    ran.append(config.data.train)
    if len(ran) == replayed_until[0]:
      (workdir / "logits").mkdir(parents=True)  # as left by a kill in the midst of it
      raise KeyboardInterrupt
    source = whole[0] / "tasks" / workdir.name
    shutil.copytree(source, workdir, dirs_exist_ok=True)
    return json.loads((workdir / "results.json").read_text())

  replayed_until = [0]
  monkeypatch.setattr(compare, "run", run)
  return ran, replayed_until


@pytest.mark.slow
def test_killed_in_the_second_task_it_ends_the_same(whole, replayed, tmp_path):
  ran, until = replayed
  until[0] = 2
  workdir = tmp_path / "run"
  with pytest.raises(KeyboardInterrupt):
    suite_run.run(small("dtd", "svhn"), workdir, stream=io.StringIO())
  partial = json.loads((workdir / "results.json").read_text())
  assert [row["task"] for row in partial["tasks"]] == ["dtd"]
  assert "1 of 19 tasks are there" in (workdir / "report.html").read_text()
  stream = io.StringIO()
  record = suite_run.run(small("dtd", "svhn"), workdir, command="the command", stream=stream)
  assert ran == ["vtab/dtd", "vtab/svhn", "vtab/svhn"]
  assert "resuming; finished and not repeated: dtd\n" in stream.getvalue()
  assert "task 1 of 1: svhn" in stream.getvalue()
  assert record["tasks"] == whole[1]["tasks"]
  assert (workdir / "report.html").read_text().count("<tr>") > 4


def test_a_suite_may_be_run_in_parts(whole, replayed, tmp_path, monkeypatch):
  ran, _ = replayed
  workdir = tmp_path / "run"
  suite_run.run(small("svhn"), workdir, stream=io.StringIO())
  record = suite_run.run(small("dtd"), workdir, stream=io.StringIO())
  assert record["tasks"] == whole[1]["tasks"]
  monkeypatch.setattr(tfds_source.Source, "is_prepared", lambda source: False)
  again = suite_run.run(small("svhn", "dtd"), workdir, stream=io.StringIO())  # needs no data
  assert again["tasks"] == record["tasks"]
  assert len(ran) == 2
  config = small("dtd")
  config.subtuning.epochs = 2
  with pytest.raises(ValueError, match=r"subtuning\.epochs: 1 -> 2"):
    suite_run.run(config, workdir, stream=io.StringIO())


def test_nothing_is_written_before_all_is_checked(tmp_path, monkeypatch):
  config = small("dtd")
  config.subtuning.blocks = ("blok2",)
  with pytest.raises(ValueError, match="nearest names are"):
    suite_run.run(config, tmp_path / "run", stream=io.StringIO())
  there = ("dtd", "fashion_mnist")
  monkeypatch.setattr(tfds_source.Source, "is_prepared", lambda source: source.name in there)
  with pytest.raises(errors.MissingDataError) as raised:
    suite_run.run(small(*DOMAINS, "fashion_mnist"), tmp_path / "run", stream=io.StringIO())
  message = str(raised.value)
  assert message.startswith("1 of 3 tasks have no data here")
  assert "vtab/svhn (TFDS svhn_cropped 3.1.0): 1.6 GB to download" in message
  assert "--config.tasks=\"('dtd','fashion_mnist',)\"" in message
  assert not (tmp_path / "run").exists()


def fake_rows(names, half: float = 0.05) -> list[dict]:
  """Rows of results.json; the accuracy of task i is i / 100, and twice that."""
  rows = []
  for i, name in enumerate(names, start=1):
    methods = []
    for method, factor in (("lp", 1), ("ft", 2)):
      value = factor * i / 100
      methods.append(
        {"name": method, "title": method.upper(), "accuracy": value, "low": value - half,
         "high": value + 2 * half, "setting": "l2", "value": 0.1, "grid_edge": False}
      )  # fmt: skip
    task = {**vtab.TASKS, **vtab.EXTRA}[name]
    rows.append({"task": name, "name": name, "group": task.group, "folder": f"tasks/{name}",
                 "created": "", "devices": "", "num_test": 1234, "num_seeds": 3, "leaders": ["ft"],
                 "methods": methods})  # fmt: skip
  return rows


def as_record(rows) -> dict:
  missing = [task for task in vtab.TASKS if task not in {row["task"] for row in rows}]
  return {"name": "vtab", "title": "VTAB-1k", "command": "", "config": {}, "num_tasks": 19,
          "missing": missing, "tasks": rows, "scores": suite_run.scores(rows)}  # fmt: skip


def test_scores_of_all_tasks_by_hand():
  scores = {s["key"]: s["methods"] for s in suite_run.scores(fake_rows(vtab.TASKS))}
  assert scores.keys() == {
    "mean_of_tasks", "mean_of_natural", "mean_of_specialized", "mean_of_structured",
    "mean_of_group_means",
  }  # fmt: skip
  # Tasks 1 to 7 are natural, 8 to 11 specialized, 12 to 19 structured.
  expected = {"tasks": 0.10, "natural": 0.04, "specialized": 0.095, "structured": 0.155}
  expected["group_means"] = (0.04 + 0.095 + 0.155) / 3
  squares = {"tasks": 1 / 19, "natural": 1 / 7, "specialized": 1 / 4, "structured": 1 / 8}
  squares["group_means"] = (1 / 7 + 1 / 4 + 1 / 8) / 9
  for name, value in expected.items():
    for method, factor in (("lp", 1), ("ft", 2)):
      found = scores[f"mean_of_{name}"][method]
      assert found["accuracy"] == pytest.approx(factor * value), name
      assert found["accuracy"] - found["low"] == pytest.approx(0.05 * squares[name] ** 0.5)
      assert found["high"] - found["accuracy"] == pytest.approx(0.10 * squares[name] ** 0.5)


def test_scores_are_there_only_when_all_tasks_are():
  names = list(vtab.TASKS)
  complete = as_record(fake_rows(names))
  extended = as_record(fake_rows([*names, "fashion_mnist"]))
  assert extended["scores"] == complete["scores"]
  incomplete = as_record(fake_rows([*names[:-1], "fashion_mnist"]))
  assert incomplete["scores"] is None
  titles = [
    "mean of 19 tasks", "mean of 7 natural", "mean of 4 specialized", "mean of 8 structured",
    "mean of 3 group means",
  ]  # fmt: skip
  for render in (terminal.render, html.render):
    whole, partial, more = (
      " ".join(render(suite.report(r)).split()) for r in (complete, incomplete, extended)
    )
    for title in titles:
      assert title in whole
      assert title not in partial
    assert "18 of 19 tasks are there, so no score is given" in partial
    assert names[-1] in partial
    assert "in no score" in more


@pytest.mark.slow
def test_tasks_side_by_side_elsewhere_are_the_same(whole, tmp_path, monkeypatch):
  """Trainings and readings of the test sets by an executor that runs elsewhere, in any order."""
  executor = random_order.Elsewhere(0)
  monkeypatch.setattr(executors, "of", lambda config, places: executor)
  monkeypatch.setattr(executors, "check", lambda config, **_: None)
  config, stream = small("svhn", "vtab/dtd"), io.StringIO()
  config.workers = "ray"
  record = suite_run.run(config, tmp_path / "run", stream=stream)
  assert "2 tasks, 2 at a time\n" in stream.getvalue()
  assert "dtd: lp on all labels: done" in stream.getvalue()

  def numbers(found):
    skipped = ("seconds", "compile_seconds", "created", "moved")
    return [
      {k: v for k, v in row.items() if k not in skipped}
      | {"methods": [{k: v for k, v in m.items() if k not in skipped} for m in row["methods"]]}
      for row in found["tasks"]
    ]

  assert numbers(record) == numbers(whole[1])
  for task in ("dtd", "svhn"):
    ledgers = [
      {json.loads(line)["key"] for line in (w / f"tasks/{task}/ledger.jsonl").open()}
      for w in (whole[0], tmp_path / "run")
    ]
    assert ledgers[0] == ledgers[1]
    logits = f"tasks/{task}/logits/subtuning-seed1-vtab-{task}.npz"
    one, other = (np.load(w / logits)["logits"] for w in (whole[0], tmp_path / "run"))
    assert np.array_equal(one, other)
