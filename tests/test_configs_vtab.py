"""configs/vtab.py: its arguments, the comparison of each task, and what the command line says."""

import pathlib
import re
import subprocess
import time

import pytest

from subtune_jax import files, methods
from subtune_jax.data import vtab
from subtune_jax.runner import workdir
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.vtab import config as vtab_config
from tests import command, config_files


def start(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
  """The command line with `folder`/tfds as TFDS's folder, which is not there."""
  return command.run_forked(
    *arguments, f"--workdir={folder / 'run'}", TFDS_DATA_DIR=str(folder / "tfds")
  )


def test_all_missing_data_in_one_error_before_anything_is_written(tmp_path):
  begin = time.monotonic()
  done = start(tmp_path, "--config=configs/vtab.py")
  assert time.monotonic() - begin < 20
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith("error: 19 of 19 tasks have no data here. Nothing was written.")
  assert done.stdout == ""
  assert "Traceback" not in done.stderr
  for name, task in vtab.TASKS.items():
    entry = re.search(rf"  vtab/{name} \((.*\n.*)\n", done.stderr).group(1)
    assert f"{task.source.download} to download" in entry
    assert f"goes to {tmp_path / 'tfds' / task.source.name / task.source.version}\n" in entry
    assert f"python -m subtune_jax.data.prepare vtab/{name}" in entry
    assert ("by hand, put into" in entry) == bool(task.source.manual)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config=configs/vtab.py", "--config.tasks=('vtab/cifar10',)"], "Did you mean 'cifar100'"),
    (["--config=configs/vtab.py:tasks=dtd+shvn"], "Did you mean 'svhn'"),
    (["--config=configs/vtab.py", "--config.data.train=vtab/dtd"], "no field 'data.train'"),
    (["--config=configs/fashion_mnist.py"], "python -m subtune_jax.data.prepare fashion_mnist"),
  ],
)
def test_a_wrong_command_line_is_one_error(tmp_path, arguments, message):
  done = start(tmp_path, *arguments)
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith("error: ")
  assert message in done.stderr
  assert "Traceback" not in done.stderr
  assert not list(tmp_path.iterdir())


def test_each_task_is_a_comparison_with_the_same_settings():
  config = config_files.get_config("configs/vtab.py")
  assert vtab_config.task_names(config) == tuple(vtab.TASKS)
  declared = set(files.flatten(workdir.as_json(compare_config.default())))
  seen = {}
  for task in (*vtab.TASKS, "fashion_mnist"):
    own = vtab_config.task_config(config, task)
    assert own.experiment == "compare"
    assert own.data.train == ("fashion_mnist" if task == "fashion_mnist" else f"vtab/{task}")
    assert (own.data.ood, own.data.retrain, own.data.image_size) == ((), True, 224)
    assert own.data.interpolation == vtab.OFFICIAL
    flat = files.flatten(workdir.as_json(own))
    assert set(flat) == declared
    seen[task] = {k: v for k, v in flat.items() if k not in ("name", "title", "data.train")}
  assert all(settings == seen["dtd"] for settings in seen.values())
  assert config.ft.learning_rates == methods.DECLARED["ft"].grid


def test_arguments():
  get_config = config_files.module("configs/vtab.py").get_config
  config = get_config(
    "backbone=vit_b16,weights=vit_b16/augreg-in21k,blocks=encoderblock_11+encoder_norm,tasks=vtab/dtd+svhn"
  )
  assert config.backbone.name == "vit_b16"
  assert config.backbone.weights == "vit_b16/augreg-in21k"
  assert config.subtuning.blocks == ("encoderblock_11", "encoder_norm")
  assert config.name == "vtab-vit_b16"
  assert vtab_config.task_names(config) == ("dtd", "svhn")
  assert get_config("epochs=3,image_size=64").lp_ft.epochs == 3
  for argument, message in (
    ("backbone=vit_b16", "give backbone and weights together"),
    ("tasks=dtd+vtab/dtd", "each once"),
    ("task=dtd", "is unknown; allowed"),
  ):
    with pytest.raises(ValueError, match=message):
      get_config(argument)


def test_tasks_come_in_the_order_of_the_table():
  config = vtab_config.default()
  config.tasks = ("fashion_mnist", "vtab/svhn", "dtd")
  assert vtab_config.task_names(config) == ("dtd", "svhn", "fashion_mnist")
  config.tasks = ()
  with pytest.raises(ValueError, match="give at least one"):
    vtab_config.task_names(config)
