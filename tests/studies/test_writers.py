"""The metric writer: one JSON line per epoch, and TensorBoard where it is asked for."""

import json

import pytest

from subtune_jax.runner import writers


@pytest.mark.parametrize("tensorboard", [False, True])
def test_an_epoch_without_a_validation_set_is_written(tmp_path, tensorboard):
  if tensorboard:
    pytest.importorskip("clu.metric_writers")
  writer = writers.MetricWriter(tmp_path, tensorboard=tensorboard)
  row = {"stage": 0, "epoch": 1, "train_loss": 0.5, "validation_loss": None,
         "rates": {"block0": 0.25, "head": 1.0}}  # fmt: skip
  writer.write(1, "ft/lr=0.1/seed=0", row)
  writer.close()
  (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert json.loads(line)["validation_loss"] is None
  assert json.loads(line)["rates"]["block0"] == 0.25
