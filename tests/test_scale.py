"""The scheduler with workers and machines that are lost: nothing is lost or done twice."""

import pathlib
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))
import scale
import simulated_cluster

PLAN = simulated_cluster.Plan(
  machines=4, workers=4, seconds=0.1, start_seconds=0.02, crash=0.05, machine_every=1.0,
  machine_back=0.1,
)  # fmt: skip


def test_every_training_is_kept_once(tmp_path):
  found = scale.simulate(200, PLAN, tmp_path)
  assert (found.trainings, found.workers) == (200, 16)
  assert (found.kept, found.twice, found.missing) == (200, 0, 0)
  assert found.lost > 0
  assert 0.1 < found.utilisation <= 1.0


def test_a_call_that_is_always_lost_is_an_error(tmp_path):
  plan = simulated_cluster.Plan(
    machines=1, workers=2, seconds=0.01, start_seconds=0.0, crash=1.0, machine_every=0.0
  )
  with pytest.raises(scale.on_ray.LostWorkerError, match="lost with 4 workers one after another"):
    scale.simulate(5, plan, tmp_path)


def test_a_call_that_is_lost_stays_so_however_late_it_is_looked_at():
  plan = simulated_cluster.Plan(
    machines=1, workers=1, seconds=0.01, start_seconds=0.0, crash=1.0, machine_every=0.0
  )
  ray = simulated_cluster.Cluster(plan).module()
  worker = ray.remote()(None).remote({})
  call = worker.run.remote(len, ((),), {})
  time.sleep(0.1)  # the machine was busy
  ray.wait([call], num_returns=1, timeout=1.0)
  with pytest.raises(ray.exceptions.RayError):
    ray.get(call)
