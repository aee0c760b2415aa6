"""What diverges is never chosen, scored or written as a result: a sweep of small trainings."""

import dataclasses
import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import files, weights
from subtune_jax.data import registry
from subtune_jax.report import explosion
from subtune_jax.runner import choice, network, trainings, workdir, writers
from subtune_jax.studies import fields
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import run as compare
from subtune_jax.studies.search import run as search
from subtune_jax.training import ledger, loop, stage_runner
from tests import tiny
from tests.report import fake_run
from tests.studies import small_search

METHODS = ("ft", "subtuning", "lp_ft", "ema", "l2_sp")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
  monkeypatch.setattr(registry, "_REGISTERED", {})
  small_search.register()


def config(optimizer, dtype, rates, names=METHODS):
  made = compare_config.default()
  made.methods, made.seeds, made.batch_size, made.tensorboard = ("lp", *names), (0,), 12, False
  made.data.train, made.data.ood, made.data.image_size = small_search.NAME, (), 16
  made.backbone.weights, made.backbone.preprocessing = "random", "half"
  made.backbone.dtype = dtype
  made.optimizer.name, made.optimizer.schedule = optimizer, "constant"
  made.lp.l2, made.subtuning.blocks = (1e-2, 1.0), ("block1",)
  for name in names:
    made[name].epochs, made[name].learning_rates = 2, tuple(rates)
  made.save_model = False  # the network is not one of the registry
  return made


def tiny_network(made, num_classes):
  """In place of `network.load_network`."""
  model, variables = tiny.make(num_classes=num_classes, dtype=jnp.dtype(made.backbone.dtype))
  found = weights.Pretrained(variables, tiny.PREPROCESSING, "random", "0" * 64, ())
  return tiny.engine(model, batch_size=made.batch_size), found


def strict(text):
  """Parses JSON, and nothing that only Python's parser takes."""

  def refuse(token):
    raise AssertionError(f"{token} is no JSON")

  return json.loads(text, parse_constant=refuse)


def numbers(value):
  """Every number of nested dicts and lists."""
  if isinstance(value, dict | list):
    for each in value.values() if isinstance(value, dict) else value:
      yield from numbers(each)
  elif isinstance(value, float):
    yield value


def all_finite(tree):
  return all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(tree))


class Watched:
  """`loop.fit`, and what became of each training."""

  def __init__(self, monkeypatch):
    self.healthy = self.diverged = self.named = self.exploded = 0
    self._fit = loop.fit
    monkeypatch.setattr(trainings.loop, "fit", self)

  def __call__(self, engine, variables, method, train, validation, **options):
    try:
      result = self._fit(engine, variables, method, train, validation, **options)
    except stage_runner.NonFiniteLossError as e:
      self.diverged += 1
      self.named += any(repr(stage.name) in str(e) for stage in method) and "epoch" in str(e)
      raise
    assert all_finite(result.variables)
    assert all(map(math.isfinite, numbers(result.history)))
    assert np.isfinite(engine.predict(result.variables, validation.images)).all()
    self.healthy += 1
    self.exploded += bool(explosion.explosion(result.history, result.moved, 3))
    return result


def sweep(tmp_path, monkeypatch, made):
  """One comparison; every file and choice of it is looked at."""
  monkeypatch.setattr(network, "load_network", tiny_network)
  stream = io.StringIO()
  state = compare.start(made, tmp_path, stream)
  chosen = compare.train_all(state)
  compare.finish(state, chosen, "")
  record = strict((tmp_path / "results.json").read_text())
  for name in ("ledger.jsonl", "metrics.jsonl"):
    for line in (tmp_path / name).read_text().splitlines():
      strict(line)
  for row in map(strict, (tmp_path / "ledger.jsonl").read_text().splitlines()):
    assert (row["validation_accuracy"] is None) == (not row["history"])
  for path in tmp_path.glob("logits/**/*.npz"):
    arrays = files.read_npz(path, "")
    assert "logits" not in arrays or np.isfinite(arrays["logits"]).all()
  for training in record["trainings"]:
    if training["chosen"]:
      assert training["history"]
      assert training["validation_accuracy"] is not None
      scored = training["test"][small_search.NAME]
      assert math.isfinite(scored["accuracy"])
      assert math.isfinite(scored["loss"])
  return record, stream.getvalue()


@pytest.mark.slow
def test_a_grid_of_small_trainings(tmp_path, monkeypatch):
  """12 of the trainings of the sweep below."""
  watched = Watched(monkeypatch)
  rates = (1e-3, 1e-1, 1.0, 1e2, 1e4, 1e6)
  record, text = sweep(
    tmp_path, monkeypatch, config("sgd", "float32", rates, ("ft", "lp_ft"))
  )  # fmt: skip
  assert watched.named == watched.diverged >= 2
  assert watched.healthy >= 4
  page = (tmp_path / "report.html").read_text()
  for name in ("ft", "lp_ft"):
    entry = next(method for method in record["methods"] if method["name"] == name)
    bad = [p["learning_rate"] for p in entry["grid"] if p["validation_accuracy"] is None]
    assert bad
    assert entry["learning_rate"] not in bad
    for rate in bad:
      line = f"{entry['title']} diverged at {rate:g} (seed 0)."
      assert line in page
      assert line in " ".join(text.split())


