"""Trainings on a Ray cluster of three machines, each a set of processes here; one is killed."""

import collections
import io
import os
import time

import numpy as np
import pytest

from subtune_jax import strict_json
from subtune_jax.runner import executors
from subtune_jax.search import evaluator, store
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.compare import run as compare
from subtune_jax.training import checkpoint
from subtune_jax.workers import on_ray
from tests.search import small
from tests.studies import small_search
from tests.workers import calls

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'subtune-jax[ray]'")
SETS = [(), ("stem",), ("block2/unit1",), ("block1/unit1", "block3/unit1")]


@pytest.fixture(scope="module")
def cluster():
  from ray import cluster_utils

  made = cluster_utils.Cluster(
    initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
  )
  for _ in range(2):
    made.add_node(num_cpus=1)
  os.environ["RAY_ADDRESS"] = made.address
  yield made
  ray.shutdown()
  made.shutdown()
  del os.environ["RAY_ADDRESS"]


def settled(machines):
  """Waits until the cluster knows of as many machines, a lost one no more."""
  deadline = time.monotonic() + 90
  if not ray.is_initialized():
    ray.init(log_to_driver=False)
  while sum(node["Alive"] for node in ray.nodes()) != machines:
    assert time.monotonic() < deadline
    time.sleep(0.2)


@pytest.fixture
def executor(cluster):
  settled(3)
  made = on_ray.RayExecutor(cpus=1)
  yield made
  made.shutdown(wait=False, cancel_futures=True)


def scored(folder, **options):
  net = small.model()
  made = evaluator.Evaluator(
    small.problem(net), small.recipe(), small.engine(net), store.Store(folder), **options
  )
  return made, made.evaluate(SETS)


def test_calls_errors_and_lost_processes(executor, tmp_path):
  assert executor.num_workers == 2
  assert executor.text() == "2 workers on Ray, each of 1 CPU and 0 GPU"
  assert [executor.submit(pow, 2, n).result(60) for n in range(3)] == [1, 2, 4]
  with pytest.raises(ZeroDivisionError):
    executor.submit(divmod, 1, 0).result(60)
  with pytest.raises(TypeError, match="pickle"):
    executor.submit(print, (n for n in [])).result(60)
  assert executor.submit(calls.dies_until, tmp_path / "once", 1).result(120) == "done"
  with pytest.raises(on_ray.LostWorkerError, match="lost with 4 workers"):
    executor.submit(calls.dies_until, tmp_path / "always", 100).result(120)
  assert len((tmp_path / "always").read_text()) == on_ray.ATTEMPTS
  assert executor.submit(abs, -1).result(60) == 1  # others took their places


def test_a_search_is_the_same_bits_and_a_machine_may_be_lost(cluster, tmp_path):
  settled(3)
  _, found = scored(tmp_path / "here")
  victim = cluster.add_node(num_cpus=1)
  settled(4)
  executor = on_ray.RayExecutor(cpus=1)
  gone = []

  def kill(row, new):
    if not gone:
      gone.append(row["key"])
      cluster.remove_node(victim, allow_graceful=False)

  made, scores = scored(tmp_path / "ray", executor=executor, on_done=kill)
  executor.shutdown()
  assert executor.num_workers == 3
  assert gone
  assert made.trained == small.FOLDS * len(SETS)
  lines = (tmp_path / "ray/ledger.jsonl").read_text().splitlines()
  keys = collections.Counter(strict_json.loads(line)["key"] for line in lines)
  assert set(keys) == set(made.used)
  assert set(keys.values()) == {1}
  for units in SETS:
    for one, other in zip(found[units].cells, scores[units].cells, strict=True):
      assert np.array_equal(one, other)
  for key in keys:
    one, other = (store.Store(tmp_path / name).logits(key) for name in ("here", "ray"))
    for name in one:
      assert np.array_equal(one[name], other[name]), key


def test_a_worker_that_stops_answering_with_its_machine_loses_its_call_only(cluster, tmp_path):
  """The machine is killed while a call runs on each; both calls end, the lost one elsewhere."""
  settled(3)
  victim = cluster.add_node(num_cpus=1)
  settled(4)
  executor = on_ray.RayExecutor(cpus=1)
  assert executor.num_workers == 3
  under_way = [executor.submit(calls.slow, tmp_path / str(n)) for n in range(3)]
  deadline = time.monotonic() + 60
  while len(list(tmp_path.iterdir())) < 3 and time.monotonic() < deadline:
    time.sleep(0.1)
  cluster.remove_node(victim, allow_graceful=False)
  assert [call.result(120) for call in under_way] == ["done"] * 3
  assert sorted(len(path.read_text()) for path in tmp_path.iterdir()) == [1, 1, 2]
  executor.shutdown()


def comparison(workers):
  small_search.register()
  made = small_search.config()
  config = compare_config.default()
  for name in ("data", "backbone"):
    config[name] = made[name]
  config.batch_size, config.tensorboard, config.checkpoint_seconds = 8, False, 0.0
  config.methods, config.seeds, config.workers = ("lp", "ft"), (0, 1), workers
  config.lp.l2, config.ft.epochs, config.ft.learning_rates = (0.1,), 2, (1e-3, 1e-2)
  config.data.retrain = True
  return config


def without_times(value):
  """A record less what differs between two runs of the same."""
  if isinstance(value, dict):
    skipped = ("seconds", "compile_seconds", "created", "workers", "data_wait", "command",
               "milliseconds")  # fmt: skip
    return {k: without_times(v) for k, v in value.items() if k not in skipped}
  return [without_times(v) for v in value] if isinstance(value, list) else value


def test_a_comparison_is_the_same_bits(cluster, tmp_path):
  records = {
    kind: without_times(compare.run(comparison(kind), tmp_path / kind, stream=io.StringIO()))
    for kind in executors.KINDS
  }
  assert records["here"] == records["ray"]
  for task in (tmp_path / "here/tasks").iterdir():
    one, other = (checkpoint.load(tmp_path / k / "tasks" / task.name)[0] for k in executors.KINDS)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
  lines = [(tmp_path / k / "ledger.jsonl").read_text().splitlines() for k in executors.KINDS]
  keys = [[strict_json.loads(line)["key"] for line in own] for own in lines]
  assert sorted(keys[0]) == sorted(keys[1])
  metrics = [(tmp_path / k / "metrics.jsonl").read_text().splitlines() for k in executors.KINDS]
  assert len(metrics[0]) == len(metrics[1])


def test_the_other_kind_goes_on_with_a_run(cluster, tmp_path):
  compare.run(comparison("ray"), tmp_path, stream=io.StringIO())
  before = (tmp_path / "ledger.jsonl").read_text()
  compare.run(comparison("here"), tmp_path, stream=io.StringIO())
  assert (tmp_path / "ledger.jsonl").read_text() == before


def test_a_cluster_that_holds_no_worker_is_an_error(cluster):
  with pytest.raises(ValueError, match="no machine of the Ray cluster holds a worker of 64 CPU"):
    on_ray.RayExecutor(cpus=64).submit(abs, 1)
