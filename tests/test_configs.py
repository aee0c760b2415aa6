"""Every config runs through the real command line, with a small network and shrunken settings."""

import json

import pytest

from tests import command

ROOT = command.ROOT
NOTO, FLUENT = "emoji_domains/noto", "emoji_domains/fluent"

NETWORK = {
  "backbone.name": "resnet14", "backbone.weights": "random", "backbone.preprocessing": "half",
  "data.image_size": 16, "tensorboard": False,
}  # fmt: skip
SETS = {"data.train": NOTO, "data.ood": (FLUENT,), "data.num_train": 90}
SHORT = {
  "seeds": (0,), "lp.l2": (0.1,), "ft.epochs": 1, "lp_ft.epochs": 1, "subtuning.epochs": 1,
  "ft.learning_rates": (1e-3,), "lp_ft.learning_rates": (1e-3,),
  "subtuning.learning_rates": (1e-3,),
}  # fmt: skip
COMPARE = NETWORK | SETS | SHORT | {"subtuning.blocks": ("block3/unit1",)}
SEARCH = NETWORK | SETS | SHORT | {"search.units": "stages", "search.folds": 2, "search.epochs": 1}
FULL = NETWORK | SETS | {"ft.epochs": 1, "ft.learning_rates": (1e-2,)}
HOLISTIC = {
  **NETWORK, "seeds": (0,), "methods": ("ft", "lp"), "holistic.num_seen": (22,),
  "holistic.pcv_methods": (), "source.epochs": 1, "source.learning_rates": (1e-2,), "ft.epochs": 1,
  "ft.learning_rates": (1e-2,), "lp.epochs": 1, "lp.learning_rates": (1e-2,), "subtuning.units": "",
}  # fmt: skip
OVERRIDES = {
  "calibration": HOLISTIC,
  "compare": COMPARE,
  "corruption": SEARCH | {
    "backbone.keep_head": False, "data.ood": (), "corrupted": "emoji_domains/noto+{}",
    "shifts": ("contrast/5", "flip_labels"),
  },
  "dataset_size": SEARCH | {"sizes": (60, 90), "data.num_train": 0},
  "fashion_mnist": COMPARE | {"data.interpolation": "bicubic"},
  "finetune": NETWORK | SETS | SHORT,
  "greedy": SEARCH,
  "pretrain_cifar10": FULL,
  "pretrain_fashion_mnist": FULL,
  "profile": SEARCH,
  "quickstart": COMPARE,
  "robustness": COMPARE | {"robustness.num_alphas": 2},
  "shift": NETWORK | SETS | SHORT | {"data.shift": ""},
}  # fmt: skip
NEEDS_DATA = {"vtab"}  # named data sets only: test_configs_vtab.py


def test_every_config_is_tested():
  files = {path.stem for path in (ROOT / "configs").glob("*.py")}
  assert files == set(OVERRIDES) | NEEDS_DATA


@pytest.mark.slow
@pytest.mark.parametrize("name", OVERRIDES)
def test_a_config_runs(name, tmp_path):
  fields = [f"--config.{field}={value}" for field, value in OVERRIDES[name].items()]
  arguments = (f"--config=configs/{name}.py", *fields, f"--workdir={tmp_path / 'run'}")
  done = command.run(*arguments, timeout=None)
  assert done.returncode == 0, done.stderr
  assert "Traceback" not in done.stderr
  assert "tensorflow" not in done.stderr.lower()
  record = json.loads((tmp_path / "run/results.json").read_text())
  assert record["title"]
  assert str(tmp_path / "run/report.html") in done.stdout
  assert (tmp_path / "run/report.html").stat().st_size > 10_000
