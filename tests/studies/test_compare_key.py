"""A comparison's ledger key: other arrays under the same names are another training."""

import dataclasses
import pathlib

import jax
import pytest

from subtune_jax import methods, weights
from subtune_jax.data import preprocess
from subtune_jax.runner import trainings
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.compare import run as compare
from tests import tiny
from tests.search import small


def key(config, pretrained, model, train):
  engine = dataclasses.replace(tiny.engine(model), preprocessing=pretrained.preprocessing)
  run = trainings.Run(
    config, pathlib.Path(), train, train, None, (), None, engine, pretrained, None, {}, None, None
  )
  method = methods.sub_tuning(("top",), 1e-3, epochs=1)
  return compare.ledger_lib.key_of(trainings.describe(run, "sub_tuning", method, 0, train, train))


def shifted(variables, collection, head=False):
  part = {
    name: jax.tree.map(lambda x: x + 0.5, value) if (name == "head") == head else value
    for name, value in variables[collection].items()
  }
  return {**variables, collection: part}


def test_a_field_that_older_runs_lack_is_in_no_key_at_its_default():
  config = compare_config.default()
  model, variables = tiny.make()
  run = trainings.Run(
    config, pathlib.Path(), None, None, None, (), None, tiny.engine(model),
    weights.Pretrained(variables, tiny.PREPROCESSING, "name", "sha", ()), None, {}, None, None,
  )  # fmt: skip
  images, options = small.dataset(), []
  for first in (False, True):
    config.lora.probe_first = first
    options.append(trainings.describe(run, "lora", (), 0, images, None)["options"])
  assert "probe_first" not in options[0]
  assert options[1] == {**options[0], "probe_first": True}


@pytest.mark.parametrize(
  ("what", "keep_head", "same"),
  [
    ("nothing", False, True), ("params", False, False), ("batch_stats", False, False),
    ("head", False, True), ("head", True, False), ("preprocessing", False, False),
    ("images", False, False), ("labels", False, False), ("groups", False, False),
  ],
)  # fmt: skip
def test_a_key_knows_arrays_by_their_content(what, keep_head, same):
  config = compare_config.default()
  config.backbone.keep_head = keep_head
  model, variables = tiny.make()
  train = small.dataset()
  pretrained = weights.Pretrained(variables, tiny.PREPROCESSING, "name", "sha", ())
  first = key(config, pretrained, model, train)
  if what == "preprocessing":
    other = preprocess.Preprocessing(mean=(0.0,), std=(255.0,))
    pretrained = pretrained._replace(preprocessing=other)
  elif what == "labels":
    train = dataclasses.replace(train, labels=(train.labels + 1) % 3)
  elif what in ("images", "groups"):
    train = dataclasses.replace(train, **{what: getattr(train, what)[::-1]})
  elif what != "nothing":
    collection = "batch_stats" if what == "batch_stats" else "params"
    pretrained = pretrained._replace(variables=shifted(variables, collection, what == "head"))
  assert (key(config, pretrained, model, train) == first) == same
