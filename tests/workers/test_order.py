"""Decisions of searches do not depend on the order in which trainings end."""

import hashlib

import numpy as np
import pytest

from subtune_jax import strict_json
from subtune_jax.runner import executors
from subtune_jax.search import trainer
from subtune_jax.workers import here
from tests import marks
from tests.studies import small_search
from tests.workers import random_order

READ = ("sets", "searches", "chosen", "chosen_by", "certificate")


def fake(shared, job):
  """Answers of a training that its job decides, close enough to each other for long races."""
  setting = shared._value
  _, held = setting.problem.folds[job.fold]
  digest = hashlib.sha256(repr(job).encode()).digest()
  draw = np.random.default_rng(int.from_bytes(digest[:8], "little"))
  labels = np.asarray(setting.problem.train.labels)[held]
  right = draw.random(len(held)) < 0.5 + 0.08 * len(job.units)
  logits = np.zeros((len(held), 3), np.float32)
  logits[np.arange(len(held)), (labels + ~right) % 3] = 1.0
  row = {"units": list(job.units), "fold": job.fold, "seed": job.seed, "accuracy": right.mean(),
         "loss": 1.0, "seconds": 1.0, "compile_seconds": 0.0}  # fmt: skip
  return row, {"logits": logits, "rows": held}


def decisions(folder, executor, monkeypatch):
  monkeypatch.setattr(trainer, "train", fake)
  monkeypatch.setattr(executors, "of", lambda config, places: executor)
  monkeypatch.setattr("subtune_jax.studies.search.run._forecast", lambda search, workdir: None)
  config = small_search.config(racing=True, regret=0.1, final=False, units="blocks", folds=3)
  record = small_search.run(folder, config)
  return strict_json.dumps({name: record[name] for name in READ}), record


@pytest.fixture(scope="module")
def in_order(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    return decisions(tmp_path_factory.mktemp("search"), here.Here(), patch)


@pytest.mark.parametrize("seed", marks.first(1, range(2)))
def test_racing_and_greedy_decide_the_same_in_any_order(in_order, seed, tmp_path, monkeypatch):
  executor = random_order.RandomOrder(seed)
  found, _ = decisions(tmp_path, executor, monkeypatch)
  assert executor.ended != sorted(executor.ended)
  assert found == in_order[0]


def test_the_races_drop_some(in_order):
  assert in_order[1]["cost"]["dropped_by_race"] > 0
