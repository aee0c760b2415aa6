"""The last update counts: weights, statistics, averages and logits that are not finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import methods
from subtune_jax.calibration import nearest_mean
from subtune_jax.robustness import distortion, domain_gap, selection
from subtune_jax.training import evaluate, loop, probe, stage_runner
from tests import tiny

NAN, INF = float("nan"), float("inf")


def fit(method, *, variables=None, train=None, **options):
  model, start = tiny.make()
  engine = tiny.engine(model)
  train = train or tiny.examples(8)  # an epoch is one step
  return loop.fit(engine, variables or start, method, train, tiny.examples(9, 1), **options)


def ft(rate, **fields):
  return methods.full_fine_tuning(rate, epochs=1, optimizer="sgd", schedule="constant", **fields)


def seen(run):
  """The rows that were recorded before a NonFiniteLossError, and its message."""
  rows = []
  with pytest.raises(stage_runner.NonFiniteLossError) as error:
    run(lambda row, logits: rows.append(row))
  return rows, str(error.value)


@pytest.mark.parametrize("validate", ["epoch", "end"])
def test_the_last_update_is_checked(validate):
  """One step: the loss before it is finite, the weights after it are not."""
  rows, text = seen(lambda on: fit(ft(1e36, weight_decay=1e6), on_epoch=on, validate=validate))
  assert not rows
  assert "the weights (" in text
  assert "after epoch 1 of stage 'all'" in text
  assert "lower them" in text


def test_logits_of_finite_weights_are_checked():
  """The weights are finite and their products overflow."""
  rows, text = seen(lambda on: fit(ft(1e30, norm_mode="running"), on_epoch=on))
  assert not rows
  assert "the validation logits" in text
  assert "stage 'all'" in text


def test_a_training_without_validation_is_checked():
  model, variables = tiny.make()
  with pytest.raises(stage_runner.NonFiniteLossError, match="weights"):
    loop.fit(tiny.engine(model), variables, ft(1e36, weight_decay=1e6), tiny.examples(8), None)


def test_running_statistics_are_checked():
  """Nothing reads the statistics of a training step, so its loss says nothing of them."""
  _, variables = tiny.make()
  stats = jax.tree.map(lambda x: x, variables["batch_stats"])
  stats["block2"]["bn"]["var"] = jnp.full_like(stats["block2"]["bn"]["var"], jnp.inf)
  rows, text = seen(
    lambda on: fit(ft(0.0), variables={**variables, "batch_stats": stats}, on_epoch=on)
  )
  assert not rows
  assert "the running statistics (block2/bn/var)" in text


def test_a_running_average_is_checked():
  def broken(running, trained, step):
    return jax.tree.map(lambda a, b: (a + b) * jnp.inf, running, trained)

  rows, text = seen(lambda on: fit(ft(0.0, average=broken), on_epoch=on))
  assert not rows
  assert "the running average (" in text


def test_weights_behind_a_finite_average_are_checked():
  def keep(running, trained, step):
    return running

  _, text = seen(lambda on: fit(ft(1e36, weight_decay=1e6, average=keep), on_epoch=on))
  assert "the weights (" in text


def test_the_probes_solution_is_checked(monkeypatch):
  original = probe.fit_path
  monkeypatch.setattr(
    probe, "fit_path", lambda *a, **k: _broken(original(*a, **k), range(len(k["l2"])))
  )
  for method in (methods.linear_probing(l2=(1.0,)), methods.lp_ft(1e-3, l2=(1.0, 0.1), epochs=1)):
    rows, _ = seen(lambda on, method=method: fit(method, on_epoch=on))
    assert not rows


def _broken(path, places):
  weights = path.weights.copy()
  for place in places:
    weights[place, 0, 0] = NAN
  return dataclasses.replace(path, weights=weights)


def test_a_probe_that_diverged_is_no_strength_to_choose(monkeypatch):
  """Of mostly class 0, the answer of NaN logits is right more often than an honest probe's."""
  rng = np.random.default_rng(0)
  features, labels = rng.normal(size=(60, 4)), np.zeros(60, np.int32)
  labels[::3] = 1
  path = probe.fit_path(features, labels, num_classes=2, l2=(1e-3, 1.0))
  choice = probe.choose(_broken(path, [1]), rng.normal(size=(60, 4)), labels)
  assert choice.index == 0
  assert np.isnan(choice.accuracy[1])
  original = probe.fit_path
  monkeypatch.setattr(probe, "fit_path", lambda *a, **k: _broken(original(*a, **k), [1]))
  grid = fit(methods.linear_probing(l2=(1.0, 10.0))).stages[0]["grid"]
  assert grid[1] == {"learning_rate": 10.0, "validation_accuracy": None, "validation_loss": None}
  assert grid[0]["validation_accuracy"] is not None


def test_held_out_logits_that_are_not_finite_are_refused():
  model, variables = tiny.make()
  head = {**variables["params"]["head"], "bias": jnp.array([0.0, INF, 0.0])}
  bad = {**variables, "params": {**variables["params"], "head": head}}
  with pytest.raises(
    stage_runner.NonFiniteLossError, match="logits of image 0 of 9 are not finite"
  ):
    tiny.engine(model).predict(bad, tiny.examples(9).images)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_metrics_refuse_what_is_not_finite(bad):
  rng = np.random.default_rng(0)
  good = rng.normal(size=(24, 4))
  broken = good.copy()
  broken[3, 2] = bad
  labels = np.arange(24) % 4
  means, counts = nearest_mean.class_means(good, labels, 4)
  broken_means = np.where(means == means.max(), bad, means)
  for call in (
    lambda: evaluate.accuracy(broken, labels),
    lambda: evaluate.cross_entropy(broken, labels),
    lambda: evaluate.predictions(broken),
    lambda: nearest_mean.ncm_logits(good, broken_means, counts),
    lambda: distortion.distances(good, broken),
    lambda: distortion.linear_cka(good, broken),
    lambda: distortion.is_constant(broken),
    lambda: domain_gap.proxy_a_distance(good, broken),
    lambda: probe.fit_path(broken, labels, num_classes=4, l2=(1.0,)),
    lambda: selection.Epoch(bad, {}),
    lambda: selection.Epoch(0.5, {"test": 0.5}, bad),
  ):
    with pytest.raises(ValueError, match=r"(?i)nan|inf|not finite"):
      call()


def test_a_class_that_is_ruled_out_may_be_minus_infinity():
  logits = np.array([[0.0, -INF, 1.0], [2.0, -INF, 1.0]])
  assert evaluate.accuracy(logits, np.array([2, 0])) == 1
