"""Learning rates chosen inside a fold: by its training images alone, as written out by hand."""

import dataclasses

import numpy as np
import pytest

from subtune_jax import methods
from subtune_jax.models import heads
from subtune_jax.search import evaluator, store
from subtune_jax.training import loop
from tests import tiny
from tests.search import small

RATES = (1e-3, 3e-2)
UNITS = ("block2/unit1",)


def grid(rates=RATES, **stage):
  options = {"epochs": 2} | stage
  return {
    rate: lambda blocks, rate=rate: methods.sub_tuning(blocks, rate, **options) for rate in rates
  }


def make(folder, problem=None, by_rate=None, **recipe):
  net = small.model()
  return evaluator.Evaluator(
    problem or small.problem(net), small.recipe(by_rate=by_rate or grid(), **recipe),
    small.engine(net), store.Store(folder),
  )  # fmt: skip


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
  made = make(tmp_path_factory.mktemp("store"))
  return made, made.evaluate([(), UNITS])


def test_each_fold_takes_the_rate_that_is_best_inside_its_training_part(scored):
  made, found = scored
  problem, net = made.problem, small.model()
  engine, train = tiny.engine(net), problem.train
  start = heads.init_head(net, problem.variables, 0, problem.weights)
  for row, (rest, held) in zip(made.rows(UNITS), problem.folds, strict=True):
    kept, inner = problem.inner(row["fold"])
    assert sorted([*kept, *inner]) == sorted(rest)
    assert 0.1 < len(inner) / len(rest) < 0.3
    ways = [methods.sub_tuning(UNITS, rate, epochs=2) for rate in RATES]
    trained = [
      loop.fit(engine, start, way, train.subset(kept), train.subset(inner), seed=0) for way in ways
    ]
    last = [result.history[-1] for result in trained]
    best = min(
      range(2), key=lambda i: (-last[i]["validation_accuracy"], last[i]["validation_loss"])
    )
    assert row["learning_rate"] == RATES[best]
    assert row["inner_accuracy"] == [h["validation_accuracy"] for h in last]
    result = loop.fit(engine, start, ways[best], train.subset(rest), None, seed=0)
    answers = np.argmax(engine.predict(result.variables, train.subset(held).images), -1)
    assert found[UNITS].cells[row["fold"]].tolist() == (answers == train.labels[held]).tolist()
  assert len({row["learning_rate"] for row in made.rows(UNITS)}) == 2  # both are the best somewhere
  assert all("learning_rate" not in row for row in made.rows(()))  # the probe has none


def test_held_out_labels_change_nothing_that_is_trained(scored, tmp_path):
  made, _ = scored
  _, held = made.problem.folds[0]
  labels = made.problem.train.labels.copy()
  labels[held] = (labels[held] + 1) % small.CLASSES
  train = dataclasses.replace(made.problem.train, labels=labels)
  poisoned = make(tmp_path, dataclasses.replace(made.problem, train=train), head="probe")
  clean = make(tmp_path, made.problem, head="probe")
  for one in (poisoned, clean):
    one.cells([UNITS], 0)
  (first,), (second,) = poisoned.rows(UNITS), clean.rows(UNITS)
  assert first["key"] != second["key"]
  assert first["learning_rate"] == second["learning_rate"]
  assert first["inner_accuracy"] == second["inner_accuracy"]
  one, other = (clean.store.logits(row["key"])["logits"] for row in (first, second))
  np.testing.assert_array_equal(one, other)


def test_a_rate_that_diverges_is_not_taken(tmp_path):
  made = make(tmp_path, by_rate=grid((1e25, 1e-3), optimizer="sgd"))
  made.cells([UNITS], 0)
  (row,) = made.rows(UNITS)
  assert row["learning_rate"] == 1e-3
  assert row["inner_accuracy"][0] is None
  lost = make(tmp_path, by_rate=grid((1e25, 1e24), optimizer="sgd"))
  assert np.isnan(lost.cells([UNITS], 0)[0]).all()
  (row,) = lost.rows(UNITS)
  assert row["accuracy"] is None
  assert row["diverged"]


def test_the_rates_are_in_the_key(scored, tmp_path):
  made, _ = scored
  keys = {
    make(tmp_path, by_rate=grid(r)).key(UNITS, 0, 0) for r in (RATES, RATES[:1], (1e-3, 1e-2))
  }
  assert made.key(UNITS, 0, 0) in keys
  assert len(keys) == 3


def test_the_probe_that_trainings_start_from_is_of_the_inner_part_there(tmp_path):
  """At a rate of 0 the accuracy inside the fold is that of the probe of the inner training part."""
  made = make(tmp_path, by_rate=grid((0.0, 1e-9), epochs=1, norm_mode="running"), head="probe")
  made.cells([UNITS], 0)
  (row,) = made.rows(UNITS)
  kept, inner = (made.problem.train.subset(rows) for rows in made.problem.inner(0))
  fresh = heads.init_head(small.model(), made.problem.variables, 0, made.problem.weights)
  engine = tiny.engine(small.model())
  probed = loop.fit(engine, fresh, made.recipe.probe, kept, inner, seed=0)
  assert row["inner_accuracy"][0] == probed.history[-1]["validation_accuracy"]
