"""Methods that change the network, in a comparison end to end on a small one."""

import io

import numpy as np
import pytest

from subtune_jax import models, weights
from subtune_jax.models import side
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import run as compare
from subtune_jax.studies.robustness import config as robustness_config
from subtune_jax.training import export


def make_config():
  config = compare_config.default()
  config.methods, config.seeds, config.batch_size = ("lp", "side_tuning"), (0,), 32
  config.data.ood, config.data.image_size, config.data.num_train = (), 16, 64
  config.backbone.update(name="resnet14", weights="random", preprocessing="half")
  config.lp.l2, config.side_tuning.epochs, config.tensorboard = (0.1,), 1, False
  return config


def test_side_tuning_is_a_method_of_a_comparison(tmp_path):
  config = make_config()
  stream = io.StringIO()
  record = compare.run(config, tmp_path / "run", stream=stream)
  lp, tuned = record["methods"]
  assert tuned["title"] == "Side-tuning"
  # The copy and the head are trained; no block of the backbone itself.
  assert tuned["stages"][0]["blocks"] == ["head"]
  backbone = sum(record["backbone"]["block_params"].values())
  assert tuned["trained_params"] == backbone + lp["trained_params"]
  assert "Side-tuning" in stream.getvalue()
  run = compare_record.load(tmp_path / "run")
  (chosen,) = run.chosen("side_tuning")
  # The exported task is that copy: put back, it gives the logits of the run.
  model = models.create("resnet14", len(record["data"]["class_names"]), image_size=16)
  pretrained = weights.random_weights(model, preprocessing="half")
  both, variables = side.wrap(model, pretrained.variables)
  restored, _ = export.load_task(tmp_path / "run" / "tasks" / chosen["key"], variables)
  (test,), _ = compare.load_tests(config, tuple(record["data"]["class_names"]))
  engine, _ = compare.load_network(config, len(record["data"]["class_names"]))
  own, _ = compare.prepared("side_tuning", engine, pretrained)
  assert own.model == both
  stored = np.load(tmp_path / "run" / chosen["test"][test.name]["logits"])["logits"]
  np.testing.assert_array_equal(own.predict(restored, test.images), stored)


def test_a_study_of_blocks_refuses_a_method_that_changes_the_network():
  config = robustness_config.default()
  config.methods = (*config.methods, "side_tuning")
  with pytest.raises(ValueError, match="'side_tuning', which changes the network"):
    robustness_config.check(config)