def scores(record):
  """What a record says of its trainings, without what took how long."""
  return [
    {k: t.get(k) for k in ("method", "seed", "learning_rate", "key", "chosen", "test")}
    for t in record["trainings"]
  ]  # fmt: skip


def test_after_a_method_that_always_diverges_the_workdir_takes_other_methods_rates_and_seeds(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(network, "load_network", tiny_network)
  monkeypatch.setattr(compare.publish, "publish", lambda *_: None)
  monkeypatch.setattr(compare.forecast, "measure", lambda _: None)

  def run(rates, name="run", seeds=(0,), names=("lp", "ft"), **fields):
    made = config("sgd", "float32", rates, ("ft",))
    made.methods, made.seeds, made.ft.epochs = names, seeds, 1
    made.update(fields)
    return compare.run(made, tmp_path / name, stream=io.StringIO())

  kept = rf"Finished trainings are kept: .*--workdir={tmp_path}/run and other learning_rates, m"
  with pytest.raises(ValueError, match=r"^ft: every .* of \(1000000.0,\) diverged; lower.*" + kept):
    run((1e6,))
  watched = Watched(monkeypatch)
  with pytest.raises(ValueError, match=r"another config:\n  batch_size: 12 -> 6\nchoose"):
    run((1e-3,), batch_size=6)
  with monkeypatch.context() as patch:  # the test sets are read, and no record is written
    patch.setattr(compare, "_publish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      run((1e-3, 1e-1), seeds=(0, 1))
  assert watched.healthy == 3  # ft at two rates, and at one with the second seed
  for rate in (1e-3, 1e-1):  # whichever was chosen, the other one's weights are there
    assert json.loads((tmp_path / "run/config.json").read_text())["methods"] == ["lp", "ft"]
    with monkeypatch.context() as patch:
      patch.setattr(compare, "_publish", lambda *_: 1 / 0)
      with pytest.raises(ZeroDivisionError):
        run((rate,))
  assert watched.healthy == 3
  record = run((1e-1,), seeds=(1, 0), names=("ft",))
  assert watched.healthy <= 4  # with seed 1, if that was not the choice
  assert scores(record) == scores(run((1e-1,), "fresh", (1, 0), ("ft",)))
  own = json.loads((tmp_path / "run/config.json").read_text())
  assert (own["seeds"], own["ft"]["learning_rates"]) == ([1, 0], [1e-1])
  with pytest.raises(ValueError, match=r"another config:\n  ft.learning_rates: .*\n  methods: "):
    run((1e-3,), seeds=(1, 0))
  with pytest.raises(ValueError, match=r"another config:\n  seeds: "):
    run((1e-1,), names=("ft",))


def test_the_workdir_of_a_part_of_a_study_is_of_one_config(tmp_path, monkeypatch):
  monkeypatch.setattr(network, "load_network", tiny_network)
  made = config("sgd", "float32", (1e6,), ("ft",))
  made.methods = ("ft",)
  for rate, error in ((1e6, r"diverged; lower them$"), (1e-3, "ft.learning_rates: ")):
    made.ft.learning_rates = (rate,)
    with pytest.raises(ValueError, match=error):
      compare.run(made, tmp_path / "run", stream=io.StringIO(), changeable=False)


@pytest.mark.slow
def test_300_small_trainings(tmp_path, monkeypatch, capsys):
  """Methods by optimisers, learning rates up to 1e6 and precisions: 12 comparisons of 25."""
  watched, rng = Watched(monkeypatch), np.random.default_rng(0)
  for optimizer in ("sgd", "adam", "adabelief", "adadelta", "adagrad", "rmsprop"):
    for dtype in ("float32", "bfloat16"):
      rates = sorted(float(rate) for rate in 10 ** rng.uniform(-3, 6, 4))
      folder = tmp_path / f"{optimizer}-{dtype}"
      before = watched.healthy + watched.diverged
      sweep(folder, monkeypatch, config(optimizer, dtype, (1e-4, *rates)))
      assert watched.healthy + watched.diverged == before + 26  # with the probe
  with capsys.disabled():
    print(f"\n{watched.diverged} diverged, {watched.healthy} healthy, of them "
          f"{watched.exploded} exploded")  # fmt: skip
  assert watched.diverged + watched.healthy == 312
  assert watched.named == watched.diverged > 20


@pytest.mark.slow
def test_a_search_never_chooses_what_diverged(tmp_path, monkeypatch):
  """One unit's only update diverges. Labels are mostly class 0, which is what NaN answers."""

  def load(split, image_size, **options):
    made = small_search.load(split, image_size, **options)
    labels = np.where(np.arange(len(made)) % 10 < 7, 0, made.labels).astype(np.int32)
    return dataclasses.replace(made, labels=labels)

  monkeypatch.setattr(registry, "_REGISTERED", {})
  registry.register(small_search.NAME, load)
  original = search.search_config.make_recipe

  def make_recipe(made, class_names=None):
    recipe = original(made, class_names)

    def method(blocks):
      (stage,) = recipe.method(blocks)
      rate = 1e25 if "stem" in blocks else 1e-3
      rates = dict.fromkeys(stage.solver.learning_rates, rate)
      solver = dataclasses.replace(stage.solver, learning_rates=rates)
      return (dataclasses.replace(stage, solver=solver),)

    return dataclasses.replace(recipe, method=method)

  monkeypatch.setattr(search.search_config, "make_recipe", make_recipe)
  made = small_search.config(
    kinds=("profile", "greedy"), size=1, final=False, optimizer="sgd", folds=2
  )
  made.batch_size = 18  # one step
  stream = io.StringIO()
  record = small_search.run(tmp_path / "run", made, stream)
  strict((tmp_path / "run" / "results.json").read_text())
  sets = {tuple(row["units"]): row for row in record["sets"]}
  assert sets["early",]["diverged"]
  assert not sets["mid",]["diverged"]
  assert "early" not in record["chosen"]
  assert ["early"] not in [other["units"] for other in record["certificate"]["undecided"]]
  text = " ".join(stream.getvalue().split())
  assert "early diverged (2 trainings)" in text
  assert "2 sets diverged and cannot be chosen: early; all units." in text
  assert "diverged and cannot be chosen" in (tmp_path / "run/report.html").read_text()


NAN, INF = float("nan"), float("inf")


def test_no_file_holds_what_is_no_json(tmp_path):
  values = {"key": "a", "x": NAN, "y": [INF, 1.0], "z": {"w": -INF, "v": np.float64(NAN)}}
  expected = {"key": "a", "x": None, "y": [None, 1.0], "z": {"w": None, "v": None}}
  ledger.Ledger(tmp_path / "ledger.jsonl").append(values)
  assert strict((tmp_path / "ledger.jsonl").read_text()) == expected | {"version": ledger.VERSION}
  workdir.write_json(tmp_path / "results.json", values)
  assert strict((tmp_path / "results.json").read_text()) == expected
  writer = writers.MetricWriter(tmp_path, tensorboard=False)
  writer.write(1, "ft", values)
  writer.close()
  assert strict((tmp_path / "metrics.jsonl").read_text()) == {
    "training": "ft", "step": 1, **expected
  }  # fmt: skip


def test_an_old_ledger_with_nan_is_read_as_diverged(tmp_path):
  path = tmp_path / "ledger.jsonl"
  history = [{"train_loss": 0.5, "validation_loss": NAN, "validation_accuracy": 0.719}]
  bad = {"key": "a", "learning_rate": 3.0, "validation_accuracy": 0.719, "validation_loss": 0.1,
         "history": history, "stages": [{"title": "all"}], "moved": 2.0}  # fmt: skip
  good = bad | {"key": "b", "history": [{"train_loss": 0.5}]}
  searched = {"key": "c", "accuracy": 0.719, "loss": NAN, "seconds": 1.0}
  lines = (json.dumps(row | {"version": ledger.VERSION}) for row in (bad, good, searched))
  path.write_text("".join(f"{line}\n" for line in lines))
  rows = ledger.Ledger(path).rows()
  assert rows["a"] == bad | {
    "validation_accuracy": None, "validation_loss": None, "history": [], "stages": [],
    "moved": None,
  }  # fmt: skip
  assert rows["b"] == good
  assert rows["c"] == {"key": "c", "accuracy": None, "loss": None, "seconds": 1.0}
  grid = [choice.grid_row([rows["a"]]), choice.grid_row([rows["b"] | {"learning_rate": 1.0}])]
  assert choice.best_first(grid) == [1.0]


def test_an_old_record_with_nan_is_read_as_diverged(tmp_path):
  fake_run.write(tmp_path)
  path = tmp_path / "results.json"
  record = json.loads(path.read_text())
  method = next(m for m in record["methods"] if m["name"] == "ft")
  point = next(p for p in method["grid"] if p["learning_rate"] != method["learning_rate"])
  point["validation_loss"] = NAN
  path.write_text(json.dumps(record))
  read_point = next(
    p for m in fields.read(tmp_path)["methods"] if m["name"] == "ft" for p in m["grid"]
    if p["learning_rate"] == point["learning_rate"]
  )  # fmt: skip
  assert read_point["validation_accuracy"] is None
  assert read_point["validation_loss"] is None
  run = compare_record.load(tmp_path)
  (line,) = [line for line in explosion.lines(run.record) if "diverged at" in line]
  assert line == f"Full fine-tuning diverged at {point['learning_rate']:g}."
