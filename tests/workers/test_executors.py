"""What a config says of where its trainings run."""

import pytest

from subtune_jax.runner import executors, workdir
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.holistic_transfer import config as holistic_config
from subtune_jax.studies.robustness import config as robustness_config
from subtune_jax.studies.search import config as search_config
from subtune_jax.workers import on_ray


def on_a_cluster(config, **fields):
  config.workers = "ray"
  for name, value in fields.items():
    config.ray[name] = value
  return config


@pytest.fixture
def installed(monkeypatch):
  monkeypatch.setattr(on_ray, "available", lambda: True)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"cpus": 0.0}, "ray.cpus is 0.0, ray.gpus -1.0, ray.number 0; give cpus above 0"),
    ({"number": -1}, "ray.number -1; give cpus above 0"),
    (
      {"gpus": 1.5},
      "ray.gpus 1.5, ray.number 0; give .* a whole number of GPUs or a share below 1",
    ),
    (
      {"gpus": 2.0},
      "ray.gpus is 2, and a training of a search takes one device: give 1 or a share",
    ),
  ],
)
def test_bad_workers_are_one_error(installed, fields, message):
  with pytest.raises(ValueError, match=message):
    search_config.check(on_a_cluster(search_config.default(), **fields))


def test_a_misspelt_kind_is_named():
  config = compare_config.default()
  config.workers = "rey"
  with pytest.raises(ValueError, match="Unknown workers 'rey'"):
    executors.check(config)


def test_ray_that_is_not_installed_is_named(monkeypatch):
  monkeypatch.setattr(on_ray, "available", lambda: False)
  with pytest.raises(ValueError, match=r"ray is not installed: pip install 'subtune-jax\[ray\]'"):
    search_config.check(on_a_cluster(search_config.default()))


@pytest.mark.parametrize("study", [robustness_config, holistic_config])
def test_studies_that_read_networks_on_the_way_stay_here(installed, study):
  with pytest.raises(ValueError, match="reads its networks after every epoch, in this process"):
    study.check(on_a_cluster(study.default()))


def test_a_workdir_does_not_mind_where_trainings_run(installed, tmp_path):
  workdir.enter(tmp_path, compare_config.default())
  _, entered = workdir.enter(tmp_path, on_a_cluster(compare_config.default(), cpus=2.0))
  assert entered


def test_workers_get_what_decides_numbers(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--flag")
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setenv("HOSTNAME", "driver")
  own = on_ray.environment(0.0)
  assert (own["XLA_FLAGS"], own["JAX_PLATFORMS"]) == ("--flag", "cpu")
  assert "HOSTNAME" not in own
  shared = on_ray.environment(0.25)  # four share a GPU
  assert "JAX_PLATFORMS" not in shared
  assert 0.2 < float(shared["XLA_PYTHON_CLIENT_MEM_FRACTION"]) <= 0.25


@pytest.mark.parametrize(
  ("cpus", "gpus", "held"), [(1, 0, 8), (3, 0, 2), (1, 1, 2), (1, 0.4, 4), (0, 2, 1), (1, 4, 0)]
)
def test_how_many_workers_a_machine_holds(cpus, gpus, held):
  assert on_ray._holds({"CPU": 8.0, "GPU": 2.0}, cpus, gpus) == held
